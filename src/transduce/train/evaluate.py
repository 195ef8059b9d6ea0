"""Held-out measurement: loss under teacher forcing, and error rates with BLEU and the like, or bits per character."""

from __future__ import annotations

import math
import time
import unicodedata
from dataclasses import dataclass, field
from typing import Callable, Sequence

import torch

from transduce.core.errors import DataError
from transduce.core.protocols import Hypothesis, Model, Searcher
from transduce.data.batching import Encoded, batches
from transduce.data.fields import DataSpec
from transduce.data.metrics import ErrorRates, bits_per_character, error_rates, measures
from transduce.search.align import score


class Interrupted(Exception):
    """The caller asked to stop in the middle of an evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """Figures of one pass. ``loss``: nats per target symbol, EOS included.

    For pairs ``sequence_error``, ``symbol_error``, ``rates`` (counts a row) and ``hypotheses`` (n-best lists
    a row, in the order of the data); ``scores`` of whole texts by metric where some were asked for, and in ``note``
    why there are none all the same. For texts ``bits_per_character``: all bits of all targets, each EOS
    included, divided by the number of symbols without EOS; so the cost of ending each window counts against
    the model.
    """

    loss: float
    rows: int
    seconds: float
    sequence_error: float | None = None
    symbol_error: float | None = None
    bits_per_character: float | None = None
    rates: ErrorRates | None = None
    hypotheses: list[list[Hypothesis]] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    note: str = ""

    def numbers(self) -> dict[str, float | int]:
        """The finite figures, for logs, bundles and cards."""
        named = {
            "loss": self.loss,
            "sequence_error": self.sequence_error,
            "symbol_error": self.symbol_error,
            "bits_per_character": self.bits_per_character,
            **self.scores,
        }
        return {**{k: v for k, v in named.items() if v is not None and math.isfinite(v)}, "rows": self.rows}


@torch.no_grad()
def evaluate(
    model: Model,
    searcher: Searcher | None,
    encoded: Encoded,
    spec: DataSpec,
    *,
    batch_symbols: int = 16384,
    batch_cells: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    metrics: Sequence[str] = (),
) -> Evaluation:
    """Measure ``model`` on ``encoded`` in batches of similar length, limited as in ``TrainConfig``.

    ``searcher`` decodes each source; None (language models) reports bits per character instead of error
    rates. ``stop`` is asked between batches; when it says True, :class:`Interrupted` is raised. ``metrics``: names of
    :data:`transduce.data.metrics.METRICS` to judge the best answers by. The model's training mode is restored.
    """
    started = time.perf_counter()
    rows = len(encoded.targets)
    if rows == 0:
        raise ValueError("nothing to evaluate: the data set is empty")
    was_training, place = model.training, next(model.parameters()).device
    model.eval()
    nats, count = 0.0, 0
    found: list[list[Hypothesis]] = [[] for _ in range(rows)]
    try:
        for batch in batches(encoded, batch_symbols, batch_cells):
            if stop():
                raise Interrupted
            batch = batch.to(place)
            nats -= float(score(model, batch).double().sum())
            count += int(batch.target.valid().sum())
            if searcher is not None:
                for row, hypotheses in zip(batch.rows, searcher(model, batch)):
                    found[row] = hypotheses
    finally:
        model.train(was_training)
    loss = nats / count
    if searcher is None:
        bits = bits_per_character(nats, max(1, count - rows))
        return Evaluation(loss, rows, time.perf_counter() - started, bits_per_character=bits)
    rates = measure(found, encoded, spec)
    scores, note = _scores(metrics, found, encoded, spec)
    return Evaluation(
        loss, rows, time.perf_counter() - started, rates.sequence, rates.symbol,
        rates=rates, hypotheses=found, scores=scores, note=note,
    )  # fmt: skip


def _scores(
    metrics: Sequence[str], found: Sequence[Sequence[Hypothesis]], encoded: Encoded, spec: DataSpec
) -> tuple[dict[str, float], str]:
    """The metrics of the best answers; none, and why, where the package that computes them is missing: what was
    measured until then must not be lost."""
    texts = [spec.target.decode(row[0].ids) if row else "" for row in found]
    references = [[unicodedata.normalize("NFC", r) for r in e.references] for e in encoded.examples]
    try:
        return measures(metrics, texts, references), ""
    except DataError as problem:
        return {}, str(problem)


def measure(found: Sequence[Sequence[Hypothesis]], encoded: Encoded, spec: DataSpec) -> ErrorRates:
    """Error rates of each row's best hypothesis against all its references, in :func:`symbols` of the
    target."""
    field = spec.target
    if field.units in ("chars", "words", "positions"):  # an unknown symbol is one symbol, however it is spelt
        predictions = [field.pieces(row[0].ids) if row else [] for row in found]
    else:
        predictions = [symbols(field.decode(row[0].ids), field.units) if row else [] for row in found]
    references = [[symbols(text, field.units) for text in example.references] for example in encoded.examples]
    return error_rates(predictions, references)


def symbols(text: str, units: str) -> list[str]:
    """What errors are counted in: words where the target is split into words or BPE, positions, characters (NFC)
    otherwise."""
    text = unicodedata.normalize("NFC", text)
    return text.split() if units in ("words", "bpe", "positions") else list(text)
