"""Packing: short texts one behind the other in rows of one length, instead of each padded to the longest.

Where padded batches must hold texts of one length to waste little, packed ones are filled in random order, so
that every step sees texts of all lengths. The mark where a text begins (``Batch.resets``) lets each mixer
start anew there: the loss is that of the texts alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

ROW = 256
"""Symbols of a packed row, unless a text is longer."""

_AHEAD = 64
"""Texts that wait to fill what is left of a row."""


class Lines(NamedTuple):
    """A packed batch: ``rows`` of the data in the order in which they stand, ``firsts`` of them begin a line."""

    rows: np.ndarray
    firsts: np.ndarray


def pack(order: np.ndarray, lengths: np.ndarray, budget: int, row: int = ROW) -> list[Lines]:
    """Texts in the given order -> batches of at most ``budget`` symbols (at least one line each).

    Lines are ``max(row, longest text)`` symbols long, and no longer than the budget where that can be. A line
    takes the next text that still fits out of a few that wait, so nearly every line ends full; texts that
    wait longest go first.
    """
    longest = int(lengths.max())
    width = max(longest, min(row, budget))
    lines = _lines(order, lengths, width)
    several = max(1, budget // width)
    batches: list[Lines] = []
    for at in range(0, len(lines), several):
        group = lines[at : at + several]
        firsts = np.cumsum([0, *(len(line) for line in group[:-1])])
        batches.append(Lines(np.concatenate(group), firsts))
    return batches


def _lines(order: np.ndarray, lengths: np.ndarray, width: int) -> list[np.ndarray]:
    sizes = lengths.tolist()
    coming = iter(order.tolist())
    waiting = [text for _, text in zip(range(_AHEAD), coming)]
    lines: list[np.ndarray] = []
    line: list[int] = []
    room = width
    while waiting:
        at = next((i for i, text in enumerate(waiting) if sizes[text] <= room), None)
        if at is None:
            lines.append(np.array(line, dtype=np.int64))
            line, room = [], width
            continue
        text = waiting.pop(at)
        line.append(text)
        room -= sizes[text]
        following = next(coming, None)
        if following is not None:
            waiting.append(following)
    if line:
        lines.append(np.array(line, dtype=np.int64))
    return lines
