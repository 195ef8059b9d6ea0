"""What checks on a pronouncing dictionary share: the words, recurrent rivals, training, error rates."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Iterator

import torch
from torch import nn

from transduce.core.protocols import Model
from transduce.core.seq import Batch
from transduce.data import DataSpec, Encoded, Loader, Prepared, load_corpus, prepare, synthetic
from transduce.models import EncoderDecoder, LastStep, RecurrentDecoder, SequenceEncoder, VectorEncoder
from transduce.nn.attend import AdditiveAttend
from transduce.nn.combine import Bidirectional
from transduce.nn.embed import Embed, Head
from transduce.nn.recurrent import GRUCell, Recurrence
from transduce.objectives import Likelihood
from transduce.search import Greedy, ratio
from transduce.train.check import Check, train_steps
from transduce.train.evaluate import Evaluation, evaluate


def words(
    report: Check, *, train: int | None = None, held_out: int = 1000, longest: int = 99, spelled: bool = False
) -> Prepared:
    """The CMU dictionary's words of at most ``longest`` letters, every n-th of them: ``train`` words (None:
    all) and ``held_out`` for validation and for the test. ``spelled``: phonemes letter by letter with spaces
    between them, "K AE T", instead of one symbol each. A smoke run gets made-up words and fetches nothing."""
    if report.quick:
        corpus = synthetic.make("synthetic-reverse", train=60, held_out=12, longest=6)
    else:
        corpus = load_corpus("cmudict")
    sizes = {"train": train, "valid": held_out, "test": held_out}
    parts = {part: _thinned(getattr(corpus, part), longest, n) for part, n in sizes.items()}
    return prepare(replace(corpus, **parts, target_units="chars" if spelled else corpus.target_units))


def _thinned(examples, longest: int, wanted: int | None) -> list:
    short = [e for e in examples if len(e.source) <= longest]
    if wanted is None or len(short) <= wanted:
        return short
    return [short[i * len(short) // wanted] for i in range(wanted)]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def gru_rival(spec: DataSpec, least: int, *, attention: bool, dropout: float = 0.1) -> Model:
    """A GRU encoder-decoder of at least ``least`` parameters, no wider than that takes: with additive
    attention over a two-way encoder, or with the encoder's last state as its whole view of the source."""
    for width in range(32, 4096, 8):
        torch.manual_seed(0)
        model = _gru(spec, width, width // 2, attention, dropout)
        if parameters(model) >= least:
            return model
    raise ValueError(f"no GRU of fewer than 4096 units has {least} parameters")


def _gru(spec: DataSpec, width: int, embed: int, attention: bool, dropout: float) -> Model:
    source = Embed(spec.source.size, embed)
    if attention:
        half = lambda: Recurrence(GRUCell(embed, width // 2))
        encoder = SequenceEncoder(source, Bidirectional(half(), half()))
    else:
        encoder = VectorEncoder(SequenceEncoder(source, Recurrence(GRUCell(embed, width))), LastStep())
    decoder = RecurrentDecoder(
        Embed(spec.target.size, embed),
        width,
        width,
        Head(width, spec.target.size),
        embed_width=embed,
        attend=AdditiveAttend(width, width, width) if attention else None,
        dropout=dropout,
    )
    return EncoderDecoder(encoder, decoder)


def stream(part: Encoded, batch_symbols: int, seed: int) -> Iterator[Batch]:
    return iter(Loader(part, batch_symbols=batch_symbols, seed=seed))


def fit(
    model: Model,
    data: Prepared,
    report: Check,
    *,
    passes: float,
    batch_symbols: int,
    learning_rate: float,
    seed: int,
    label: str,
) -> tuple[list[float], float]:
    """``passes`` over the training part (4 steps in a smoke run). Returns the losses and the seconds it
    took."""
    per_pass = Loader(data.train, batch_symbols=batch_symbols, seed=seed).batches_per_epoch
    steps = 4 if report.quick else max(1, round(passes * per_pass))
    started = time.perf_counter()
    torch.manual_seed(seed)
    losses = train_steps(
        model,
        Likelihood(0.1),
        stream(data.train, batch_symbols, seed),
        steps,
        learning_rate=learning_rate,
        say=report.say,
        label=label,
    )
    return losses, time.perf_counter() - started


def measure_words(model: Model, part: Encoded, spec: DataSpec, stretch: float = 2.0) -> Evaluation:
    """Greedy decoding, at most ``stretch`` times as long as the word and 10 symbols, against all
    pronunciations."""
    return evaluate(model, Greedy(ratio(stretch, 10)), part, spec, batch_symbols=8192)


def smoothed(losses: list[float], points: int = 40) -> tuple[list[float], list[float]]:
    """Means of equal stretches: shares of the training, and losses."""
    size = max(1, len(losses) // points)
    pieces = [losses[i : i + size] for i in range(0, len(losses), size)]
    return [(i + 1) / len(pieces) for i in range(len(pieces))], [sum(p) / len(p) for p in pieces]
