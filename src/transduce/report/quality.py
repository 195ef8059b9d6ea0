"""Figures with intervals, pooled over seeds, and how far two systems are apart on the same rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Mapping, Sequence

import numpy as np

from transduce.data import bootstrap
from transduce.train import Evaluation


@dataclass(frozen=True)
class Metric:
    """One figure of a system: ``name`` in records, ``title`` for readers, ``scale`` and ``unit`` for show."""

    name: str
    title: str
    scale: float = 100.0
    unit: str = "%"

    def text(self, value: float) -> str:
        return f"{self.scale * value:.2f}" + (f" {self.unit}" if self.unit == "%" else "")


def metrics_of(kind: str, sequence_name: str, symbol_name: str) -> tuple[Metric, ...]:
    """The figures that can be given with an interval, the one that ranks first. Less is better in all."""
    if kind == "text":
        return (Metric("bits_per_character", "bits per character", 1.0, ""),)
    return (Metric("sequence_error", sequence_name), Metric("symbol_error", symbol_name))


def counts(found: Evaluation) -> dict[str, list[list[float]]]:
    """Per metric, numerators and denominators of every row: all that a bootstrap needs later."""
    assert found.rates is not None, "texts are counted row by row, see row_bits"
    rates = found.rates
    return {
        "sequence_error": [rates.wrong.tolist(), [1] * len(rates.wrong)],
        "symbol_error": [rates.edits.tolist(), rates.lengths.tolist()],
    }


def pooled(seeds: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators of each row, summed over the seeds: (R,), (R,)."""
    above = np.sum([np.asarray(s["counts"][name][0], dtype=float) for s in seeds], 0)
    below = np.sum([np.asarray(s["counts"][name][1], dtype=float) for s in seeds], 0)
    return above, below


def figure(seeds: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """A metric over all seeds: its value, its 95 % bootstrap interval over rows, and the value of each seed.

    The interval says how far the rows that were drawn decide; how far the seed decides is the spread of
    ``seeds``.
    """
    above, below = pooled(seeds, name)
    low, high = bootstrap(above, below)
    each = [sum(s["counts"][name][0]) / max(1e-12, sum(s["counts"][name][1])) for s in seeds]
    return {"value": float(above.sum() / max(1e-12, below.sum())), "low": low, "high": high, "seeds": each}


def behind(
    best: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], name: str, samples: int = 1000
) -> dict[str, float]:
    """``other`` less ``best``, with the 95 % interval of a paired bootstrap: the same rows are drawn for both
    (Koehn 2004, section 3.3). An interval that lies above 0 says that the rows tell the two apart."""
    a, b = pooled(best, name), pooled(other, name)
    rows = len(a[0])
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, rows, (samples, rows))
    rate = lambda pair: pair[0][drawn].sum(1) / np.maximum(1e-12, pair[1][drawn].sum(1))
    low, high = np.quantile(rate(b) - rate(a), [0.025, 0.975])
    whole = lambda pair: pair[0].sum() / max(1e-12, pair[1].sum())
    return {"value": float(whole(b) - whole(a)), "low": float(low), "high": float(high)}


def bits(nats: float) -> float:
    return nats / math.log(2.0)


def size_text(count: float) -> str:
    """Bytes as 384 B, 1.5 KiB, 12 MiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def time_text(seconds: float) -> str:
    """Seconds as 340 us, 1.25 ms, 2.1 s."""
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} us"
    return f"{1e3 * seconds:.2f} ms" if seconds < 1 else f"{seconds:.1f} s"


def count_text(count: float) -> str:
    """A count as 812, 12.3k, 1.25M."""
    if count < 1000:
        return f"{count:.0f}"
    return f"{count / 1e3:.1f}k" if count < 1e6 else f"{count / 1e6:.2f}M"
