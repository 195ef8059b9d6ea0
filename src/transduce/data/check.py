"""What a set of data is made of, and what looks wrong with it: the report of ``transduce data check``."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import dataclass
from typing import Iterable, Iterator, Mapping, Sequence

import numpy as np

from .compare import are_swapped, overlaps, swap_note
from .files import Part
from .quarantine import percent

_STAND_INS = {"nan", "none", "null", "n/a", "na", "#n/a", "undefined", "-"}


@dataclass(frozen=True)
class Side:
    """Figures of the sources or the targets of a part: lengths and different symbols under some units."""

    name: str
    units: str
    lengths: np.ndarray
    symbols: Counter[str]
    stand_ins: int

    @classmethod
    def of(cls, name: str, units: str, texts: Iterable[str]) -> Side:
        lengths: list[int] = []
        symbols: Counter[str] = Counter()
        stand_ins = 0
        for text in texts:
            found = _symbols(text, units)
            lengths.append(len(found))
            symbols.update(map(str, found))
            stand_ins += text.strip().lower() in _STAND_INS
        return cls(name, units, np.array(lengths or [0]), symbols, stand_ins)

    def line(self) -> str:
        low, middle, high, most = np.percentile(self.lengths, [0, 50, 95, 100]).astype(int)
        return (
            f"  {self.name + 's':<10} {low:,} to {most:,} {self.units}, median {middle:,}, 95 % up to {high:,}; "
            f"{len(self.symbols):,} different {self.units}"
        )


def _symbols(text: str, units: str) -> Sequence[object]:
    if units == "bytes":
        return text.encode("utf-8")
    text = unicodedata.normalize("NFC", text)
    return list(text) if units == "chars" else text.split()


def figures(part: Part, units: tuple[str, str]) -> dict[str, Side]:
    """The sides of a part: "source" and "target", or "text". BPE is not learnt here: its words are counted."""
    plain = ["words" if u == "bpe" else u for u in units]
    if part.kind == "text":
        return {"text": Side.of("text", plain[1], (e.target for e in part.examples))}
    sources = Side.of("source", plain[0], (e.source for e in part.examples))
    answers = (r for e in part.examples for r in e.references)
    return {"source": sources, "target": Side.of("target", plain[1], answers)}


def describe(name: str, part: Part, sides: Mapping[str, Side]) -> Iterator[str]:
    """The report on a part, line by line."""
    quarantine, examples = part.quarantine, part.examples
    head = f"{name}: {quarantine.rows:,} {'windows' if part.windowed else 'rows'}"
    if not quarantine.bad:
        yield f"{head}, none broken"
    else:
        verdict = "too many" if quarantine.exceeded else "left out in training"
        share = percent(quarantine.bad / quarantine.rows)
        yield f"{head}, {quarantine.bad:,} broken ({share}; {percent(quarantine.limit)} may be): {verdict}"
    for reason, count in quarantine.counts.most_common():
        yield f"  broken     {count:,} ({percent(count / quarantine.rows)}): {reason}"
        for bad in quarantine.shown[reason]:
            yield f"             {bad.path.name} {bad.row:,}: {bad.raw[:70]!r}"
    if not len(examples):
        return
    for side in sides.values():
        yield side.line()
        if side.stand_ins > 2:
            yield f"  look at    {side.stand_ins:,} {side.name}s that read nan, none, null or such: missing values?"
    if part.kind == "text":
        again = len(examples) - len(np.unique(examples.fingerprints[0]))
        if again and not part.windowed:
            yield f"  repeated   {again:,} texts stand there more than once"
        return
    several = sum(len(e.references) > 1 for e in examples)
    yield (
        f"  different  {len(examples):,} sources, {several:,} of them with several targets; "
        f"{examples.repeated():,} rows repeat an earlier one"
    )


def compare(name: str, part: Part, train: Part, sides: Mapping[str, Mapping[str, Side]]) -> Iterator[str]:
    """What looks wrong with a held-out part beside the training part."""
    if not len(part.examples) or not len(train.examples):
        return
    if are_swapped(train.examples, part.examples):
        yield swap_note(name)
    if not part.windowed:
        yield from overlaps({name: part.examples, "train": train.examples}, part.kind)
    for key, side in sides[name].items():
        if side.units == "words" or key not in sides["train"]:
            continue
        new = [s for s in side.symbols if s not in sides["train"][key].symbols]
        if new:
            yield (
                f"The {name} {key}s hold {len(new):,} {side.units} that the training part lacks "
                f"({' '.join(repr(s) for s in new[:5])}); a model reads them as unknown."
            )
