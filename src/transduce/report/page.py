"""A comparison as one HTML file that needs nothing else: no script, no link, pictures inside."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any, Mapping, Sequence

from transduce.train.storage import replace_file, writing

from .pictures import DARK, LIGHT, PANELS, as_uri, attention, both
from .table import columns, cost_columns, distance, overruns

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1d2327; --quiet: #5b6770; --line: #e1e5e9;
  --band: #f5f7f9; --good: #1b7f52; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ground: #171b1f; --ink: #e8ecef; --quiet: #9aa6af;
  --line: #2c333a; --band: #1e2429; --good: #5fd0a1; --bad: #ff9a93; } }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--ground);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p, li { max-width: 52rem; } .quiet { color: var(--quiet); font-size: .92rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .92rem; min-width: 30rem; }
th, td { padding: .42rem .8rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } th { color: var(--quiet); font-weight: 600; }
tbody tr:first-child td { background: var(--band); font-weight: 600; }
.plain tbody tr:first-child td { background: none; font-weight: 400; }
.examples td, .examples th { text-align: left; white-space: normal; vertical-align: top; }
.right { color: var(--good); } .wrong { color: var(--bad); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(22rem, 1fr)); gap: 1rem; }
.maps { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; } .maps img { max-height: 34rem; }
img { max-width: 100%; height: auto; border-radius: 6px; } figure { margin: 0; }
code, pre { font: .86rem/1.5 ui-monospace, monospace; } pre { background: var(--band); padding: .8rem 1rem;
  border-radius: 6px; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
"""

ALT = {
    "learning": "Held-out error of every system over training time",
    "quality": "Figure of every system with its interval",
    "latency": "Figure of every system against the time for one more symbol",
    "state": "Figure of every system against the bytes of its state",
    "state-growth": "Bytes of state over the length of the target",
    "latency-growth": "Time for one more symbol over the length of the target",
}


def write_page(merged: Mapping[str, Any], path: Path) -> Path:
    """Write the page atomically. ``merged``: what :func:`transduce.report.table.merge` returns."""
    with writing(path):
        replace_file(path, page(merged).encode())
    return path


def page(merged: Mapping[str, Any]) -> str:
    """The whole page as text."""
    about, say = merged["about"], html.escape
    names = [s["label"] for s in merged["systems"]]
    title = f"{', '.join(names)} on {about['corpus']}"
    parts = [
        f"<h1>{say(about['corpus'])}: {len(names)} systems under one budget</h1>",
        f"<p class=quiet>{say(_conditions(merged))}</p>",
        f"<p>{say(_summary(merged))}</p>",
        _table(*columns(merged)),
        "<p class=quiet>In brackets: 95&nbsp;% bootstrap interval over the rows, pooled over seeds. behind: "
        "distance to the best on the same rows; &ldquo;within noise&rdquo; where the 95&nbsp;% interval of a "
        "paired bootstrap holds 0. symbols/s: source and target symbols trained on a second.</p>",
        *(f"<p><b>Not fair:</b> {say(sentence)}</p>" for sentence in overruns(merged)),
        *_failures(merged),
        "<h2>Pictures</h2><div class=pictures>",
        *(_picture(both(draw, merged), ALT[name]) for name, draw in PANELS.items()),
        "</div>",
        "<h2>What one stream costs</h2>",
        _table(*cost_columns(merged), kind="plain"),
        "<p class=quiet>Batch 1. state: bytes that the decoder carries, the memory it attends to included, "
        "behind a target (and a source) of so many symbols. a symbol: median time for one more. "
        f"A dash: refused or too slow to measure.{say(_refusals(merged))}</p>",
        *_maps(merged),
        *_examples(merged),
        "<h2>Settings</h2>",
        *_settings(merged),
        "<h2>Again</h2>",
        f"<pre>{say(about['command'])}</pre>",
    ]
    return (
        f"<!doctype html>\n<html lang=en><head><meta charset=utf-8><title>{say(title)}</title>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _conditions(merged: Mapping[str, Any]) -> str:
    about = merged["about"]
    machine = next((r["training"] for s in merged["systems"] for r in s["runs"]), {})
    rows = merged["systems"][0]["rows"] if merged["systems"] else 0
    how = "" if about["kind"] == "text" else f", beam {about['beam']}" if about["beam"] else ", greedy"
    return (
        f"{about['budget']:.0f} s of training each, {about['seeds']} seed{'s' * (about['seeds'] > 1)}, "
        f"one after another on {about['device']} with {machine.get('threads', '?')} thread(s); "
        f"measured on {rows:,} {about['split']} rows{how}."
    )


def _summary(merged: Mapping[str, Any]) -> str:
    """Two sentences: who leads, by how much, and who decodes from the least state."""
    found = merged["systems"]
    if not found:
        return "No training came to an end."
    metric = next(m for m in merged["metrics"] if m["name"] == merged["ranked_by"])
    unit = f" {metric['unit']}" if metric["unit"] else ""
    value = metric["scale"] * found[0]["quality"][metric["name"]]["value"]
    said = f"{found[0]['label']} leads with {metric['title']} {value:.2f}{unit}"
    if len(found) > 1:
        said += f", {found[1]['label']} follows ({distance(merged, found[1])})"
    constant = [s["label"] for s in found if _constant(s)]
    if constant and len(constant) < len(found):
        said += f". The state of {', '.join(constant)} does not grow with the length"
    return said + "."


def _constant(system: Mapping[str, Any]) -> bool:
    sizes = [c["bytes"] for c in system["costs"] if "bytes" in c]
    return len(sizes) > 1 and max(sizes) == min(sizes)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    head = "".join(f"<th>{html.escape(t)}</th>" for t in titles)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    inside = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class=scroll><table class="{kind}">{inside}</table></div>'


def _picture(uris: tuple[str, str], alt: str, width: int | None = None) -> str:
    light, dark = uris
    size = "" if width is None else f" width={width}"
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{html.escape(alt)}"{size}></picture></figure>'
    )


def _failures(merged: Mapping[str, Any]) -> list[str]:
    if not merged["failed"]:
        return []
    lines = [
        f"<li><b>{html.escape(f['name'])}</b>: {html.escape(f['reason'])}</li>" for f in merged["failed"]
    ]
    return ["<p>Failed:</p><ul>", *lines, "</ul>"]


def _refusals(merged: Mapping[str, Any]) -> str:
    """Why cells are empty, once for each system and reason."""
    said: dict[tuple[str, str], list[str]] = {}
    for s in merged["systems"]:
        for c in s["costs"]:
            if "refused" in c:
                said.setdefault((s["label"], c["refused"].rstrip(".")), []).append(str(c["length"]))
    return "".join(f" {label} at {', '.join(at)}: {why}." for (label, why), at in said.items())


def _maps(merged: Mapping[str, Any]) -> list[str]:
    drawn = [
        _picture(
            tuple(as_uri(attention(s["attention"], theme, s["label"])) for theme in (LIGHT, DARK)),
            f"Attention of {s['label']}",
            width=80 + 22 * len(s["attention"]["source"]),  # cells of one size in all maps
        )
        for s in merged["systems"]
        if s["attention"]
    ]
    without = [s["label"] for s in merged["systems"] if not s["attention"]]
    if not drawn:
        return []
    note = f" None from {', '.join(without)}: nothing there attends to the source." if without else ""
    return [
        "<h2>Attention</h2>",
        "<p class=quiet>The same source under each model's own answer; target down, source across, averaged "
        f"over heads and layers.{html.escape(note)}</p>",
        "<div class=maps>",
        *drawn,
        "</div>",
    ]


def _examples(merged: Mapping[str, Any]) -> list[str]:
    found = merged["systems"]
    if not found or not found[0]["examples"]:
        return []
    say = html.escape
    if merged["about"]["kind"] == "text":
        texts = [
            f"<h3>{say(s['label'])}</h3><pre>{say(e['source'] + e['answer'])}</pre>"
            for s in found
            for e in s["examples"]
        ]
        return ["<h2>What they write</h2>", *texts]
    head = "".join(f"<th>{say(t)}</th>" for t in ("source", "reference", *(s["label"] for s in found)))
    rows = []
    for number, example in enumerate(found[0]["examples"]):
        answers = [s["examples"][number] for s in found]
        marks = [("right", "✓") if a["right"] else ("wrong", "✗") for a in answers]
        cells = "".join(
            f"<td class={kind}>{mark} {say(a['answer'])}</td>"
            for (kind, mark), a in zip(marks, answers, strict=True)
        )
        rows.append(f"<tr><td>{say(example['source'])}</td><td>{say(example['reference'])}</td>{cells}</tr>")
    return [
        "<h2>Answers side by side</h2>",
        f'<div class=scroll><table class="examples plain"><thead><tr>{head}</tr></thead><tbody>',
        *rows,
        "</tbody></table></div>",
    ]


def _settings(merged: Mapping[str, Any]) -> list[str]:
    lines = []
    for s in merged["systems"]:
        shown = ", ".join(f"{k} {v}" for k, v in s["config"].items())
        train = s["runs"][0]["training"]
        keys = ("learning_rate", "schedule", "warmup", "batch_symbols", "weight_decay", "ema", "precision")
        trained = ", ".join(f"{k} {train[k]}" for k in keys if k in train)
        lines.append(
            f"<li><b>{html.escape(s['label'])}</b> ({html.escape(s['system'])}): {html.escape(shown)}; "
            f"trained with {html.escape(trained)}.</li>"
        )
    return ["<ul class=quiet>", *lines, "</ul>"]
