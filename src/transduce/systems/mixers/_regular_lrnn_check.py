"""The full check of `regular-lrnn`: languages built by hand at 10,000 symbols, and trained at 40 and tested at 500."""

from __future__ import annotations

from functools import partial
from typing import Callable

import torch
from torch import nn

from transduce.core.protocols import Claim, Mixer
from transduce.data.synthetic.formal import Language, even_pair, modular_sum
from transduce.models import Labeller
from transduce.nn import BlockLRNN, LayerNorm, MinGRU, PNormBlocks, Pointwise, Serial, StochasticBlocks
from transduce.nn.embed import Embed
from transduce.nn.ssm import LRU
from transduce.ops.block_scan import block_scan
from transduce.ops.scan import linear_scan
from transduce.train.check import Check
from transduce.train.plots import curves
from transduce.train.streams import accuracy_by_length, train_stream

DIM, SIZE, BATCH, RATE = 32, 8, 64, 3e-3
UPDATES = {"sum": 500, "even pair": 500}
TRAINED, TESTED = 40, (40, 120, 250, 500)
LANGUAGES: dict[str, Callable[[], Language]] = {"sum": modular_sum, "even pair": even_pair}
LAYERS: dict[str, Callable[[], Mixer]] = {
    "stochastic blocks": partial(BlockLRNN, DIM, size=SIZE, blocks=StochasticBlocks),
    "p-norm blocks": partial(BlockLRNN, DIM, size=SIZE, blocks=PNormBlocks),
    "gated diagonal (minGRU)": partial(MinGRU, DIM),
    "complex diagonal (LRU)": partial(LRU, DIM),
}


def network(kind: str, language: Language, seed: int) -> Labeller:
    """Embedding, norm, one layer without a residual, norm, MLP, as published for these two languages.

    Stochastic blocks have no norms around them: a distribution needs none, and a norm behind would stretch what a leaky
    automaton has left after 40 symbols, so that nothing makes it tight (with norms, seed 0 had 1.00 at 40 and 0.04 at
    500 on the sum; without, 1.00 at both).
    """
    torch.manual_seed(seed)
    norm = nn.Identity if kind == "stochastic blocks" else partial(LayerNorm, DIM)
    behind = nn.Sequential(norm(), nn.Linear(DIM, DIM), nn.ReLU())
    return Labeller(
        Embed(language.num_inputs, DIM),
        Serial(Pointwise(norm()), LAYERS[kind](), Pointwise(behind)),
        DIM,
        language.num_labels,
    )


def built_by_hand(steps: int) -> dict[str, float]:
    """Share of right labels over words of ``steps`` symbols when the blocks are set, not learned."""
    generator, found = torch.Generator().manual_seed(0), {}
    inputs, labels = modular_sum(5).task(steps)(8, generator)
    turns = torch.stack([torch.eye(5).roll(n, 0) for n in range(5)])
    h = block_scan(turns[inputs][:, :, None], None, torch.eye(5)[None, :1].expand(8, 1, 5))
    found["sum"] = float((h[:, :, 0].argmax(-1) == labels).float().mean())
    inputs, labels = even_pair(5).task(steps)(8, generator)
    keeps = torch.eye(6).repeat(5, 1, 1)  # state 5: nothing read yet; symbol n leads from there to state n
    keeps[:, 5, 5], keeps[range(5), range(5), 5] = 0, 1
    h = block_scan(keeps[inputs][:, :, None], None, torch.eye(6)[None, 5:].expand(8, 1, 6))
    found["even pair"] = float(((h[:, :, 0].argmax(-1) == inputs).long() == labels).float().mean())
    return found


def best_readout_of_a_diagonal(steps: int, rows: int, width: int = 64) -> float:
    """Accuracy on the sum of a linear read-out, fitted by least squares, of random diagonal transitions in (0, 1)."""
    generator = torch.Generator().manual_seed(0)
    decay = torch.rand(5, width, generator=generator) ** 0.1  # up to 0.99 and more: slow ones are the better case
    push = torch.randn(5, width, generator=generator)
    inputs, labels = modular_sum(5).task(steps)(2 * rows, generator)
    states = torch.cat([linear_scan(decay[part], push[part])[:, -1] for part in inputs.split(250)])
    states = torch.cat((states, torch.ones(2 * rows, 1)), 1).double()
    wanted = nn.functional.one_hot(labels[:, -1], 5).double()
    weights = torch.linalg.lstsq(states[:rows], wanted[:rows]).solution
    return float(((states[rows:] @ weights).argmax(1) == labels[rows:, -1]).double().mean())


def radius_of_a_centred_permutation(size: int = 8, p: float = 1.2) -> float:
    """What the published normalisation makes of the eigenvalues of a permutation, all of modulus 1."""
    c = torch.eye(size, dtype=torch.float64).roll(1, 0)
    c = c - c.mean(0)
    a = c / torch.linalg.vector_norm(c, p, dim=0).max()
    return float(torch.linalg.eigvals(a).abs().max())


def scan_error(steps: int = 333) -> float:
    """Largest difference of the log-depth scan from the loop over the largest value, in float32."""
    generator = torch.Generator().manual_seed(0)
    a = PNormBlocks(DIM, 4, SIZE)(torch.randn(4, steps, DIM, generator=generator)).detach()
    v = torch.randn(4, steps, 4, SIZE, generator=generator)
    loop, tree = (block_scan.run(name, a, v) for name in ("reference", "parallel"))
    return float((loop - tree).abs().max() / loop.abs().max())


def train_all(report: Check) -> dict[str, dict[str, list[dict[int, float]]]]:
    """language -> layer -> accuracy by length of every seed; the last update counts, nothing is selected."""
    found: dict[str, dict[str, list[dict[int, float]]]] = {}
    for name, make in LANGUAGES.items():
        language, found[name] = make(), {}
        for kind in LAYERS:
            runs = found[name][kind] = []
            for seed in report.seeds:
                net, updates = network(kind, language, seed), 2 if report.quick else UPDATES[name]
                label = f"{name}, {kind}, seed {seed},"
                train_stream(
                    net, language.task(TRAINED), updates,
                    batch=BATCH, learning_rate=RATE, seed=seed, say=report.say, label=label,
                )  # fmt: skip
                words = {"batches": 1, "batch": 2} if report.quick else {"batches": 4, "batch": 64}
                runs.append(accuracy_by_length(net, language.task, TESTED, seed=seed, **words))
    return found


def check(report: Check) -> None:
    """Exact parts first; then every layer on both languages with the same updates, batches and rate."""
    exact = Claim("exact", "permutations neither fade nor mix", at_least=1.0)
    for name, right in built_by_hand(200 if report.quick else 10_000).items():
        report.measure(f"{name}: blocks set by hand, share of right labels up to 10,000 symbols", right, exact)
    report.measure(
        "sum: best linear read-out of diagonal transitions in (0, 1), 500 symbols",
        best_readout_of_a_diagonal(40 if report.quick else 500, 250 if report.quick else 4000),
        Claim("diagonal", "diagonal transitions commute and fade", at_most=0.3),
        baseline=0.2,
    )
    report.measure("p-norm: spectral radius that is left of a permutation of 8", radius_of_a_centred_permutation())
    report.measure(
        "log-depth scan against the loop, float32", scan_error(), Claim("scan", "one function", at_most=1e-5)
    )
    _report_trained(report, train_all(report))


def _report_trained(report: Check, found: dict[str, dict[str, list[dict[int, float]]]]) -> None:
    far = Claim("far", "a finite automaton does not mind how long the word is", at_least=0.99)
    lost = Claim("lost", "a diagonal layer loses count", at_most=0.3)
    last = lambda runs, n: [run[n] for run in runs]
    for name, kinds in found.items():
        chance = LANGUAGES[name]().chance
        for kind, runs in kinds.items():
            claim = far if kind == "stochastic blocks" else lost if name == "sum" and "diagonal" in kind else None
            report.measure(f"{name}: {kind}, accuracy at {TESTED[-1]}", last(runs, TESTED[-1]), claim, baseline=chance)
            report.measure(f"{name}: {kind}, accuracy at {TRAINED}", last(runs, TRAINED), baseline=chance)
    report.notes["updates"] = UPDATES
    report.notes["even pair"] = "two labels, so chance is 0.5: the bound of 0.3 on diagonal layers is for the sum"
    for name, kinds in found.items():
        curves(
            {kind: (TESTED, [last(runs, n) for n in TESTED]) for kind, runs in kinds.items()},
            report.figure(name.replace(" ", "-")),
            x_label="symbols in the word (trained on 40)",
            y_label="accuracy at the last symbol",
            title={"sum": "Running sum mod 5", "even pair": "The first symbol again?"}[name],
            levels={"chance": LANGUAGES[name]().chance},
        )
