"""Records of trainings -> one comparison, and the comparison as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Mapping, Sequence

from transduce.data.metrics import METRICS

from .quality import behind, count_text, figure, metrics_of, size_text, time_text

if TYPE_CHECKING:
    from rich.table import Table

LIGHT = ("numbers", "training", "speed", "seed", "peak_bytes", "seconds", "measuring_seconds")


def merge(
    about: Mapping[str, Any], labels: Sequence[str], records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """One comparison out of the records of its trainings, systems in the order of their first figure.

    A system that failed under some seed stands in ``failed``; it is compared by the seeds that it has.
    """
    metrics = metrics_of(about["kind"], about["sequence_name"], about["symbol_name"])
    found: list[dict[str, Any]] = []
    seeds: dict[str, list[Mapping[str, Any]]] = {}
    for label in labels:
        mine = [r for r in records if r["label"] == label and "counts" in r]
        if mine:
            seeds[label] = mine
            found.append(_system(label, mine, [m.name for m in metrics], about["scores"]))
    first = _ranking(found, [m.name for m in metrics])
    found.sort(key=lambda s: s["quality"][first]["value"])
    for one in found[1:]:
        one["behind"] = behind(seeds[found[0]["label"]], seeds[one["label"]], first)
    failed = [
        {"name": f"{r['label']}, seed {r['seed']}", "reason": r["failed"]} for r in records if "failed" in r
    ]
    names = [{"name": m.name, "title": m.title, "scale": m.scale, "unit": m.unit} for m in metrics]
    return {"about": dict(about), "metrics": names, "ranked_by": first, "systems": found, "failed": failed}


def _ranking(found: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The first figure, unless hardly a row is right under any system: then it tells nothing apart."""
    if len(names) > 1 and found and min(s["quality"][names[0]]["value"] for s in found) > 0.95:
        return names[1]
    return names[0]


def _system(
    label: str, seeds: Sequence[Mapping[str, Any]], names: Sequence[str], scores: Sequence[str]
) -> dict[str, Any]:
    one = seeds[0]
    rows = len(seeds) and one["rows"]
    mean = lambda values: sum(values) / len(values)
    return {
        "label": label,
        "system": one["system"],
        "config": one["config"],
        "parameters": one["parameters"],
        "weight_bytes": one["weight_bytes"],
        "rows": rows,
        "quality": {name: figure(seeds, name) for name in names},
        "scores": {k: mean([s["numbers"][k] for s in seeds]) for k in scores if k in one["numbers"]},
        "epochs": mean([s["training"]["epochs"] for s in seeds]),
        "steps": mean([s["training"]["steps"] for s in seeds]),
        "trained_seconds": mean([s["training"]["seconds"] for s in seeds]),
        "symbols_per_second": mean([s["speed"]["symbols_per_second"] or 0.0 for s in seeds]),
        "rows_per_second": mean([s["speed"]["rows_per_second"] or 0.0 for s in seeds]),
        "measured_rows_per_second": mean([s["rows"] / max(1e-9, s["measuring_seconds"]) for s in seeds]),
        "peak_bytes": max((s["peak_bytes"] or 0 for s in seeds), default=0) or None,
        "costs": one["costs"],
        "runs": [{k: s[k] for k in LIGHT} for s in seeds],
        "examples": one["examples"],
        "attention": one["attention"],
    }


def at(system: Mapping[str, Any], key: str, length: int) -> float | None:
    """A cost ("bytes", "seconds") of a system behind a length; None where it was refused."""
    return next((c.get(key) for c in system["costs"] if c["length"] == length), None)


def common_length(merged: Mapping[str, Any]) -> int | None:
    """The greatest length, 256 at most, that every system could be measured at; else the greatest of any."""
    sets = [{c["length"] for c in s["costs"] if "bytes" in c} for s in merged["systems"]]
    shared = set.intersection(*sets) if sets else set()
    below = [n for n in shared if n <= 256] or sorted(shared)[:1] or sorted(set().union(*sets))[:1]
    return max(below, default=None)


def interval(metric: Mapping[str, Any], q: Mapping[str, Any]) -> str:
    """ "31.35 [30.47 to 32.15]" in the metric's own scale."""
    shown = [f"{metric['scale'] * q[key]:.2f}" for key in ("value", "low", "high")]
    return f"{shown[0]} [{shown[1]} to {shown[2]}]"


def heading(metric: Mapping[str, Any]) -> str:
    return f"{metric['title']}, {metric['unit']}" if metric["unit"] else metric["title"]


def distance(merged: Mapping[str, Any], system: Mapping[str, Any]) -> str:
    """How far a system is behind the best, and whether the rows tell them apart."""
    gap = system.get("behind")
    if gap is None:
        return "best"
    metric = next(m for m in merged["metrics"] if m["name"] == merged["ranked_by"])
    value = f"+{metric['scale'] * gap['value']:.2f}"
    return value if gap["low"] > 0 else f"{value} (within noise)"


def columns(merged: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the main table, shared by terminal and page."""
    metrics = merged["metrics"]
    scores = [n for n in merged["about"]["scores"] if any(n in s["scores"] for s in merged["systems"])]
    titles = ["system", *map(heading, metrics), *(METRICS[n][0] if n in METRICS else n for n in scores)]
    titles += ["behind", "parameters", "symbols/s", "epochs", "peak memory"]
    rows = []
    for s in merged["systems"]:
        rows.append(
            [
                s["label"],
                *(interval(m, s["quality"][m["name"]]) for m in metrics),
                *(f"{s['scores'][n]:.2f}" if n in s["scores"] else "-" for n in scores),
                distance(merged, s),
                f"{s['parameters']:,}",
                count_text(s["symbols_per_second"]),
                f"{s['epochs']:.1f}",
                size_text(s["peak_bytes"]) if s["peak_bytes"] else "-",
            ]
        )
    return titles, rows


def cost_columns(merged: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """State and latency behind each length."""
    lengths = merged["about"]["lengths"]
    titles = ["system", *(f"state at {n}" for n in lengths), *(f"a symbol at {n}" for n in lengths)]
    show = lambda value, text: "-" if value is None else text(value)
    rows = [
        [
            s["label"],
            *(show(at(s, "bytes", n), size_text) for n in lengths),
            *(show(at(s, "seconds", n), time_text) for n in lengths),
        ]
        for s in merged["systems"]
    ]
    return titles, rows


def overruns(merged: Mapping[str, Any]) -> list[str]:
    """A sentence for each system whose training took clearly more than the budget: not a fair comparison."""
    budget = merged["about"]["budget"]
    return [
        f"{s['label']} trained for {s['trained_seconds']:.0f} s instead of {budget:.0f} s: "
        "the machine was too busy for a budget as short as this."
        for s in merged["systems"]
        if s["trained_seconds"] > 1.15 * budget + 5
    ]


def tables(merged: Mapping[str, Any]) -> list[Table]:
    """The comparison for a terminal."""
    from rich.table import Table

    about = merged["about"]
    made = []
    search = f"beam {about['beam']}" if about["beam"] else "greedy"
    how = "" if about["kind"] == "text" else f", {search}"
    rows = merged["systems"][0]["rows"] if merged["systems"] else 0
    captions = (
        f"{about['corpus']}: {about['budget']:.0f} s each, {about['seeds']} seed(s), "
        f"{rows:,} {about['split']} rows{how}; [95 % bootstrap intervals]",
        "one stream on this machine: bytes of decoder state, and time for one more symbol, behind targets "
        "(and sources) of so many symbols",
    )
    for (titles, lines), caption in zip((columns(merged), cost_columns(merged)), captions):
        table = Table(box=None, pad_edge=False, header_style="bold", title=caption)
        table.title_justify, table.title_style = "left", "dim"
        for number, title in enumerate(titles):
            table.add_column(title, justify="left" if number == 0 else "right", overflow="fold")
        for line in lines:
            table.add_row(*line)  # "[30.1 to" is no markup: that begins with a letter
        made.append(table)
    return made
