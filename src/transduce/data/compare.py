"""Held-out data beside training data: sources that stand in both, columns in another order."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Iterable, Mapping, Sequence

from .examples import Example
from .split import overlap

SAMPLE = 2000
"""Examples that a profile is made of, evenly over a part."""

_UNLIKE = 0.1  # by how much crossed columns must be more alike than straight ones, where 2 is alike in full


@dataclass(frozen=True)
class Profile:
    """What texts of a column look like: shares of characters, words, mean length in characters."""

    characters: Mapping[str, float]
    words: Mapping[str, float]
    length: float

    @classmethod
    def of(cls, texts: Iterable[str]) -> Profile:
        characters: Counter[str] = Counter()
        words: Counter[str] = Counter()
        count = 0
        for text in texts:
            characters.update(text)
            words.update(text.split())
            count += 1
        shares = lambda counts: {key: n / counts.total() for key, n in counts.items()}
        return cls(shares(characters), shares(words), characters.total() / max(1, count))

    def likeness(self, other: Profile) -> float:
        """0 to 1: the mean of what the shares of characters and of words have in common and of the ratio of
        the lengths."""
        common = lambda a, b: sum(min(share, b.get(key, 0.0)) for key, share in a.items())
        lengths = sorted((self.length, other.length))
        return (
            common(self.characters, other.characters)
            + common(self.words, other.words)
            + lengths[0] / max(lengths[1], 1e-9)
        ) / 3


def sampled(examples: Sequence[Example]) -> list[Example]:
    """At most ``SAMPLE`` examples, evenly over all of them."""
    step = max(1, len(examples) // SAMPLE)
    return [examples[i] for i in range(0, len(examples), step)]


def are_swapped(train: Sequence[Example], other: Sequence[Example]) -> bool:
    """True where the sources of ``other`` look like the targets of ``train``, and its targets like the
    sources: the columns of one of the two files stand in the other order."""
    if not len(train) or not len(other) or train[0].source is None or other[0].source is None:
        return False
    mine, theirs = sampled(train), sampled(other)
    source, target = Profile.of(e.source for e in mine), Profile.of(e.target for e in mine)
    s, t = Profile.of(e.source for e in theirs), Profile.of(e.target for e in theirs)
    straight, crossed = source.likeness(s) + target.likeness(t), source.likeness(t) + target.likeness(s)
    return crossed > straight + _UNLIKE


def swap_note(name: str) -> str:
    return (
        f"The {name} sources look like the training targets and its targets like the training sources: the columns of "
        "one of the two files seem to be swapped."
    )


def overlaps(parts: Mapping[str, Sequence[Example]], kind: str = "pairs") -> list[str]:
    """A sentence for each held-out part whose sources (texts: the texts themselves) stand in training too."""
    noun = "sources" if kind == "pairs" else "texts"
    found: list[str] = []
    for name in [n for n in ("test", "valid") if n in parts]:
        shared = overlap(parts[name], parts["train"])
        count = int(shared.sum())
        if count:
            first = parts[name][int(shared.argmax())]
            text = first.target if first.source is None else first.source
            found.append(
                f"{count:,} of {len(shared):,} {name} {noun} stand in the training part too (the first: "
                f'"{text[:60]}"), so figures on them are better than those on new ones.'
            )
    return found
