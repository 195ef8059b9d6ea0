"""The full check of `multi-source-transformer`: words to interleave, package descriptions, exact
identities."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Sequence

import torch
from torch import Tensor

from transduce.analysis import with_swapped_part
from transduce.core.errors import UserError
from transduce.core.protocols import Claim, System
from transduce.core.seq import Seq
from transduce.data import Corpus, Loader, Prepared, prepare
from transduce.data.batching import Encoded, encode
from transduce.data.fields import SEPARATOR
from transduce.data.synthetic import interleave
from transduce.nn.attend import MultiHeadAttend
from transduce.nn.multi_attend import STRATEGIES, HierarchicalAttend, MultiAttend
from transduce.nn.norm import LayerNorm
from transduce.train.check import Check, train_steps
from transduce.train.evaluate import evaluate
from transduce.train.plots import curves

WIDTH = 16
SINGLES = {"first word only": 0, "second word only": 1}


# ---------------------------------------------------------------- exact parts


@torch.no_grad()
def identities() -> dict[str, float]:
    """Largest differences in float64 of what must be equal, by what is compared."""
    torch.manual_seed(0)
    x, a, b = (torch.randn(3, n, WIDTH, dtype=torch.float64) for n in (4, 5, 7))
    b_mask = torch.rand(3, 7) < 0.7
    first, second = Seq(a), Seq(b, b_mask)
    missing = Seq(b, b_mask & torch.tensor([False, True, False])[:, None])
    found: dict[str, float] = {}
    for name, kind in STRATEGIES.items():
        one, two = _make(kind, 1), _make(kind, 2)
        one.load_state_dict(
            {key: value for key, value in two.state_dict().items() if key in one.state_dict()}
        )
        if isinstance(one, HierarchicalAttend):
            _to_identity(one)
        attend, norm = (one.attends[0] if hasattr(one, "attends") else one.joint), _first_norm(one)
        plain = x + attend(norm(x), attend.start(first))[0]
        found[f"{name}, one source, against the plain layer"] = _gap(_run(one, x, [first]), plain)
        if isinstance(two, HierarchicalAttend):
            one.choose.load_state_dict(two.choose.state_dict())
        alone, partly = _run(one, x, [first]), _run(two, x, [first, missing])
        found[f"{name}, second source missing, against the first alone"] = _gap(partly[[0, 2]], alone[[0, 2]])
    parallel, flat = _make(STRATEGIES["parallel"], 2), _make(STRATEGIES["flat"], 2)
    turned = _make(STRATEGIES["parallel"], 2)
    swap = {"attends.0": "attends.1", "attends.1": "attends.0"}
    turned.load_state_dict({swap.get(k[:9], k[:9]) + k[9:]: v for k, v in parallel.state_dict().items()})
    found["parallel, sources in the other order"] = _gap(
        _run(parallel, x, [first, second]), _run(turned, x, [second, first])
    )
    found["flat, memories in the other order"] = _gap(
        _run(flat, x, [first, second]), _run(flat, x, [second, first])
    )
    return found


def _make(kind: type[MultiAttend], sources: int) -> MultiAttend:
    made = kind(sources, partial(MultiHeadAttend, WIDTH, heads=2), partial(LayerNorm, WIDTH)).double().eval()
    for p in made.parameters():
        p.add_(0.1 * torch.randn_like(p))  # a bias of zero would hide what a missing source adds
    return made


def _to_identity(layer: HierarchicalAttend) -> None:
    """The second attention passes its one candidate on."""
    for linear, rows in ((layer.choose.key_value, slice(WIDTH, None)), (layer.choose.output, slice(None))):
        linear.weight[rows] = torch.eye(WIDTH, dtype=torch.float64)
        linear.bias[rows] = 0.0


def _first_norm(layer: MultiAttend) -> LayerNorm:
    return layer.norms[0] if hasattr(layer, "norms") else layer.norm


def _run(layer: MultiAttend, x: Tensor, memories: Sequence[Seq]) -> Tensor:
    return layer(x, layer.start(memories))[0]


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# ---------------------------------------------------------------- words to interleave


def data(train: int, held_out: int, part: int | None = None) -> Prepared:
    """The corpus of :func:`~transduce.data.synthetic.interleave`, or with one part of every source only."""
    corpus = interleave(train=train, held_out=held_out)
    if part is not None:
        corpus = _only(corpus, part)
    return prepare(corpus)


def _only(corpus: Corpus, part: int) -> Corpus:
    cut = lambda rows: [e._replace(source=e.source.split(SEPARATOR)[part].strip()) for e in rows]
    return replace(corpus, train=cut(corpus.train), valid=cut(corpus.valid), test=cut(corpus.test))


def build(spec, cross: str) -> System:
    """The page's own system, small: one encoder layer, two decoder layers, width 64."""
    from .multi_source_transformer import Config, multi_source_transformer

    size = {"dim": 64, "heads": 4, "encoder_layers": 1, "decoder_layers": 2, "feedforward": 128}
    size["position"] = "sinusoidal"  # who interleaves must count
    return multi_source_transformer(spec, Config(cross=cross, dropout=0.0, label_smoothing=0.0, **size))


def exact_match(system: System, prepared: Prepared, swap: bool = False) -> float:
    """Share of the test rows that greedy search gets right; with ``swap`` their second word is another row's."""
    test = _with_wrong_part(prepared) if swap else prepared.test
    return 1.0 - evaluate(system.model, system.search, test, prepared.spec).sequence_error


def _with_wrong_part(prepared: Prepared, rows: int | None = None) -> Encoded:
    """The first ``rows`` of the test part, each with the second part of its source from the next row."""
    rights = prepared.test.examples[:rows]
    sources = with_swapped_part([e.source for e in rights], 1)
    wrong = [e._replace(source=s) for s, e in zip(sources, rights)]
    return encode(wrong, prepared.spec.source, prepared.spec.target)


# ---------------------------------------------------------------- package descriptions


def translations(corpus: Corpus, part: int | None = None, vocabulary: int = 4000) -> Prepared:
    """A translation corpus of several source languages as it is, or with one of them only, in subwords."""
    return prepare(corpus if part is None else _only(corpus, part), vocabulary=vocabulary)


def chrf(system: System, prepared: Prepared, rows: int, swap: bool = False) -> float:
    """chrF of greedy translations of the first test rows; with ``swap`` the second source is another row's.

    Not a number where there is no second source to swap.
    """
    if swap and not all(SEPARATOR in e.source for e in prepared.test.examples[:rows]):
        return float("nan")
    test = (
        _with_wrong_part(prepared, rows)
        if swap
        else prepared.test.select(range(min(rows, len(prepared.test))))
    )
    found = evaluate(system.model, system.search, test, prepared.spec, metrics=("chrf",))
    if not found.scores:
        raise UserError(found.note)
    return found.scores["chrf"]


# ---------------------------------------------------------------- the claims


def check(report: Check) -> None:
    """Train the four strategies and the single sources under one budget; measure exact match, also with a
    wrong second source."""
    for name, difference in identities().items():
        report.measure(
            f"{name}: largest difference", difference, Claim("exact", "an identity, float64", at_most=1e-12)
        )
    sizes = (200, 20) if report.quick else (20000, 500)
    together = data(*sizes)
    losses: dict[str, list[list[float]]] = {}
    single: dict[str, list[float]] = {}
    for name, part in SINGLES.items():
        alone = data(*sizes, part)
        single[name] = [
            exact_match(_trained(alone, "parallel", name, seed, report, losses), alone)
            for seed in report.seeds
        ]
        report.measure(
            f"{name}: exact match",
            single[name],
            Claim("single_source", "one word does not say the other", at_most=0.5),
        )
    best = max(sum(v) / len(v) for v in single.values())
    for cross in STRATEGIES:
        systems = [_trained(together, cross, cross, seed, report, losses) for seed in report.seeds]
        report.measure(
            f"{cross}: exact match",
            [exact_match(s, together) for s in systems],
            Claim("uses_both", "every way to combine can read both words and the rule", at_least=0.98),
            baseline=best,
        )
        report.measure(
            f"{cross}: exact match with a wrong second word",
            [exact_match(s, together, swap=True) for s in systems],
        )
    _draw(report, losses)


def _trained(
    prepared: Prepared, cross: str, label: str, seed: int, report: Check, losses: dict[str, list[list[float]]]
) -> System:
    """``STEPS`` batches of about 64 pairs with Adam, the same for every model."""
    torch.manual_seed(seed)
    system = build(prepared.spec, cross)
    found = train_steps(
        system.model,
        system.objective,
        iter(Loader(prepared.train, batch_symbols=64 * 26, seed=seed)),
        4 if report.quick else STEPS,
        learning_rate=3e-3,
        say=report.say,
        label=f"{label}, seed {seed},",
    )
    losses.setdefault(label, []).append(found)
    return system


STEPS = 1000


def _draw(report: Check, losses: dict[str, list[list[float]]]) -> None:
    width = max(1, len(next(iter(losses.values()))[0]) // 20)
    lines = {}
    for label, runs in losses.items():
        means = [
            [sum(run[i : i + width]) / width for run in runs]
            for i in range(0, len(runs[0]) - width + 1, width)
        ]
        lines[label] = ([width * (i + 1) for i in range(len(means))], means)
    curves(
        lines,
        report.figure("training"),
        x_label="training step",
        y_label="nats per letter",
        title="Two words to interleave: one source is not enough",
    )
