"""Pictures of a run: learning curve, attention map, labelled curves. matplotlib is imported only to draw."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping, Sequence

import numpy as np

from .storage import replace_file, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1f5fa8", "#d1495b", "#2a9d6f", "#e09f3e", "#7a5195", "#5b6770")
_GREY = "#5b6770"


def _figure(width: float, height: float) -> Figure:
    # a Figure with its own Agg canvas: pyplot's global state and the user's backend stay untouched
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path | str) -> Path:
    """Write a PNG atomically."""
    picture = io.BytesIO()
    # tight: a square map inside the layout may push its axis label over the edge
    figure.savefig(picture, format="png", facecolor="white", bbox_inches="tight", pad_inches=0.08)
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, picture.getvalue())
    return path


def _tidy(axes: Axes, title: str, x: str, y: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b0b7bd")
    axes.tick_params(colors=_GREY, labelsize=8)
    axes.grid(axis="y", color="#e6e9ec", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(x, fontsize=9, color=_GREY)
    axes.set_ylabel(y, fontsize=9, color=_GREY)
    axes.set_title(title, fontsize=10, loc="left", color="#222222")


def learning_curve(
    history: Sequence[Mapping[str, Any]],
    path: Path | str,
    *,
    sequence_name: str = "sequence error",
    symbol_name: str = "symbol error",
) -> Path:
    """Draw loss (left) and held-out error or bits per character (right) over wall-clock time.

    ``history``: records as in ``log.jsonl``; those with ``loss`` are training reports, those with
    ``valid_loss`` evaluations.
    """
    reports = [r for r in history if r.get("loss") is not None]
    held_out = [r for r in history if r.get("valid_loss") is not None]
    latest = max((r["seconds"] for r in history), default=0.0)
    unit, scale = ("minutes", 60.0) if latest >= 180 else ("seconds", 1.0)
    figure = _figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    _tidy(left, "Loss", unit, "nats per target symbol")
    left.plot(
        [r["seconds"] / scale for r in reports],
        [r["loss"] for r in reports],
        color=COLOURS[0],
        linewidth=1.2,
        label="training objective",
    )
    left.plot(
        [r["seconds"] / scale for r in held_out],
        [r["valid_loss"] for r in held_out],
        color=COLOURS[1],
        linewidth=1.4,
        marker="o",
        markersize=3,
        label="held-out likelihood",
    )
    left.set_ylim(bottom=0.0)
    if reports or held_out:
        left.legend(frameon=False, fontsize=8)
    seconds = [r["seconds"] / scale for r in held_out]
    if any(r.get("bits_per_character") is not None for r in held_out):
        _tidy(right, "Held-out text", unit, "bits per character")
        _series(
            right,
            seconds,
            [r["bits_per_character"] for r in held_out],
            "bits per character",
            COLOURS[0],
            "{:.2f}",
        )
    else:
        _tidy(right, "Held-out error (greedy)", unit, "error, %")
        for name, key, colour in (
            (sequence_name, "sequence_error", COLOURS[1]),
            (symbol_name, "symbol_error", COLOURS[0]),
        ):
            if held_out and held_out[-1].get(key) is not None:
                _series(right, seconds, [100 * r[key] for r in held_out], name, colour, "{:.1f} %")
    right.set_ylim(bottom=0.0)
    if held_out:
        right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.set_xlim(left=0.0)
    return _save(figure, path)


def _series(axes: Axes, x: Sequence[float], y: Sequence[float], label: str, colour: str, last: str) -> None:
    axes.plot(x, y, color=colour, linewidth=1.4, marker="o", markersize=3, label=label)
    axes.annotate(
        last.format(y[-1]),
        (x[-1], y[-1]),
        textcoords="offset points",
        xytext=(-2, 6),
        fontsize=8,
        color=colour,
        ha="right",
    )


def attention_map(
    weights: Any,
    source_symbols: Sequence[str],
    target_symbols: Sequence[str],
    path: Path | str,
    *,
    title: str = "",
    labels: tuple[str, str] = ("source", "target"),
) -> Path:
    """Draw attention weights (U,S): target symbols down, source symbols across, darker is more.

    ``labels``: what stands at the two axes, across and down. Raises ValueError when the shape does not fit the symbols.
    """
    matrix = np.asarray(
        weights.detach().float().cpu() if hasattr(weights, "detach") else weights, dtype=float
    )
    if matrix.shape != (len(target_symbols), len(source_symbols)):
        raise ValueError(
            f"attention of shape {matrix.shape} does not fit {len(target_symbols)} target and "
            f"{len(source_symbols)} source symbols"
        )
    rows, columns = matrix.shape
    cell = 0.34 if max(rows, columns) <= 40 else 13.6 / max(rows, columns)
    # long names need room of their own, or they take it from the cells
    down, across = (0.075 * max(0, max(map(len, names)) - 6) for names in (target_symbols, source_symbols))
    figure = _figure(max(2.6, cell * columns + 1.7 + down), max(2.2, cell * rows + 1.3 + across))
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="Blues", vmin=0.0, vmax=max(1e-9, float(matrix.max())), aspect="equal")
    size = 9 if cell >= 0.3 else max(3.0, 9 * cell / 0.3)
    axes.set_xticks(range(columns), [_shown(s) for s in source_symbols], fontsize=size)
    axes.set_yticks(range(rows), [_shown(s) for s in target_symbols], fontsize=size)
    if any(len(_shown(s)) > 2 for s in source_symbols):
        axes.tick_params(axis="x", rotation=90)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel(labels[0], fontsize=9, color=_GREY)
    axes.set_ylabel(labels[1], fontsize=9, color=_GREY)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # thin white lines between the cells
    axes.set_xticks(np.arange(-0.5, columns), minor=True)
    axes.set_yticks(np.arange(-0.5, rows), minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.03, shrink=0.8, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=_GREY, length=0)
    if title:
        figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def _shown(symbol: str) -> str:
    return {" ": "␣", "\n": "⏎", "\t": "⇥"}.get(symbol, symbol)


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float] | Sequence[Sequence[float]]]],
    path: Path | str,
    *,
    title: str = "",
    x_label: str = "",
    y_label: str = "",
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    levels: Mapping[str, float] | None = None,
    log: str = "",
) -> Path:
    """Draw labelled lines ``{label: (x, y)}``.

    ``y`` holds a number for each x, or a list of numbers (one a seed): then the mean is drawn in a band from
    the least to the greatest. ``bands``: ``{label: (low, high)}`` shaded around the line of that label.
    ``levels``: ``{label: y}``, dashed horizontals (a claim, a floor). ``log``: the axes with a logarithmic scale,
    "x", "y" or "xy".
    """
    figure = _figure(5.6, 3.6)
    axes = figure.subplots()
    _tidy(axes, title, x_label, y_label)
    if "x" in log:
        axes.set_xscale("log", base=2)
        places = sorted({float(value) for x, _ in lines.values() for value in x})
        axes.set_xticks(places, [f"{value:g}" for value in places])
    if "y" in log:
        axes.set_yscale("log")
    for number, (label, (x, values)) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        y, band = np.asarray(values, dtype=float), (bands or {}).get(label)
        if y.ndim == 2:
            y, band = y.mean(1), band or (y.min(1), y.max(1))
        axes.plot(
            x, y, color=colour, linewidth=1.5, marker="o" if len(x) <= 30 else None, markersize=3, label=label
        )
        if band is not None:
            axes.fill_between(x, *band, color=colour, alpha=0.15, linewidth=0)
    if "x" not in log and all(float(value).is_integer() for x, _ in lines.values() for value in x):
        axes.xaxis.get_major_locator().set_params(integer=True)
    for label, level in (levels or {}).items():
        axes.axhline(level, color=_GREY, linewidth=1.0, linestyle=(0, (4, 3)), label=label)
    if log:  # the lines may be anywhere, so the legend stands below them
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    elif lines or levels:
        axes.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def point_sets(
    panels: Sequence[tuple[str, Sequence[Sequence[float]], Mapping[str, Sequence[int]]]],
    path: Path | str,
    *,
    title: str = "",
    columns: int = 3,
) -> Path:
    """Draw sets of points in the plane with closed ways through some of them, ``columns`` panels a row.

    A panel is (name, points, {label: positions from 1 in the order of the way}). The first way is a wide pale band, so
    that one drawn over it can be told apart from it. The first label of a colour is that of the whole figure.
    """
    from matplotlib.patches import Polygon

    rows = -(-len(panels) // columns)
    figure = _figure(2.2 * columns, 2.3 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    styles = ({"linewidth": 6.0, "alpha": 0.35}, {"linewidth": 1.3}, {"linewidth": 1.3, "linestyle": (0, (4, 3))})
    for axes, (name, points, ways) in zip(grid, panels):
        for number, (label, positions) in enumerate(ways.items()):
            way = [points[k - 1] for k in positions if 1 <= k <= len(points)]
            style = styles[min(number, len(styles) - 1)]
            drawn = Polygon(way or [(0, 0)], fill=False, edgecolor=COLOURS[number], label=label, joinstyle="round", **style)
            drawn.set_visible(bool(way))
            axes.add_patch(drawn)
        axes.plot(*zip(*points), linestyle="", marker="o", markersize=3, color="#222222")
        axes.set_title(name, fontsize=8, loc="left", color="#222222")
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_color("#d5dade")
        axes.margins(0.08)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    handles, names = grid[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=10)
    return _save(figure, path)
