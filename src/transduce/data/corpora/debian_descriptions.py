"""Descriptions of Debian's packages: summaries and translations that people wrote.

``debian-descriptions``: from the long English description of a package to its synopsis, one line.
``debian-descriptions:en-de``, ``:de+fr-en`` and so on: paragraphs and synopses in 15 languages, aligned by the MD5 of the
English description that was translated and by their order, where the translation has as many paragraphs.

Packages are split by the source package that they are built from, its version numbers left out (gcc-11 and gcc-12
lie together); a text that packages of several parts share is for training.
"""

from __future__ import annotations

import os
import re
from typing import Iterable, Iterator, NamedTuple, Sequence

from ..batching import Corpus, Example
from ..metrics import SUMMARY
from . import _debian_index as index
from ._directions import direction, joined, sentence_pairs

NAME = "debian-descriptions"
LANGUAGES = ("cs", "da", "de", "en", "es", "fr", "it", "ja", "ko", "pl", "pt", "pt-br", "ru", "sk", "uk")
SUMMARY_SOURCE, SUMMARY_TARGET = (8, 200), (2, 20)
"""Fewest and most words of a description and of its synopsis: 98 of 100 packages."""
SHORTEST, LONGEST = 2, 80
LICENCE = "freely redistributable; each package's own licence, named in its copyright file"

_RECORD = re.compile(r"(\S+)\nDescription-md5: (\S+)\nDescription-[\w@]+: (.*)\n")
_BUILT = re.compile(r"(\S+)\n(?:Source: (\S+))?")
_FAMILY = re.compile(r"[-.+]?\d[\d.]*")


class Description(NamedTuple):
    package: str
    synopsis: str
    paragraphs: tuple[str, ...]


def descriptions(text: str) -> dict[str, Description]:
    """The records of a Translation file by the MD5 of the English description."""
    found: dict[str, Description] = {}
    for record in _records(text):
        head = _RECORD.match(record)
        if head is None:
            continue
        package, key, synopsis = head.groups()
        paragraphs = re.split(r"^ \. *$", record[head.end() :].partition("\n\n")[0], flags=re.MULTILINE)
        whole = tuple(" ".join(p.split()) for p in paragraphs if p.strip())
        found.setdefault(key, Description(package, " ".join(synopsis.split()), whole))
    return found


def families(packages: str) -> dict[str, str]:
    """The source of each binary package of a Packages file, without version numbers: gcc-12 is in "gcc"."""
    built = (_BUILT.match(record) for record in _records(packages))
    return {one[1]: family(one[2] or one[1]) for one in built if one is not None}


def _records(text: str) -> list[str]:
    """The records of a file, each from its package's name on."""
    return ("\n" + text).split("\nPackage: ")[1:]


def family(source: str) -> str:
    """A source package's name without version numbers."""
    return _FAMILY.sub("", source) or source


def summaries(
    english: dict[str, Description], groups: dict[str, str]
) -> Iterator[tuple[str, Example]]:
    """``(family, example)`` of each description and its synopsis."""
    for one in english.values():
        source = " ".join(one.paragraphs)
        if _within(source, SUMMARY_SOURCE) and _within(one.synopsis, SUMMARY_TARGET):
            yield groups.get(one.package, family(one.package)), Example(source, one.synopsis, (one.synopsis,))


def aligned(
    versions: list[dict[str, Description]], groups: dict[str, str], *, paragraphs: bool = True
) -> Iterator[tuple[str, Example]]:
    """``(family, example)`` of each synopsis and paragraph that all versions have; the last one is the target.

    Without ``paragraphs`` of the synopses alone, of one word too."""
    shortest = SHORTEST if paragraphs else 1
    for key in versions[0].keys() & set(versions[0]).intersection(*versions[1:]):
        several = [version[key] for version in versions]
        group = groups.get(several[0].package, family(several[0].package))
        rows: list[tuple[str, ...]] = [tuple(one.synopsis for one in several)]
        if paragraphs and len({len(one.paragraphs) for one in several}) == 1:
            rows += zip(*(one.paragraphs for one in several))
        for *sources, target in rows:
            if (
                _within(sources[0], (shortest, LONGEST))
                and all(_within(text, (1, LONGEST)) for text in (*sources, target))
                and target not in sources
            ):
                yield group, Example(joined(sources), target, (target,))


def _within(text: str, limits: tuple[int, int]) -> bool:
    return limits[0] <= len(text.split()) <= limits[1]


def read(
    languages: Sequence[str], data_dir: str | os.PathLike | None
) -> tuple[list[dict[str, Description]], dict[str, str]]:
    """The descriptions of each language by the MD5 of the English one, and the family of each package."""
    files = [f"Translation-{_code(language)}" for language in languages]
    packages, *texts = index.read([index.PACKAGES, *files], data_dir)
    return [descriptions(text) for text in texts], families(packages)


def load(data_dir: str | os.PathLike | None = None, variant: str | None = None) -> Corpus:
    chosen = None if variant is None else direction(NAME, variant, LANGUAGES)
    versions, groups = read(("en",) if chosen is None else chosen.languages, data_dir)
    rows: Iterable[tuple[str, Example]]
    if chosen is None:
        rows = summaries(versions[0], groups)
    else:
        rows = sorted(aligned(versions, groups))
    return sentence_pairs(
        NAME if chosen is None else f"{NAME}:{chosen}",
        rows,
        licence=LICENCE,
        origin=f"package index of Debian {index.RELEASE}, main{f', {chosen}' if chosen else ''}",
        metrics=SUMMARY if chosen is None else chosen.metrics,
    )


def _code(language: str) -> str:
    """As Debian writes it: pt_BR."""
    name, _, land = language.partition("-")
    return f"{name}_{land.upper()}" if land else name
