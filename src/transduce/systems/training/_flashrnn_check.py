"""The full check of `flashrnn`: exactness of states and gradients, heads, speed without a compiler, parity, the tuner."""

from __future__ import annotations

import itertools
import random
import time
from typing import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from transduce.core.protocols import Claim
from transduce.nn import GRU, LSTM, SLSTM, Elman, MinGRU, Recurrence, from_torch
from transduce.ops.dispatch import use_backend
from transduce.ops.tuner import Problem, Relation, Term
from transduce.train.check import Check
from transduce.train.plots import curves

from ._parity import LENGTHS, LONG, by_length

LAYERS = {"elman": Elman, "gru": GRU, "lstm": LSTM, "slstm": SLSTM}


def outcome(layer: Callable[[Tensor], tuple], x: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Outputs, and the gradients of a quadratic loss in the input and the parameters."""
    y = layer(x)[0]
    return [y, *torch.autograd.grad((y * y).sum(), [x, *parameters])]


def largest(got: Sequence[Tensor], want: Sequence[Tensor]) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(got, want, strict=True))


def exactness(cell: str, heads: int, seed: int) -> tuple[float, float]:
    """Errors against a plain loop, and of the heads against one dense matrix with zeros: width 8 a head, T = 20."""
    torch.manual_seed(seed)
    width = 8 * heads
    layer, dense = (LAYERS[cell](width, heads=h).double() for h in (heads, 1))
    blocks = [torch.block_diag(*gate.split(8)) for gate in layer.cell.weight.detach().split(width)]
    dense.load_state_dict({**layer.state_dict(), "cell.weight": torch.cat(blocks)})
    x = torch.randn(4, 20, width, dtype=torch.float64, requires_grad=True)
    mine = outcome(layer, x, list(layer.parameters()))
    plain = outcome(Recurrence(layer.cell, solver="loop"), x, list(layer.parameters()))
    return largest(mine, plain), float((layer(x)[0] - dense(x)[0]).abs().max())


def against_torch(seed: int) -> float:
    """One head of the LSTM against torch.nn.LSTM, outputs and the gradient of the input."""
    torch.manual_seed(seed)
    theirs = nn.LSTM(8, 8, batch_first=True).double()
    x = torch.randn(4, 20, 8, dtype=torch.float64, requires_grad=True)
    return largest(outcome(from_torch(theirs), x, []), outcome(theirs, x, []))


def speeds(cell: str, heads: int, *, batch: int = 8, steps: int = 256, width: int = 128, tries: int = 7) -> dict[str, float]:
    """Processor seconds of a forward and backward pass of one layer on one thread (so that neighbours on the machine
    count for nothing), the best of ``tries`` taken in turns."""
    torch.manual_seed(0)
    layer = LAYERS[cell](width, heads=heads)
    x = torch.randn(batch, steps, width, requires_grad=True)
    nets = {"loop under autograd": Recurrence(layer.cell, solver="loop"), "by hand": layer, "compiled": layer}
    best = dict.fromkeys(nets, float("inf"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(tries):
            for name, net in nets.items():
                with use_backend(**({cell: "loop"} if name == "by hand" else {})):
                    begun = time.thread_time()
                    outcome(net, x, list(layer.parameters()))
                    best[name] = min(best[name], time.thread_time() - begun)
    finally:
        torch.set_num_threads(before)
    return best


def random_problem(rng: random.Random) -> tuple[Problem, dict[str, list[int]], list[Relation]]:
    """An integer problem of up to four variables, with what one needs to try everything."""
    problem = Problem()
    domains = {name: rng.sample(range(-3, 13), rng.randint(1, 6)) for name in "abcd"[: rng.randint(1, 4)]}
    terms = {n: problem.variable(n, values) for n, values in domains.items()}

    def term(depth: int) -> Term | int:
        kind = rng.choice(("name", "number", "+", "*", "-", "power") if depth else ("name", "number"))
        if kind == "name":
            return terms[rng.choice(list(terms))]
        if kind == "number":
            return rng.randint(-2, 14)
        left = term(depth - 1)
        if kind == "power":
            return left ** rng.randint(0, 3)
        right = term(depth - 1)
        return {"+": lambda: left + right, "-": lambda: left - right, "*": lambda: left * right}[kind]()

    relations = []
    for _ in range(rng.randint(1, 2)):
        left, right = terms[rng.choice(list(terms))] * 1 + term(2), term(2)
        kinds = (lambda: left <= right, lambda: left >= right, lambda: left.equals(right), lambda: left.divides(right))
        relations.append(rng.choice(kinds)())
    problem.require(*relations)
    return problem, domains, relations


def everything(domains: dict[str, list[int]], relations: Sequence[Relation]) -> Iterator[dict[str, int]]:
    for values in itertools.product(*domains.values()):
        at = dict(zip(domains, values))
        if all(r.holds(at) for r in relations):
            yield at


def same_solutions(problem: Problem, domains: dict[str, list[int]], relations: Sequence[Relation]) -> bool:
    key = lambda found: sorted(tuple(sorted(at.items())) for at in found)
    return key(problem.solutions()) == key(everything(domains, relations))


def check(report: Check) -> None:
    tight = 1e-9
    for cell in LAYERS:
        found = [exactness(cell, 3, seed) for seed in report.seeds]
        report.measure(
            f"{cell}, 3 heads of 8, T = 20: states and gradients against a plain loop, float64",
            [e for e, _ in found],
            Claim("exact", "the hand-written backward is the derivative", at_most=tight),
        )
        report.measure(
            f"{cell}: heads against one dense matrix with zeros, float64",
            [e for _, e in found],
            Claim("blocks", "heads are blocks of one matrix", at_most=tight),
        )
    report.measure(
        "lstm, one head: difference to torch.nn.LSTM, float64",
        [against_torch(seed) for seed in report.seeds],
        Claim("torch", "the same equations as torch's", at_most=tight),
    )
    rng = random.Random(0)
    problems = [random_problem(rng) for _ in range(200)]
    report.measure(
        "tuner: share of 200 random problems whose solutions are those of trying everything",
        sum(same_solutions(*p) for p in problems) / 200,
        Claim("tuner", "the tuner is exact", at_least=1.0),
    )
    _speed(report)
    _parity(report)


def _speed(report: Check) -> None:
    claim = Claim("speed", "a backward by hand pays without a compiler", at_least=2.5)
    table = {}
    for cell, heads in (("lstm", 4), ("lstm", 1), ("gru", 4), ("elman", 4), ("slstm", 4)):
        seconds = speeds(cell, heads, tries=2 if report.quick else 7)
        table[f"{cell}, {heads} heads"] = {name: round(s * 1e3, 2) for name, s in seconds.items()}
        gain = seconds["loop under autograd"] / seconds["by hand"]
        report.measure(
            f"{cell}, {heads} heads of {128 // heads}, B = 8, T = 256: times as fast as autograd through the loop",
            gain,
            claim if (cell, heads) == ("lstm", 4) else None,
        )
    report.notes["processor milliseconds forward and backward, B = 8, T = 256, width 128, one thread"] = table


def _parity(report: Check) -> None:
    flashed = {"LSTM, 4 heads": lambda dim: LSTM(dim, heads=4), "MinGRU (linear, eigenvalues in (0, 1))": MinGRU}
    found = by_length(report, flashed)
    claims = (
        Claim("tracks", "a nonlinear state can flip", at_least=0.99),
        Claim("stays", "positive eigenvalues cannot alternate", at_most=0.6),
    )
    for (name, runs), claim in zip(found.items(), claims):
        report.measure(f"parity at T = {LONG} after T = 32, {name}: accuracy", [r[-1] for r in runs], claim)
    curves(
        {name: (LENGTHS, list(zip(*runs))) for name, runs in found.items()},
        report.figure("parity"),
        x_label="length of the word",
        y_label="accuracy of the last label",
        title="Running parity, trained on words of 32",
        levels={"chance": 0.5},
        log="x",
    )
