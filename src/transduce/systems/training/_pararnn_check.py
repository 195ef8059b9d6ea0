"""The full check of `pararnn`: convergence, its limit and the fallback, gradients, parity."""

from __future__ import annotations

import logging
import math
import time

import torch
from torch import Tensor

from transduce.core.protocols import Claim
from transduce.nn import MinGRU, ParaGRU, ParaGRUCell, ParaLSTM, ParaLSTMCell, Recurrence
from transduce.nn.newton import Channels
from transduce.ops.newton import newton_guesses
from transduce.train.check import Check
from transduce.train.plots import curves

from ._parity import LENGTHS, LONG, by_length

DIM, STEPS = 64, 4096
FLOOR = 1e-16


def problem(cell: str, steps: int, seed: int, scale: float | None = None) -> tuple[Channels, Tensor, Tensor]:
    """A cell in float64 with inputs of unit size; ``scale``: standard deviation of its state-to-state weights."""
    torch.manual_seed(seed)
    made = (ParaGRUCell if cell == "gru" else ParaLSTMCell)(DIM, DIM).double()
    if scale is not None:
        with torch.no_grad():
            made.weight.normal_(std=scale)
    channels = Channels(made)
    with torch.no_grad():
        pre = made.inputs(torch.randn(2, steps, DIM, dtype=torch.float64))
    return channels, pre, channels.join(made.init_state(2))


@torch.no_grad()
def errors(channels: Channels, pre: Tensor, h0: Tensor, iterations: int) -> list[float]:
    """Largest difference to the loop at the start and behind each Newton step."""
    h, exact = h0, []
    for p in pre.unbind(1):
        h = channels.step(p, h)
        exact.append(h)
    truth = torch.stack(exact, 1)
    return [float((g - truth).abs().max()) for g in newton_guesses(channels.step, channels.jacobian, pre, h0, iterations)]


def rate(errors: list[float]) -> float:
    """Smallest factor by which the number of right digits grows, where there are some and more can be seen."""
    pairs = [(a, b) for a, b in zip(errors, errors[1:]) if a < 0.1 and b > 1e-14]
    return min(math.log(b) / math.log(a) for a, b in pairs)


def gradient_error(cell: str, steps: int, seed: int) -> float:
    """Largest relative difference between the gradients of Newton's solution and backpropagation through time."""
    torch.manual_seed(seed)
    layer = (ParaGRU if cell == "gru" else ParaLSTM)(DIM, solver="newton").double()
    x = torch.randn(2, steps, DIM, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]
    found = [
        torch.autograd.grad(net(x)[0].square().sum(), leaves)
        for net in (layer, Recurrence(layer.cell, solver="loop"))
    ]
    return max(float((g - w).abs().max() / w.abs().max()) for g, w in zip(*found))


def check(report: Check) -> None:
    """Everything about the solver in seconds, then parity."""
    steps = 256 if report.quick else STEPS
    paths: dict[str, list[list[float]]] = {}
    for cell in ("gru", "lstm"):
        runs = [errors(*problem(cell, steps, seed), 6) for seed in report.seeds]
        paths[f"{cell.upper()}, published initialisation"] = runs
        report.measure(
            f"{cell}: largest error after 3 iterations, published initialisation, T = {steps}",
            [run[3] for run in runs],
            Claim("three", "three iterations suffice", at_most=1e-6),
        )
        report.measure(
            f"{cell}: growth of the number of right digits an iteration, at least",
            [rate(run) for run in runs],
            Claim("quadratic", "Newton's method squares the error", at_least=1.6),
        )
        report.measure(
            f"{cell}: gradients against backpropagation through time, relative difference",
            [gradient_error(cell, 200 if report.quick else 1000, seed) for seed in report.seeds],
            Claim("gradients", "one transposed scan is the exact backward", at_most=1e-12),
        )
    _limits(report, paths)
    curves(
        {name: (range(len(runs[0])), [[max(run[k], FLOOR) for run in runs] for k in range(len(runs[0]))])
         for name, runs in paths.items()},
        report.figure("newton"),
        x_label="Newton iterations",
        y_label="largest error",
        title="Quadratic where the Jacobian contracts, lost where it does not",
        log="y",
    )  # fmt: skip
    _speed(report)
    _parity(report)


def _limits(report: Check, paths: dict[str, list[list[float]]]) -> None:
    """Large state-to-state weights: no convergence, so the loop must take over; and the guarantee of causality."""
    for scale in (1.0, 2.0):
        runs = [errors(*problem("gru", 512, seed, scale), 10) for seed in report.seeds]
        paths[f"GRU, weights N(0, {scale * scale:g})"] = runs
        report.measure(
            f"weights N(0, {scale * scale:g}), T = 512: error of the bare iteration after 10", [run[10] for run in runs]
        )
    found, fallbacks = [], []
    logging.getLogger("transduce.ops").setLevel(logging.ERROR)  # the fallback is what is being asked for
    for seed in report.seeds:
        channels, pre, h0 = problem("gru", 512, seed, 2.0)
        state = channels.part(h0)
        with torch.no_grad():
            y, _, solution = channels.solve(pre, state)
            want, _ = Recurrence(channels.cell, solver="loop")._loop(pre, state, mask=None, resets=None)
        fallbacks.append(float(solution.fallback is not None))
        found.append(float((y - want).abs().max()))
    logging.getLogger("transduce.ops").setLevel(logging.NOTSET)
    report.measure(
        "weights N(0, 4): share of the runs in which the loop took over",
        fallbacks,
        Claim("fallback", "a residual that does not fall is noticed", at_least=1.0),
    )
    report.measure(
        "weights N(0, 4): error of the solver with its fallback",
        found,
        Claim("exact", "the fallback's answer is the loop's", at_most=1e-12),
    )
    ends = [errors(*problem("gru", 64, seed, 1.0), 64)[-1] for seed in report.seeds]
    report.measure(
        "weights N(0, 1), T = 64: error after T iterations",
        ends,
        Claim("causal", "each iteration makes one more step exact", at_most=1e-9),
    )


def _speed(report: Check) -> None:
    """What the catalogue says to expect: no gain over a loop on a CPU. Reported, no claim."""
    torch.manual_seed(0)
    x, seconds = torch.randn(1, 256 if report.quick else 2048, DIM), {}
    for solver in ("loop", "newton"):
        layer = ParaGRU(DIM, solver=solver)
        layer(x)
        begun = time.process_time()
        layer(x)[0].sum().backward()
        seconds[solver] = time.process_time() - begun
    report.measure("T = 2048, one row, width 64: loop's time over Newton's, forward and backward", seconds["loop"] / seconds["newton"])


def _parity(report: Check) -> None:
    found = by_length(report, {"ParaGRU": ParaGRU, "MinGRU (diagonal, linear)": MinGRU})
    claims = {
        "ParaGRU": Claim("tracks", "a nonlinear diagonal state can flip", at_least=0.99),
        "MinGRU (diagonal, linear)": Claim("stays", "positive eigenvalues cannot alternate", at_most=0.6),
    }
    for name, runs in found.items():
        report.measure(f"parity at T = {LONG} after T = 32, {name}: accuracy", [r[-1] for r in runs], claims[name])
    curves(
        {name: (LENGTHS, list(zip(*runs))) for name, runs in found.items()},
        report.figure("parity"),
        x_label="length of the word",
        y_label="accuracy of the last label",
        title="Running parity, trained on words of 32",
        levels={"chance": 0.5},
        log="x",
    )
