"""Which languages a translation corpus is asked for, "en-fr" or "de+fr-en", and sources made of several versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Collection, Iterable, Sequence

from transduce.core.errors import DataError

from ..batching import Corpus, Example
from ..fields import SEPARATOR
from ..metrics import TRANSLATION
from ..split import split_grouped

UNSPACED = ("dz", "ja", "km", "ko", "zh-cn", "zh-tw", "zh")
"""Languages that BLEU's tokens, made for words between spaces, do not fit; there chrF alone is reported."""


@dataclass(frozen=True)
class Direction:
    """From one or several versions of a text to another one, by language code."""

    sources: tuple[str, ...]
    target: str

    def __str__(self) -> str:
        return f"{'+'.join(self.sources)}-{self.target}"

    @property
    def languages(self) -> tuple[str, ...]:
        return (*self.sources, self.target)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("chrf",) if self.target in UNSPACED else TRANSLATION


def direction(corpus: str, text: str, languages: Collection[str]) -> Direction:
    """ "en-fr", "de+fr-en", "en-pt-br": the hyphen that cuts is the one with known languages on both sides.

    Raises :class:`DataError` for an unknown language, one that stands twice, or no direction at all.
    """
    pieces = text.split("-")
    cuts = [("-".join(pieces[:i]).split("+"), "-".join(pieces[i:])) for i in range(1, len(pieces))]
    for sources, target in cuts:
        if target in languages and all(s in languages for s in sources):
            if len({*sources, target}) <= len(sources):
                raise DataError(f'"{corpus}:{text}" names a language twice; name each once.')
            return Direction(tuple(sources), target)
    named = [code for sources, target in cuts[:1] for code in (*sources, target)]
    unknown = next((code for code in named if code not in languages), None)
    if unknown is None:
        raise DataError(f'"{corpus}:{text}" is no direction: write for example {corpus}:en-fr or de+fr-en.')
    raise DataError(
        f'{corpus} has no language "{unknown}"; choose among {", ".join(sorted(languages))}.'
    )


def joined(versions: Sequence[str]) -> str:
    """Several versions of a text as one source."""
    return f" {SEPARATOR} ".join(versions)


def sentence_pairs(
    name: str,
    rows: Iterable[tuple[str, Example]],
    *,
    licence: str,
    origin: str,
    metrics: tuple[str, ...],
    vocabulary: int = 8000,
) -> Corpus:
    """A corpus of ``(group, example)``, split by group, no version of a source in two parts; one BPE vocabulary serves
    both sides."""
    parts = split_grouped(rows, lambda source: source.split(f" {SEPARATOR} "))
    return Corpus(
        name,
        "pairs",
        parts["train"],
        parts["valid"],
        parts["test"],
        "bpe",
        "bpe",
        "sentence error",
        "word error",
        licence=licence,
        origin=origin,
        metrics=metrics,
        vocabulary=vocabulary,
        shared=True,
    )
