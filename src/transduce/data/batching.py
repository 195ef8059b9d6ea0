"""From examples to batches: encoded once, grouped by length, in an order that is a pure function of (seed,
epoch)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Iterable, Iterator, Literal, NamedTuple, Sequence

import numpy as np
import torch

from transduce.core.errors import DataError
from transduce.core.seq import EOS, PAD, Batch, Seq

from .fields import DataSpec, TextField


class Example(NamedTuple):
    """One row of data. ``references``: every right answer, ``target`` among them. A text has no
    ``source``."""

    source: str | None
    target: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Corpus:
    """Text before it is split into symbols.

    ``kind``: "pairs" or "text". ``sequence_name`` and ``symbol_name`` are what errors are called ("word
    error", "phoneme error"). ``windowed``: the texts are windows cut out of a longer one, so where they end
    means nothing.
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


class Ragged:
    """Rows of ids of different length in one flat array; batches are cut out of it without a Python loop
    over rows."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.lengths = np.fromiter((len(r) for r in rows), dtype=np.int64, count=len(rows))
        self.starts = np.concatenate(([0], np.cumsum(self.lengths)))[:-1]
        self.flat = np.fromiter((i for r in rows for i in r), dtype=np.int64, count=int(self.lengths.sum()))

    def take(self, rows: np.ndarray) -> Seq:
        lengths = self.lengths[rows]
        steps = np.arange(int(lengths.max()))
        valid = steps < lengths[:, None]
        at = np.where(valid, self.starts[rows][:, None] + steps, 0)
        data = torch.from_numpy(np.where(valid, self.flat[at], PAD))
        return Seq(data, None if valid.all() else torch.from_numpy(valid))


@dataclass(frozen=True)
class Encoded:
    """One part of a data set as ids. Targets end with EOS; ``sources`` is None for texts."""

    sources: list[list[int]] | None
    targets: list[list[int]]
    examples: list[Example]

    @cached_property
    def _source(self) -> Ragged | None:
        return None if self.sources is None else Ragged(self.sources)

    @cached_property
    def _target(self) -> Ragged:
        return Ragged(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def lengths(self) -> tuple[np.ndarray, np.ndarray]:
        """Source and target lengths of all rows; source lengths are 0 for texts."""
        target = self._target.lengths
        return (np.zeros_like(target) if self._source is None else self._source.lengths), target

    def batch(self, rows: np.ndarray) -> Batch:
        source = None if self._source is None else self._source.take(rows)
        return Batch(source, self._target.take(rows), tuple(rows.tolist()))

    def select(self, rows: Iterable[int]) -> Encoded:
        """The part that holds these rows, in this order."""
        rows = list(rows)
        return Encoded(
            None if self.sources is None else [self.sources[i] for i in rows],
            [self.targets[i] for i in rows],
            [self.examples[i] for i in rows],
        )


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


def prepare(
    corpus: Corpus,
    spec: DataSpec | None = None,
    *,
    references: Literal["all", "first"] = "all",
    vocabulary: int = 8000,
) -> Prepared:
    """Learn the vocabularies on the training part (or take those of ``spec``) and encode every part.

    ``references``: with "all", training sees a row for every right answer of an example; with "first" one
    row. ``vocabulary``: largest number of symbols a field may learn.
    """
    if spec is None:
        source = None
        if corpus.kind == "pairs":
            source = TextField.learn((e.source for e in corpus.train), corpus.source_units, size=vocabulary)
        answers = (r for e in corpus.train for r in e.references)
        target = TextField.learn(answers, corpus.target_units, size=vocabulary)
    else:
        source, target = spec.source, spec.target
    if (source is None) != (corpus.kind == "text"):
        wanted = "texts without a source" if source is None else "pairs of source and target"
        raise DataError(f"This model was made for {wanted}; the corpus {corpus.name} holds {corpus.kind}.")
    several = [e for e in corpus.train if len(e.references) > 1] if references == "all" else []
    extra = [Example(e.source, r, e.references) for e in several for r in e.references if r != e.target]
    parts = [encode(part, source, target) for part in ([*corpus.train, *extra], corpus.valid, corpus.test)]
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
    )


def encode(examples: Sequence[Example], source: TextField | None, target: TextField) -> Encoded:
    """Examples as ids under given fields. A source without a symbol is refused (:class:`DataError`)."""
    sources = None if source is None else [source.encode(e.source) for e in examples]
    empty = next((row for row, ids in enumerate(sources or ()) if not ids), None)
    if empty is not None:
        raise DataError(f"The source of example {empty + 1} is empty; give every source at least one symbol.")
    return Encoded(
        sources,
        [[*target.encode(e.target), EOS] for e in examples],
        list(examples),
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


class Loader:
    """Training batches without end: each epoch every row once, batches of similar length in random order.

    The order of epoch e is a function of (seed, e) alone, so ``state_dict`` is two numbers and a restored
    loader goes on with exactly the batch that would have come. ``epoch``: passes done, with the share of
    the present one. ``batch_symbols`` and ``batch_cells`` limit a batch as in ``TrainConfig``.
    """

    def __init__(
        self,
        encoded: Encoded,
        *,
        batch_symbols: int,
        seed: int,
        batch_cells: int | None = None,
        shuffle: bool = True,
        endless: bool = True,
    ) -> None:
        if len(encoded) == 0:
            raise DataError("There are no examples to train on.")
        self.encoded, self.batch_symbols, self.seed = encoded, batch_symbols, seed
        self.batch_cells, self.shuffle, self.endless = batch_cells, shuffle, endless
        self._go_to(0, 0)

    def _go_to(self, epoch: int, index: int) -> None:
        self._epoch, self._index, self._plan = epoch, index, self._order(epoch)

    def _order(self, epoch: int) -> list[np.ndarray]:
        source, target = self.encoded.lengths()
        if not self.shuffle:
            return _cut(np.lexsort((target, source)), source, target, self.batch_symbols, self.batch_cells)
        rng = np.random.default_rng((self.seed, epoch))
        mixed = rng.permutation(len(target))
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
                yield self.encoded.batch(rows)
            self._go_to(self._epoch + 1, 0)
            if not self.endless:
                return


def batches(encoded: Encoded, batch_symbols: int, batch_cells: int | None = None) -> list[Batch]:
    """Every row once, in batches of similar length and fixed order. ``Batch.rows`` gives back the
    positions."""
    source, target = encoded.lengths()
    order = np.lexsort((target, source))
    return [encoded.batch(rows) for rows in _cut(order, source, target, batch_symbols, batch_cells)]
