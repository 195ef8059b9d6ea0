"""From examples to batches: encoded once, grouped by length, in an order that is a pure function of (seed,
epoch)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Iterable, Iterator, Literal, Sequence

import numpy as np

from transduce.core.errors import DataError
from transduce.core.seq import EOS, UNK, Batch

from .examples import Example
from .fields import DataSpec, TextField, learn_field
from .packing import Lines, pack
from .points import PointField, PositionField
from .ragged import Ragged


@dataclass(frozen=True)
class Corpus:
    """Text before it is split into symbols.

    ``kind``: "pairs" or "text". ``sequence_name`` and ``symbol_name`` are what errors are called ("word
    error", "phoneme error"). ``windowed``: the texts are windows cut out of a longer one, so where they end
    means nothing. ``notes``: what the user should know about these data, a sentence each. ``metrics``: what else
    answers are judged by, names of :data:`transduce.data.metrics.METRICS`. ``vocabulary``: symbols that a side learns
    at most, unless asked for otherwise; ``shared``: both sides have one vocabulary, learnt on the texts of both.
    """

    name: str
    kind: Literal["pairs", "text"]
    train: Sequence[Example]
    valid: Sequence[Example]
    test: Sequence[Example]
    source_units: str
    target_units: str
    sequence_name: str = "sequence error"
    symbol_name: str = "symbol error"
    licence: str = ""
    origin: str = ""
    windowed: bool = False
    notes: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    vocabulary: int = 8000
    shared: bool = False


@dataclass(frozen=True)
class Encoded:
    """One part of a data set as ids, or vectors where a source is made of points. Targets end with EOS;
    ``sources`` is None for texts."""

    sources: Sequence[Sequence[Any]] | None
    targets: Sequence[Sequence[int]]
    examples: Sequence[Example]

    @cached_property
    def _source(self) -> Ragged | None:
        return None if self.sources is None else _ragged(self.sources)

    @cached_property
    def _target(self) -> Ragged:
        return _ragged(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Source and target lengths of all rows; source lengths are 0 for texts."""
        target = self._target.lengths
        return (np.zeros_like(target) if self._source is None else self._source.lengths), target

    def batch(self, rows: np.ndarray) -> Batch:
        source = None if self._source is None else self._source.take(rows)
        return Batch(source, self._target.take(rows), tuple(rows.tolist()))

    def packed(self, lines: Lines) -> Batch:
        """Texts one behind the other, see :mod:`transduce.data.packing`."""
        target, resets = self._target.joined(lines.rows, lines.firsts)
        return Batch(None, target, tuple(lines.rows.tolist()), resets)

    def select(self, rows: Iterable[int]) -> Encoded:
        """The part that holds these rows, in this order."""
        rows = list(rows)
        return Encoded(
            None if self._source is None else self._source.select(rows),
            self._target.select(rows),
            [self.examples[i] for i in rows],
        )


def _ragged(rows: Sequence[Sequence[int]]) -> Ragged:
    return rows if isinstance(rows, Ragged) else Ragged.of(rows)


class Answers(Sequence):
    """Examples, and behind them one more for each further right answer that one of them has."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples
        found = [(i, e.references.index(r)) for i, e in enumerate(examples) for r in _further(e)]
        self.further = np.array(found, dtype=np.int32).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.examples) + len(self.further)

    def __getitem__(self, at):
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        at = at + len(self) if at < 0 else at
        if at < len(self.examples):
            return self.examples[at]
        row, reference = self.further[at - len(self.examples)].tolist()
        found = self.examples[row]
        return Example(found.source, found.references[reference], found.references)

    def __iter__(self) -> Iterator[Example]:
        yield from self.examples
        yield from (self[i] for i in range(len(self.examples), len(self)))


def _further(example: Example) -> list[str]:
    return [r for r in example.references if r != example.target] if len(example.references) > 1 else []


@dataclass(frozen=True)
class Prepared:
    """A corpus as ids, ready for training."""

    corpus_name: str
    kind: str
    spec: DataSpec
    train: Encoded
    valid: Encoded
    test: Encoded
    sequence_name: str = "sequence error"
    symbol_name: str = "symbol error"
    licence: str = ""
    origin: str = ""
    windowed: bool = False
    metrics: tuple[str, ...] = ()


def prepare(
    corpus: Corpus,
    spec: DataSpec | None = None,
    *,
    references: Literal["all", "first"] = "all",
    vocabulary: int | None = None,
) -> Prepared:
    """Learn the vocabularies on the training part (or take those of ``spec``) and encode every part.

    ``references``: with "all", training sees a row for every right answer of an example; with "first" one
    row. ``vocabulary``: largest number of symbols a field may learn; the corpus says where it is None.
    """
    if spec is None:
        source, target = _learn(corpus, corpus.vocabulary if vocabulary is None else vocabulary)
    else:
        source, target = spec.source, spec.target
    if (source is None) != (corpus.kind == "text"):
        wanted = "texts without a source" if source is None else "pairs of source and target"
        raise DataError(f"This model was made for {wanted}; the corpus {corpus.name} holds {corpus.kind}.")
    train = Answers(corpus.train) if references == "all" and corpus.kind == "pairs" else corpus.train
    parts = [encode(part, source, target) for part in (train, corpus.valid, corpus.test)]
    if spec is None:
        source_lengths, target_lengths = parts[0].lengths()
        spec = DataSpec(source, target, int(source_lengths.max()), int(target_lengths.max()))
    return Prepared(
        corpus.name,
        corpus.kind,
        spec,
        *parts,
        corpus.sequence_name,
        corpus.symbol_name,
        corpus.licence,
        corpus.origin,
        corpus.windowed,
        corpus.metrics,
    )


def _learn(corpus: Corpus, size: int) -> tuple[TextField | PointField | None, TextField | PositionField]:
    """The vocabularies of the training part: one for both sides where the corpus shares it and splits both alike."""
    # Read one by one: as a list the texts would take several times the memory of the rows.
    sources = (e.source for e in corpus.train)
    answers = (r for e in corpus.train for r in e.references)
    if corpus.shared and corpus.kind == "pairs" and corpus.source_units == corpus.target_units:
        both = TextField.learn(chain(sources, answers), corpus.target_units, size=size)
        return both, both
    source = None
    if corpus.kind == "pairs":
        source = learn_field(sources, corpus.source_units, side="source", size=size)
    return source, learn_field(answers, corpus.target_units, side="target", size=size)


def encode(
    examples: Sequence[Example], source: TextField | PointField | None, target: TextField | PositionField
) -> Encoded:
    """Examples as ids under given fields. A source without a symbol is refused, and a target that points behind
    the end of its source (:class:`DataError`)."""
    sources = None
    if source is not None:
        below = source.size if isinstance(source, TextField) else None
        sources = Ragged.of((source.encode(e.source) for e in examples), below)
        if len(sources) and sources.lengths.min() == 0:
            empty = int(sources.lengths.argmin()) + 1
            raise DataError(f"The source of example {empty} is empty; give every source at least one symbol.")
    pointing = isinstance(target, PositionField)
    ids = ([*target.encode(e.target), EOS] for e in examples)
    targets = Ragged.of(ids, None if pointing else target.size)
    if pointing:
        _refuse_positions_outside(sources, targets)
    return Encoded(sources, targets, examples)


def _refuse_positions_outside(sources: Ragged | None, targets: Ragged) -> None:
    if sources is None:
        raise DataError("Positions need sources that they point into; give pairs of source and target.")
    for row, (length, ids) in enumerate(zip(sources.lengths.tolist(), targets), 1):
        if max(ids) - UNK > length:
            raise DataError(
                f"The target of example {row} points at position {max(ids) - UNK}, but its source has only {length} "
                "elements; positions count from 1."
            )


# ---------------------------------------------------------------- grouping by length


def _cut(
    order: np.ndarray, source: np.ndarray, target: np.ndarray, budget: int, cells: int | None = None
) -> list[np.ndarray]:
    """Cut rows sorted by length into batches of at most ``budget`` padded symbols (at least one row each),
    and of at most ``cells`` padded pairs of a source and a target symbol where that is given.

    A batch also ends where the source length changes, once it is a third full: batches of one length need
    no mask.
    """
    s, t = source[order], target[order]
    longest = np.maximum.accumulate  # target lengths fall where the source length steps up
    changes = np.flatnonzero(np.diff(s)) + 1
    pieces: list[np.ndarray] = []
    start, count = 0, len(order)
    while start < count:
        guess = max(1, budget // max(1, int(s[start] + t[start])))
        window = slice(start, min(count, start + guess))
        wide, high = longest(s[window]), longest(t[window])
        rows = np.arange(1, window.stop - start + 1)
        size = int(np.searchsorted((wide + high) * rows, budget, side="right"))
        if cells is not None:
            size = min(size, int(np.searchsorted(wide * high * rows, cells, side="right")))
        size = max(1, size)
        inside = changes[(changes > start) & (changes < start + size)]
        full = inside[inside - start >= size / 3]
        stop = int(full[0]) if len(full) else start + size
        pieces.append(order[start:stop])
        start = stop
    return pieces


def _no_longer(encoded: Encoded, longest: int | None) -> np.ndarray:
    """The rows whose source and target have at most ``longest`` symbols; :class:`DataError` where there are none."""
    size = np.maximum(*encoded.lengths())
    kept = np.arange(len(size)) if longest is None else np.flatnonzero(size <= longest)
    if not len(kept):
        raise DataError(
            f"No training row has at most {longest} symbols, the end symbol included (--longest); the shortest one has "
            f"{size.min()}."
        )
    return kept


class Loader:
    """Training batches without end: each epoch every row once, batches of similar length in random order.

    The order of epoch e is a function of (seed, e) alone, so ``state_dict`` is two numbers and a restored
    loader goes on with exactly the batch that would have come. ``epoch``: passes done, with the share of
    the present one. ``batch_symbols`` and ``batch_cells`` limit a batch as in ``TrainConfig``. ``longest``: rows with a
    source or a target of more symbols are left out; ``left_out`` counts them. ``packed``: texts stand one behind the
    other in rows of one length instead (:mod:`transduce.data.packing`), in random order.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        batch_symbols: int,
        seed: int,
        batch_cells: int | None = None,
        longest: int | None = None,
        endless: bool = True,
        packed: bool = False,
    ) -> None:
        if len(encoded) == 0:
            raise DataError("There are no examples to train on.")
        self._kept = _no_longer(encoded, longest)
        self.left_out = len(encoded) - len(self._kept)
        if packed and encoded.sources is not None:
            raise DataError("Only texts can be packed: a row of several pairs would mix up their sources.")
        self.encoded, self.batch_symbols, self.seed = encoded, batch_symbols, seed
        self.endless, self.packed = endless, packed
        self.batch_cells = batch_cells
        self._go_to(0, 0)

    def _go_to(self, epoch: int, index: int) -> None:
        self._epoch, self._index, self._plan = epoch, index, self._order(epoch)

    def _order(self, epoch: int) -> list[np.ndarray] | list[Lines]:
        source, target = self.encoded.lengths()
        rng = np.random.default_rng((self.seed, epoch))
        mixed = self._kept[rng.permutation(len(self._kept))]
        if self.packed:
            return pack(mixed, target, self.batch_symbols)
        order = mixed[np.lexsort((target[mixed], source[mixed]))]
        pieces = _cut(order, source, target, self.batch_symbols, self.batch_cells)
        return [pieces[i] for i in rng.permutation(len(pieces))]

    @property
    def batches_per_epoch(self) -> int:
        return len(self._plan)

    @property
    def epoch(self) -> float:
        return self._epoch + self._index / max(1, len(self._plan))

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "index": self._index}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._go_to(int(state["epoch"]), int(state["index"]))

    def __iter__(self) -> Iterator[Batch]:
        while True:
            while self._index < len(self._plan):
                rows = self._plan[self._index]
                self._index += 1
                yield self.encoded.packed(rows) if self.packed else self.encoded.batch(rows)
            self._go_to(self._epoch + 1, 0)
            if not self.endless:
                return


def batches(encoded: Encoded, batch_symbols: int, batch_cells: int | None = None) -> list[Batch]:
    """Every row once, in batches of similar length and fixed order. ``Batch.rows`` gives back the
    positions."""
    source, target = encoded.lengths()
    order = np.lexsort((target, source))
    return [encoded.batch(rows) for rows in _cut(order, source, target, batch_symbols, batch_cells)]
