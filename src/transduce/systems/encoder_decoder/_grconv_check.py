"""The full check of `grconv`: length and unknown-word curves, exact identities of the pyramid, its trees."""

from __future__ import annotations

from functools import partial
from math import comb
from typing import Iterator

import torch
from torch import Tensor

from transduce.core.protocols import Claim, Model
from transduce.core.seq import EOS, UNK, Batch, Seq
from transduce.core.tap import record
from transduce.models import EncoderDecoder, RecurrentDecoder, SequenceEncoder
from transduce.nn.attend import AdditiveAttend
from transduce.nn.combine import Bidirectional
from transduce.nn.embed import Embed, Head
from transduce.nn.pyramid import GatedPyramid, brackets, read_tree
from transduce.nn.recurrent import GRUCell, Recurrence
from transduce.objectives import Likelihood
from transduce.train.check import Check, train_steps
from transduce.train.plots import curves

WORDS, LONGEST, WIDTH, EMBED = 25, 20, 128, 64
SYMBOLS = 4 + WORDS
LENGTHS = (3, 5, 10, 15, 20, 30)
UNKNOWN = (1, 2, 3, 4, 5)


def cipher_batches(seed: int, batch: int = 64) -> Iterator[Batch]:
    """Substitution cipher and reversal, lengths uniform in 1..20. The cipher is the same for every seed."""
    generator = torch.Generator().manual_seed(1000 + seed)
    while True:
        lengths = torch.randint(1, LONGEST + 1, (batch,), generator=generator)
        yield _batch([torch.randint(4, SYMBOLS, (int(n),), generator=generator) for n in lengths])


def _encipher(words: Tensor) -> Tensor:
    table = torch.randperm(WORDS, generator=torch.Generator().manual_seed(7)) + 4
    return table[words - 4].flip(0)


def _batch(sources: list[Tensor]) -> Batch:
    return Batch(
        Seq.from_lists([s.tolist() for s in sources]),
        Seq.from_lists([[*_encipher(s).tolist(), EOS] for s in sources]),
    )


def build(kind: str) -> Model:
    """ "rnn" or "grconv": a fixed-length code. "attention": the same decoder reading all states of a
    two-way GRU."""
    from .grconv import code_encoder

    if kind == "attention":
        half = lambda: Recurrence(GRUCell(EMBED, WIDTH // 2))
        encoder = SequenceEncoder(Embed(SYMBOLS, EMBED), Bidirectional(half(), half()))
    else:
        encoder = code_encoder(kind, SYMBOLS, EMBED, WIDTH)
    decoder = RecurrentDecoder(
        Embed(SYMBOLS, EMBED),
        WIDTH,
        WIDTH,
        Head(WIDTH, SYMBOLS),
        embed_width=EMBED,
        attend=AdditiveAttend(WIDTH, WIDTH, WIDTH) if kind == "attention" else None,
    )
    return EncoderDecoder(encoder, decoder)


@torch.no_grad()
def accuracy(model: Model, length: int, unknown: int = 0, rows: int = 512) -> float:
    """Teacher-forced accuracy on the words of fresh sentences of one length; with ``unknown`` source words
    replaced by UNK, on the translations of the words that stayed known."""
    generator = torch.Generator().manual_seed(length)
    source = torch.randint(4, SYMBOLS, (rows, length), generator=generator)
    batch = _batch(list(source))
    hidden = torch.zeros(rows, length, dtype=torch.bool)
    if unknown:
        hidden.scatter_(1, torch.rand(rows, length, generator=generator).argsort(1)[:, :unknown], True)
        batch = Batch(Seq(source.masked_fill(hidden, UNK)), batch.target)
    dist, _ = model(batch.previous, model.start(batch, continues=False))
    right = (dist.mode() == batch.target.data)[:, :length]
    return float(right[~hidden.flip(1)].float().mean())


def pyramid_identities() -> dict[str, float]:
    """Largest difference between pyramids with set gates and their closed forms, in float64."""
    length, width = 9, 6
    x = torch.randn(2, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pyramid = GatedPyramid(width, width, phi=lambda t: t).double()
    base = x @ pyramid.enter.weight.mT
    with torch.no_grad():
        for side in (pyramid.left, pyramid.right):
            side.weight.zero_()
            side.weight[:width] = 0.5 * torch.eye(width)
        pyramid.left.bias.zero_()
        pyramid.left.bias[width] = 1e4  # merge always
        weights = torch.tensor(
            [comb(length - 1, j) / 2 ** (length - 1) for j in range(length)], dtype=torch.float64
        )
        merged = (pyramid(Seq(x)) - torch.einsum("j,bjd->bd", weights, base)).abs().max()
        pyramid.left.bias[width:] = torch.tensor([0.0, 1e4, 0.0])  # left child always
        left = (pyramid(Seq(x)) - base[:, 0]).abs().max()
    return {"merge": float(merged), "left": float(left)}


def expressions(seed: int, batch: int = 64) -> Iterator[tuple[Batch, list[set[tuple[int, int]]]]]:
    """Bracketed binary expressions -> postfix notation, with the spans of their brackets. 8 names, 2
    operators."""
    generator = torch.Generator().manual_seed(seed)
    draw = partial(torch.randint, size=(), generator=generator)

    def grow(depth: int, start: int) -> tuple[list[int], list[int], set[tuple[int, int]]]:
        if depth == 0 or int(draw(0, 3)) == 0:
            name = 4 + int(draw(0, 8))
            return [name], [name], set()
        a, a_post, a_spans = grow(depth - 1, start + 1)
        b, b_post, b_spans = grow(depth - 1, start + 2 + len(a))
        operator = 12 + int(draw(0, 2))
        infix = [14, *a, operator, *b, 15]
        return infix, [*a_post, *b_post, operator], a_spans | b_spans | {(start, start + len(infix) - 1)}

    while True:
        rows = [grow(2, 0) for _ in range(batch)]
        yield (
            Batch(Seq.from_lists([r[0] for r in rows]), Seq.from_lists([[*r[1], EOS] for r in rows])),
            [r[2] for r in rows],
        )


def bracket_f1(steps: int, say) -> tuple[float, float]:
    """Unlabelled bracket F1 of a trained pyramid's trees, and of right-branching trees, on fresh
    expressions."""
    torch.manual_seed(0)
    model = build("grconv")
    train_steps(
        model,
        Likelihood(),
        (b for b, _ in expressions(1)),
        steps,
        learning_rate=3e-3,
        say=say,
        label="expressions",
    )
    batch, gold = next(expressions(2, 256))
    with torch.no_grad(), record(model, "*.gates") as seen:
        model.start(batch, continues=False)
    (gates,) = seen.values()
    found, branching = [0, 0], [0, 0]
    total = 0
    for row, (length, spans) in enumerate(zip(batch.source.lengths.tolist(), gold)):
        if length < 3:
            continue
        total += len(spans)
        for tally, guess in (
            (found, brackets(read_tree(gates, row, length))),
            (branching, {(j, length - 1) for j in range(length - 1)}),
        ):
            tally[0] += len(guess & spans)
            tally[1] += len(guess)
    return tuple(2 * hit / (made + total) for hit, made in (found, branching))


KINDS = {"rnn": "fixed code, GRU", "grconv": "fixed code, pyramid", "attention": "attention"}


def check(report: Check) -> None:
    """Train both fixed-length models and the attention model under one budget and measure the paper's
    claims."""
    for name, difference in pyramid_identities().items():
        report.measure(
            f"pyramid identity, gates set to {name}: largest difference",
            difference,
            Claim(f"identity_{name}", "closed form of the recursion, float64", at_most=1e-12),
        )
    curve: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    lost: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
    for kind in KINDS:
        for seed in report.seeds:
            model = _trained(kind, seed, report)
            curve[kind].append([accuracy(model, n) for n in LENGTHS])
            lost[kind].append([accuracy(model, 10) - accuracy(model, 10, k) for k in UNKNOWN])
    _claims(report, curve, lost)
    trees, branching = bracket_f1(4 if report.quick else 600, report.say)
    report.measure("bracket F1 of the pyramid's trees on expressions", trees, baseline=branching)
    _draw(report, curve, lost)


def _trained(kind: str, seed: int, report: Check) -> Model:
    """1,500 batches of 64 with Adam, the same for every model."""
    torch.manual_seed(seed)
    model = build(kind)
    steps = 4 if report.quick else 1500
    label = f"{KINDS[kind]}, seed {seed},"
    train_steps(model, Likelihood(), cipher_batches(seed), steps, learning_rate=1e-3, say=report.say, label=label)
    return model


def _claims(report: Check, curve: dict[str, list[list[float]]], lost: dict[str, list[list[float]]]) -> None:
    at = {n: i for i, n in enumerate(LENGTHS)}
    for kind, label in KINDS.items():
        report.notes[f"accuracy by length, {label}"] = {
            n: [round(row[i], 4) for row in curve[kind]] for n, i in at.items()
        }
        report.notes[f"accuracy lost to 1..5 unknown words of 10, {label}"] = [
            [round(v, 4) for v in row] for row in lost[kind]
        ]
    for kind in ("rnn", "grconv"):
        report.measure(
            f"{KINDS[kind]}: accuracy at length 20 over accuracy at length 5",
            [row[at[20]] / row[at[5]] for row in curve[kind]],
            Claim("fixed_ratio", "one vector does not hold a long sentence", at_most=0.65),
        )
    report.measure(
        "attention: accuracy at length 20",
        [row[at[20]] for row in curve["attention"]],
        Claim("attention_long", "attention does not degrade with length", at_least=0.95),
        baseline=sum(row[at[20]] for row in curve["rnn"]) / len(curve["rnn"]),
    )
    report.measure(
        "fixed code, GRU, length 10: cost on the known words of 3 unknown ones over that of one",
        [row[2] / max(row[0], 1e-6) for row in lost["rnn"]],
        Claim("unknown_ratio", "unknown words add up and hurt the known ones", at_least=2.0),
    )


def _draw(report: Check, curve: dict[str, list[list[float]]], lost: dict[str, list[list[float]]]) -> None:
    lines = lambda found, x: {
        KINDS[kind]: (list(x), [list(column) for column in zip(*rows)]) for kind, rows in found.items()
    }
    curves(
        lines(curve, LENGTHS),
        report.figure("length"),
        x_label="sentence length",
        y_label="accuracy of the target words",
        title="A fixed code forgets long sentences (trained on 1 to 20)",
    )
    curves(
        lines(lost, UNKNOWN),
        report.figure("unknown"),
        x_label="unknown words among 10",
        y_label="accuracy lost on the known words",
        title="Unknown words hurt the translation of the known ones",
    )
