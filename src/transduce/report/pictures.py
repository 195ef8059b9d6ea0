"""Pictures of a comparison, on light and on dark ground. matplotlib is imported only to draw."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Mapping, Sequence

import numpy as np

from transduce.train.storage import replace_file, writing

from .quality import size_text, time_text
from .table import at, common_length, heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    ground: str
    ink: str
    quiet: str
    grid: str
    colours: tuple[str, ...]
    heat: tuple[str, str]
    """From no attention to all of it."""


LIGHT = Theme(
    "#ffffff", "#1d2327", "#5b6770", "#e6e9ec",
    ("#1f5fa8", "#d1495b", "#2a9d6f", "#c77d12", "#7a5195", "#3d7f8c", "#a0522d", "#5b6770"),
    ("#ffffff", "#1f5fa8"),
)  # fmt: skip
DARK = Theme(
    "#171b1f", "#e8ecef", "#9aa6af", "#2c333a",
    ("#6aa7ea", "#f0808e", "#5fd0a1", "#f0b357", "#bb96d8", "#74c0cd", "#d8916b", "#9aa6af"),
    ("#171b1f", "#8cc2ff"),
)  # fmt: skip
MARKERS = "osD^vPX*"

Draw = Callable[["Axes", Mapping[str, Any], Theme], None]


def new_figure(width: float, height: float, theme: Theme) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, layout="constrained", facecolor=theme.ground)
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(
        picture, format="png", facecolor=figure.get_facecolor(), bbox_inches="tight", pad_inches=0.1
    )
    return picture.getvalue()


def as_uri(picture: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(picture).decode()


def both(draw: Draw, merged: Mapping[str, Any], width: float = 5.2, height: float = 3.5) -> tuple[str, str]:
    """One panel as two data URIs, for light and for dark ground."""
    uris = []
    for theme in (LIGHT, DARK):
        figure = new_figure(width, height, theme)
        draw(figure.subplots(), merged, theme)
        uris.append(as_uri(to_png(figure)))
    return uris[0], uris[1]


def overview(merged: Mapping[str, Any], path: Path) -> Path:
    """All panels in one PNG, written atomically."""
    figure = new_figure(15.0, 7.6, LIGHT)
    about = merged["about"]
    figure.suptitle(
        f"{about['corpus']}: {about['budget']:.0f} s of training each, {about['seeds']} seed"
        + ("s" if about["seeds"] > 1 else ""),
        fontsize=13, color=LIGHT.ink,
    )  # fmt: skip
    for axes, draw in zip(figure.subplots(2, 3).flat, PANELS.values()):
        draw(axes, merged, LIGHT)
    with writing(path):
        replace_file(path, to_png(figure))
    return path


def tidy(axes: Axes, theme: Theme, title: str, x: str, y: str) -> None:
    axes.set_facecolor(theme.ground)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme.quiet)
    axes.tick_params(colors=theme.quiet, labelsize=8, which="both")
    axes.grid(color=theme.grid, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(x, fontsize=9, color=theme.quiet)
    axes.set_ylabel(y, fontsize=9, color=theme.quiet)
    axes.set_title(title, fontsize=10.5, loc="left", color=theme.ink)


def legend(axes: Axes, theme: Theme) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, labelcolor=theme.ink)


def _look(merged: Mapping[str, Any], theme: Theme) -> list[tuple[Mapping[str, Any], str, str]]:
    """Every system with its colour and marker. They go by name, so that they stay when the ranking moves."""
    order = {label: i for i, label in enumerate(merged["about"]["systems"])}
    return [
        (
            s,
            theme.colours[order[s["label"]] % len(theme.colours)],
            MARKERS[order[s["label"]] % len(MARKERS)],
        )
        for s in merged["systems"]
    ]


def _metric(merged: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(m for m in merged["metrics"] if m["name"] == merged["ranked_by"])


# ---------------------------------------------------------------- panels


def learning(axes: Axes, merged: Mapping[str, Any], theme: Theme) -> None:
    """Held-out figure over training time, a line a seed."""
    metric = _metric(merged)
    tidy(axes, theme, "Learning curves (held-out rows)", "seconds of training", heading(metric))
    for s, colour, marker in _look(merged, theme):
        for number, run in enumerate(s["runs"]):
            points = [
                (r["seconds"], metric["scale"] * r[metric["name"]])
                for r in run["speed"]["curve"]
                if metric["name"] in r
            ]
            if points:
                axes.plot(
                    *zip(*points), color=colour, linewidth=1.5, marker=marker, markersize=3.5,
                    alpha=1.0 if number == 0 else 0.55, label=s["label"] if number == 0 else None,
                )  # fmt: skip
    axes.set_xlim(left=0.0)
    legend(axes, theme)


def quality(axes: Axes, merged: Mapping[str, Any], theme: Theme) -> None:
    """The first figure with its interval, and a small mark for each seed."""
    metric = _metric(merged)
    tidy(
        axes,
        theme,
        f"{metric['title'].capitalize()}, 95 % interval",
        f"{heading(metric)} (less is better)",
        "",
    )
    looks = _look(merged, theme)
    for place, (s, colour, marker) in enumerate(looks):
        q = s["quality"][metric["name"]]
        value, low, high = (metric["scale"] * q[k] for k in ("value", "low", "high"))
        axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
        axes.plot(value, place, marker=marker, color=colour, markersize=7)
        if len(q["seeds"]) > 1:
            seeds = [metric["scale"] * v for v in q["seeds"]]
            axes.plot(seeds, [place + 0.22] * len(seeds), "|", color=colour, markersize=7)
        axes.annotate(
            f"{value:.2f}", (high, place), textcoords="offset points", xytext=(6, 0), va="center",
            fontsize=8.5, color=theme.ink,
        )  # fmt: skip
    axes.set_yticks(range(len(looks)), [s["label"] for s, *_ in looks], fontsize=9, color=theme.ink)
    axes.set_ylim(len(looks) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.14)


def _against(key: str, title: str, unit: str) -> Draw:
    """The first figure against a cost of decoding."""

    def draw(axes: Axes, merged: Mapping[str, Any], theme: Theme) -> None:
        metric, length = _metric(merged), common_length(merged)
        tidy(axes, theme, title, f"{unit} behind {length} symbols (log)", heading(metric))
        points = []
        for s, colour, marker in _look(merged, theme):
            cost = None if length is None else at(s, key, length)
            if not cost:
                continue
            q = s["quality"][metric["name"]]
            value, low, high = (metric["scale"] * q[k] for k in ("value", "low", "high"))
            axes.errorbar(
                [cost], [value], [[max(0.0, value - low)], [max(0.0, high - value)]], color=colour,
                marker=marker, markersize=7, linewidth=1.3, capsize=2,
            )  # fmt: skip
            points.append((cost, value, s["label"]))
        if points:
            axes.set_xscale("log")
            _room(axes, [p[0] for p in points])
            axes.minorticks_off()
            _ticks(axes.xaxis, size_text if key == "bytes" else time_text)
            _place_names(axes, points, theme)

    return draw


def _room(axes: Axes, values: Sequence[float]) -> None:
    """Limits of a log axis with air on both sides, at least a factor of four in all."""
    low, high = min(values), max(values)
    air = max(1.6, (high / low) ** 0.18)
    axes.set_xlim(low / air, high * air**1.8)


def _place_names(axes: Axes, points: Sequence[tuple[float, float, str]], theme: Theme) -> None:
    """Names right of their points; one that would lie on its neighbour is moved below or above."""
    low, high = axes.get_ylim()
    placed: list[tuple[float, float]] = []
    for x, y, name in sorted(points, key=lambda p: (p[1], p[0])):
        crowded = [q for q in placed if abs(q[1] - y) < 0.05 * (high - low) and 0.3 < q[0] / x < 3]
        drop = (0, 11, -11, 20)[min(3, len(crowded))]
        axes.annotate(
            name, (x, y), textcoords="offset points", xytext=(8, drop), va="center", fontsize=8.5,
            color=theme.ink,
        )  # fmt: skip
        placed.append((x, y))


def _ticks(axis: Any, text: Callable[[float], str]) -> None:
    """Few ticks at round places, in readable units. ``text``: a value in words."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    base = 2.0 if text is size_text else 10.0
    low, high = axis.get_view_interval()
    if base == 2.0:
        doublings = max(1, round(np.log2(max(high / low, 2.0)) / 5))
        axis.set_major_locator(LogLocator(base=2.0**doublings, numticks=12))
    else:
        subs = (1.0, 2.0, 5.0) if high / low < 30 else (1.0, 3.0) if high / low < 1000 else (1.0,)
        axis.set_major_locator(LogLocator(base=10.0, subs=subs))
    axis.set_major_formatter(
        FuncFormatter(lambda value, _: text(value).replace(".00 ", " ").replace(".0 ", " "))
    )
    axis.set_minor_formatter(NullFormatter())


def _growth(key: str, title: str, unit: str) -> Draw:
    """A cost of decoding over the length, both logarithmic."""

    def draw(axes: Axes, merged: Mapping[str, Any], theme: Theme) -> None:
        tidy(axes, theme, title, "symbols behind (log)", unit)
        drawn = []
        for s, colour, marker in _look(merged, theme):
            points = [(c["length"], c[key]) for c in s["costs"] if c.get(key)]
            if points:
                axes.plot(
                    *zip(*points), color=colour, marker=marker, markersize=5, linewidth=1.5, label=s["label"]
                )
                drawn += points
        if drawn:
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            lengths = sorted({n for n, _ in drawn})
            axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
            axes.minorticks_off()
            if max(v for _, v in drawn) < 3 * min(v for _, v in drawn):
                axes.set_ylim(min(v for _, v in drawn) / 2, max(v for _, v in drawn) * 2)
            _ticks(axes.yaxis, size_text if key == "bytes" else time_text)
        legend(axes, theme)

    return draw


PANELS: Mapping[str, Draw] = {
    "learning": learning,
    "quality": quality,
    "latency": _against("seconds", "Quality against latency", "time for one more symbol"),
    "state": _against("bytes", "Quality against state", "state of one stream"),
    "state-growth": _growth("bytes", "State of one stream", "bytes (log)"),
    "latency-growth": _growth("seconds", "Time for one more symbol", "time (log)"),
}


def attention(found: Mapping[str, Any], theme: Theme, title: str) -> bytes:
    """Attention of one answer to its source, target down and source across."""
    from matplotlib.colors import LinearSegmentedColormap

    matrix = np.asarray(found["weights"], dtype=float)
    rows, cells = matrix.shape
    figure = new_figure(max(2.4, 0.3 * cells + 1.5), max(2.2, 0.3 * rows + 1.1), theme)
    axes = figure.subplots()
    shades = LinearSegmentedColormap.from_list("attention", theme.heat)
    axes.imshow(matrix, cmap=shades, vmin=0.0, vmax=max(1e-9, float(matrix.max())), aspect="equal")
    show = lambda symbols: [{" ": "␣", "\n": "⏎", "\t": "⇥"}.get(s, s) for s in symbols]
    axes.set_xticks(range(cells), show(found["source"]), fontsize=9)
    axes.set_yticks(range(rows), show(found["target"]), fontsize=9)
    if any(len(s) > 2 for s in found["source"]):
        axes.tick_params(axis="x", rotation=90)
    axes.xaxis.tick_top()
    axes.tick_params(length=0, colors=theme.ink, which="both")
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(-0.5, cells), minor=True)
    axes.set_yticks(np.arange(-0.5, rows), minor=True)
    axes.grid(which="minor", color=theme.grid, linewidth=0.8)
    axes.set_title(title, fontsize=10.5, loc="left", color=theme.ink)
    return to_png(figure)
