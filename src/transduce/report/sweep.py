"""The picture of a sweep: what every trial reached, over time and over each setting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transduce.train.storage import replace_file, writing

from .pictures import LIGHT, legend, new_figure, tidy, to_png

COLUMNS = 4


def picture(
    trials: Sequence[Any], fields: Mapping[str, bool], path: Path, title: str, scale: float = 1.0
) -> Path:
    """Write a PNG atomically. ``trials``: of an optuna study. ``fields``: the searched settings, True where
    the range is logarithmic. Trials that were given up stand with the last value they had."""
    ended = [(t, _value(t, scale)) for t in trials]
    ended = [(t, v) for t, v in ended if v is not None]
    count = 1 + len(fields)
    columns = min(COLUMNS, count)
    figure = new_figure(3.9 * columns, 3.3 * math.ceil(count / columns), LIGHT)
    figure.suptitle(title, fontsize=12, color=LIGHT.ink)
    panels = list(figure.subplots(math.ceil(count / columns), columns, squeeze=False).flat)
    _history(panels[0], ended)
    for axes, (name, log) in zip(panels[1:], fields.items(), strict=False):
        tidy(axes, LIGHT, name, "", "")
        mine = [(t, v) for t, v in ended if name in t.params]
        _scatter(axes, [t.params[name] for t, _ in mine], mine)
        if log:
            axes.set_xscale("log")
    for axes in panels[count:]:
        axes.set_visible(False)
    with writing(path):
        replace_file(path, to_png(figure))
    return path


def _value(trial: Any, scale: float) -> float | None:
    value = trial.value
    if value is None and trial.intermediate_values and trial.state.is_finished():
        value = trial.intermediate_values[max(trial.intermediate_values)]
    return scale * value if value is not None and math.isfinite(value) else None


def _finished(trial: Any) -> bool:
    return trial.state.name == "COMPLETE"


def _history(axes: Any, ended: Sequence[tuple[Any, float]]) -> None:
    tidy(axes, LIGHT, "best so far", "trial", "")
    _scatter(axes, [t.number for t, _ in ended], ended)
    best, line = math.inf, []
    for trial, value in ended:
        if _finished(trial):
            best = min(best, value)
            line.append((trial.number, best))
    if line:
        axes.step(*zip(*line, strict=True), where="post", color=LIGHT.colours[1], linewidth=1.4, label="best")
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend(axes, LIGHT)


def _scatter(axes: Any, x: Sequence[Any], ended: Sequence[tuple[Any, float]]) -> None:
    """Filled where a trial finished, hollow where it was given up, ringed where it is the best."""
    for done, face, label in ((True, LIGHT.colours[0], "finished"), (False, "none", "given up")):
        chosen = [(a, v) for a, (t, v) in zip(x, ended, strict=True) if _finished(t) == done]
        if chosen:
            axes.scatter(
                *zip(*chosen, strict=True), s=26, facecolors=face, edgecolors=LIGHT.colours[0], label=label
            )
    finished = [(v, a) for a, (t, v) in zip(x, ended, strict=True) if _finished(t)]
    if finished:
        value, where = min(finished, key=lambda p: p[0])
        axes.scatter([where], [value], s=110, facecolors="none", edgecolors=LIGHT.colours[1], linewidths=1.6)
