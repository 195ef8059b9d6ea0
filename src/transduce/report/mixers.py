"""The matrix of mixers and tasks as a page and as a picture. matplotlib is imported only to draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator, Mapping

import numpy as np

from transduce.train.mixer_tasks import ABOUT, TASKS
from transduce.train.storage import replace_file, writing

from .pictures import LIGHT, new_figure, to_png
from .quality import size_text

_IN_BITS = ("characters", "bytes")


def columns(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(task, test) pairs that some mixer was measured on, in the order of the tasks."""
    seen: dict[tuple[str, str], None] = {}
    for task in TASKS:
        for mixer in record["mixers"].values():
            for run in mixer["tasks"].get(task, {}).values():
                seen.update(dict.fromkeys((task, test) for test in run["tests"]))
    return list(seen)


def values(mixer: Mapping[str, Any], task: str, test: str) -> list[float]:
    """The figure of every seed."""
    return [run["tests"][test] for run in mixer["tasks"].get(task, {}).values() if test in run["tests"]]


def _rows(record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], list[float | None]]]:
    """Mixers by their mean rank over the columns, the best first; means over the seeds."""
    cells = columns(record)
    means: dict[str, list[float | None]] = {}
    for name, mixer in record["mixers"].items():
        found = [values(mixer, *cell) for cell in cells]
        means[name] = [sum(v) / len(v) if v else None for v in found]
    ranks: dict[str, list[int]] = {name: [] for name in means}
    for i, (task, _) in enumerate(cells):
        known = [n for n in means if means[n][i] is not None]
        for name in known:
            better = lambda other: (means[other][i] < means[name][i]) == (task in _IN_BITS)
            differs = [n for n in known if means[n][i] != means[name][i]]
            ranks[name].append(sum(better(n) for n in differs))
    for name in sorted(means, key=lambda n: (np.mean(ranks[n]) if ranks[n] else np.inf, n)):
        yield name, record["mixers"][name], means[name]


def _heading(task: str, test: str) -> str:
    return f"{task} {test}".strip()


def page(record: Mapping[str, Any], picture: str, command: str) -> str:
    """Markdown: what was asked, the matrix, the costs."""
    size = record["network"]
    cells = columns(record)
    lines = [
        "# What each mixer can do",
        "",
        f"Every causal mixer of the catalogue in the same network ({size['layers']} layers of width {size['dim']}, each with a feedforward part),",
        f"trained on small tasks for the same steps with the same data, by `{command}`. The best by mean rank stand first; every figure is the",
        "mean of its seeds. Shares of right labels in per cent, and bits a symbol where said (less is better). They are budgets of seconds:",
        "what a mixer fails here it may learn with more steps, and these are its default settings.",
        "",
        f"![the matrix]({picture})",
        "",
        *(
            f"- **{task}**: {ABOUT[task]}"
            + (f". Not measured: {record['refused'][task]}" if task in record["refused"] else "")
            for task in TASKS
        ),
        "",
        "| mixer | " + " | ".join(_heading(*cell) for cell in cells) + " | parameters a layer | state a stream |",
        "|---|" + "---:|" * (len(cells) + 2),
    ]
    for name, mixer, means in _rows(record):
        shown = [_shown(task, mean) for (task, _), mean in zip(cells, means)]
        cost = mixer["costs"]
        grows = f" + {cost['bytes a step']:,} a step" if cost["bytes a step"] else ""
        state = f"{size_text(cost['state bytes at 64'])}{grows}" if not grows else f"{cost['bytes a step']:,} B a step"
        lines.append(f"| `{name}` | " + " | ".join(shown) + f" | {cost['parameters']:,} | {state} |")
    return "\n".join(lines) + "\n"


def _shown(task: str, mean: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.2f}" if task in _IN_BITS else f"{100 * mean:.0f}"


def picture(record: Mapping[str, Any], path: Path) -> Path:
    """A heat map: mixers down, tests across, each column from its worst to its best."""
    cells, rows = columns(record), list(_rows(record))
    table = np.array([[np.nan if m is None else m for m in means] for _, _, means in rows], dtype=float)
    shade = np.zeros_like(table)
    for i, (task, _) in enumerate(cells):
        column = table[:, i]
        low, high = np.nanmin(column), np.nanmax(column)
        if task not in _IN_BITS:
            low, high = 0.0, 1.0
        share = (column - low) / (high - low) if high > low else np.ones_like(column)
        shade[:, i] = 1 - share if task in _IN_BITS else share
    figure = new_figure(2.2 + 0.62 * len(cells), 1.9 + 0.27 * len(rows), LIGHT)
    axes = figure.subplots()
    from matplotlib.colors import LinearSegmentedColormap

    heat = LinearSegmentedColormap.from_list("heat", ["#f4f6f8", "#7fb0dd", "#12508f"]).with_extremes(bad="#ffffff")
    axes.imshow(np.ma.masked_invalid(np.where(np.isnan(table), np.nan, shade)), cmap=heat, aspect="auto", vmin=0, vmax=1)
    for y, (_, _, means) in enumerate(rows):
        for x, ((task, _), mean) in enumerate(zip(cells, means)):
            if mean is not None:
                colour = "#ffffff" if shade[y, x] > 0.6 else LIGHT.ink
                axes.text(x, y, _shown(task, mean), ha="center", va="center", fontsize=7, color=colour)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=8)
    names = [_heading(*cell) + (", bits" if cell[0] in _IN_BITS else "") for cell in cells]
    axes.set_xticks(range(len(cells)), names, fontsize=8, rotation=40, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.tick_params(length=0, colors=LIGHT.ink)
    axes.spines[:].set_visible(False)
    with writing(path):
        replace_file(path, to_png(figure))
    return path
