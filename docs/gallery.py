"""Write the gallery: ``python docs/gallery.py`` makes docs/gallery/NAME.md of every system page, from the registry and
results/, and the table of systems in README.md. ``--check`` writes nothing and fails where something is out of date."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from transduce import systems
from transduce.cli.options import field_docs
from transduce.core.registry import Page

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- systems: made by docs/gallery.py -->", "<!-- end of systems -->"


def records(name: str) -> list[tuple[Path, dict[str, Any]]]:
    """results/NAME.json and results/NAME-*.json, those of systems with a longer name left out."""
    longer = [other for other in systems.names() if other.startswith(f"{name}-")]
    found = []
    for path in sorted((ROOT / "results").glob(f"{name}*.json")):
        stem = path.stem
        if stem == name or (stem.startswith(f"{name}-") and not any(stem == o or stem.startswith(f"{o}-") for o in longer)):
            found.append((path, json.loads(path.read_text())))
    for _, record in found:
        record["apart"] = apart(record, [other for _, other in found])
    return found


def apart(record: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """The settings in which a training run differs from the other ones on the same corpus."""
    if "training" not in record:
        return ""
    same = [r["config"] for r in records if "training" in r and r["corpus"]["name"] == record["corpus"]["name"]]
    return "".join(
        f", {name} {value}" for name, value in record["config"].items() if any(c.get(name) != value for c in same)
    )


def figures(name: str) -> list[Path]:
    longer = [other for other in systems.names() if other.startswith(f"{name}-")]
    paths = sorted((ROOT / "results").glob(f"{name}-*.png"))
    return [p for p in paths if not any(p.stem.startswith(f"{o}-") for o in longer)]


def number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.4g}"


def claim(measured: dict[str, Any]) -> str:
    if measured.get("at_most") is not None:
        return f"at most {number(measured['at_most'])}"
    return f"at least {number(measured['at_least'])}" if measured.get("at_least") is not None else "report only"


def check_table(record: dict[str, Any]) -> list[str]:
    lines = ["| measured | value | baseline | claim | |", "|---|---|---|---|---|"]
    for m in record["measured"]:
        verdict = "" if claim(m) == "report only" else "holds" if m["holds"] else "**missed**"
        base = "" if m.get("baseline") is None else number(m["baseline"])
        lines.append(f"| {m['metric']} | {number(m['value'])} | {base} | {claim(m)} | {verdict} |")
    return lines


def run_lines(record: dict[str, Any]) -> list[str]:
    """One line a measurement of a training run."""
    corpus, training = record["corpus"], record["training"]
    lines = []
    for split, found in record["measured"].items():
        said = [
            f"{corpus[key]} {100 * found[field]:.2f} %"
            for field, key in (("sequence_error", "sequence_name"), ("symbol_error", "symbol_name"))
            if field in found
        ]
        said += [f"{found[k]:.3f} {k.replace('_', ' ')}" for k in ("bits_per_character",) if k in found]
        said += [f"{k} {found[k]:.2f}" for k in ("bleu", "chrf", "rouge1") if k in found]
        minutes, threads = training["seconds"] / 60, training.get("threads", "?")
        lines.append(
            f"* {corpus['name']}, {split.replace('-', ' ')}: {', '.join(said)} "
            f"({training['steps']:,} steps, {minutes:.0f} minutes on {threads} thread{'' if threads == 1 else 's'}{record['apart']})"
        )
    return lines


def page_text(page: Page) -> str:
    module = importlib.import_module(page.build.__module__)
    docs, defaults = field_docs(page.config_type), page.config_type()
    lines = [f"# `{page.name}`: {page.title}", "", f"{page.paper}. Trains on {page.kind}.", ""]
    lines += ["```text", inspect.getdoc(module) or page.doc, "```", ""]
    lines += ["```sh", f"transduce show {page.name}"]
    if page.reproduce is not None:
        lines.append(f"transduce reproduce {page.name}")
    lines += ["```", "", "## Measured", ""]
    found = records(page.name)
    if not found:
        lines += ["Nothing on real data yet; the page obeys all laws and learns one batch (`tests/test_systems.py`).", ""]
    for path, record in found:
        link = f"[{path.name}](../../results/{path.name})"
        if isinstance(record.get("measured"), list):
            verdict = "all claims hold" if record.get("passed") else "not all claims hold"
            lines += [f"`{record['command']}`: {verdict} ({link})", "", *check_table(record), ""]
        elif isinstance(record.get("measured"), dict) and "training" in record:
            lines += [*run_lines(record), "", f"  {link}" + (f", `{record['command']}`" if "command" in record else ""), ""]
    for path in figures(page.name):
        lines += [f"![{path.stem}](../../results/{path.name})", ""]
    lines += ["## Settings", "", "| setting | default | |", "|---|---|---|"]
    lines += [f"| `{n}` | `{getattr(defaults, n)}` | {text.replace('|', '/')} |" for n, text in docs.items()]
    return "\n".join(lines) + "\n"


def state(page: Page) -> str:
    said = []
    for path, record in records(page.name):
        if isinstance(record.get("measured"), list):
            judged = [m for m in record["measured"] if claim(m) != "report only"]
            held = sum(m["holds"] for m in judged)
            said.append(f"[{held} of {len(judged)} claims of its check hold](results/{path.name})")
        elif isinstance(record.get("measured"), dict) and "training" in record:
            found = min(record["measured"].items(), key=lambda item: item[1].get("sequence_error", 9))
            line = run_lines({**record, "measured": dict([found])})[0].removeprefix("* ")
            said.append(f"[{line}](results/{path.name})")
    return "; ".join(said) or "laws and one-batch check"


def table() -> str:
    lines = [BEGIN, "| system | what it is | data | measured |", "|---|---|---|---|"]
    for name in systems.names():
        page = systems.find(name)
        lines.append(f"| [`{name}`](docs/gallery/{name}.md) | {page.title} | {page.kind} | {state(page)} |")
    return "\n".join([*lines, END])


def wanted() -> dict[Path, str]:
    """Every generated file and what it must hold."""
    files = {ROOT / "docs" / "gallery" / f"{n}.md": page_text(systems.find(n)) for n in systems.names()}
    readme = (ROOT / "README.md").read_text()
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return files | {ROOT / "README.md": before + table() + after}


def main() -> int:
    stale = [p for p, text in wanted().items() if not p.exists() or p.read_text() != text]
    if "--check" in sys.argv:
        print("\n".join(f"out of date: {p.relative_to(ROOT)}" for p in stale) or "up to date")
        return int(bool(stale))
    for path, text in wanted().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(f"{len(stale)} files written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
