"""Our layers against the same layers of other packages, with the same weights: ``python -m benchmarks.witnesses --venvs
FOLDER``.

Another package's layer (``benchmarks/testify.py``) runs in a process and a virtual environment of its own and
writes its weights, inputs and results; here the weights go into our layer, which must give the same outputs,
gradients, states and further steps. The table goes to results/witnesses.json and docs/witnesses.md.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import PEERS, RESULTS
from benchmarks.testify import path_of
from benchmarks.witness_parts import STEPS
from benchmarks.witness_kinds import KINDS
from benchmarks.witness_rules import RULES
from benchmarks.witness_weights import LAYERS
from transduce.core.state import map_tensors

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = LAYERS | KINDS | RULES
LIMITS = {"float64": 1e-12, "float32": 2e-5}
"""Largest error that counts as the same, relative to the larger of 1 and the witness's largest number."""


# ---------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Row:
    """One layer in one dtype. Errors are relative to the larger of 1 and the witness's largest number; ``chunks`` is
    how far the witness, fed in two chunks, is from itself, or what it says when it is. ``problem``: why there are no
    errors."""

    layer: str
    witness: str
    dtype: str
    outputs: float | None = None
    gradient: float | None = None
    states: float | None = None
    steps: float | None = None
    chunks: float | str | None = None
    note: str = ""
    problem: str | None = None

    @property
    def agrees(self) -> bool:
        found = [e for e in (self.outputs, self.gradient, self.states, self.steps) if e is not None]
        return bool(found) and all(e <= LIMITS[self.dtype] for e in found)


def _error(got: Tensor, want: Tensor) -> float:
    if got.shape != want.shape:
        return math.inf
    got, want = got.detach(), want.detach()
    error = float((got.double() - want.double()).abs().max() / want.double().abs().max().clamp(min=1))
    return error if math.isfinite(error) else math.inf


def compare(name: str, dtype: str, found: dict[str, Any]) -> Row:
    """Our layer with the witness's weights on the witness's inputs."""
    entry = ENTRIES[name]
    if "absent" in found:
        return Row(entry.layer, name, dtype, problem=f"absent: {found['absent']}")
    mixer, x = entry.build(found["weights"], found["settings"]), found["x"]
    leaf = x[:, :STEPS].clone().requires_grad_()
    y, _ = mixer(leaf)
    (dx,) = torch.autograd.grad(y, leaf, found["cotangent"])
    row: dict[str, Any] = {"outputs": _error(y, found["y"]), "gradient": _error(dx, found["dx"])}
    if "states" in found:
        with torch.no_grad():
            wide = map_tensors(lambda t: t.to(x.dtype) if t.is_floating_point() else t, mixer.init_state(len(x)))
            _, state = mixer(x[:, :STEPS], wide)
            theirs, ours = entry.theirs(found["states"]), entry.ours(state)
            row["states"] = max(_error(ours[part], theirs[part]) for part in theirs)
            steps = []
            for x_t in x[:, STEPS:].unbind(1):
                y_t, state = mixer(x_t[:, None], state)
                steps.append(y_t)
            row["steps"] = _error(torch.cat(steps, 1), found["stepped"])
        chunked = found["chunked"]
        if not isinstance(chunked, str):
            chunked = _error(chunked[:, :STEPS], found["y"])
        row["chunks"] = chunked
    row["note"] = found["note"]
    return Row(entry.layer, f"{found['package']} {found['version']} {found['layer']}", dtype, **row)


def collect(names: list[str], dtype: str, python: str) -> dict[str, dict[str, Any]]:
    """What the witnesses say, run by this Python in one process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [python, "-m", "benchmarks.testify", dtype, folder, *names]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        found = {}
        for name in names:
            path = path_of(Path(folder), name)
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            found[name] = torch.load(path, weights_only=True) if path.exists() else {"absent": last}
        return found


def _python(home: str | None, venvs: Path | None) -> str | None:
    if home is None:
        return sys.executable
    python = None if venvs is None else venvs / home / "bin" / "python"
    return str(python) if python is not None and python.exists() else None


def gather(venvs: Path | None, only: str = "") -> list[Row]:
    found: dict[tuple[str, str], Row] = {}
    asked = [name for name in ENTRIES if only in name]
    for dtype in LIMITS:
        for home in dict.fromkeys(ENTRIES[name].home for name in asked):
            names = [name for name in asked if ENTRIES[name].home == home]
            python = _python(home, venvs)
            if python is None:
                reason = f"no environment {home}, see {PEERS.name}/{home}.txt and --venvs"
                said = {name: {"absent": reason} for name in names}
            else:
                said = collect(names, dtype, python)
            for name in names:
                found[name, dtype] = compare(name, dtype, said[name])
    return [found[name, dtype] for name in asked for dtype in LIMITS]


# ---------------------------------------------------------------- reporting


def _cell(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.1e}"


PAGE = """# Independent witnesses

Each row is one of our layers with the weights of the same layer of another package, on the same inputs; a name in lower
case is one of our operations (`transduce.ops`), fed the tensors that another package's function is fed. Errors are
relative to the larger of 1 and the witness's largest number: of the outputs of {steps} steps, of the gradient of the
inputs, of the state behind them, and of the outputs of further steps, taken one by one from that state. The witness
runs in a process and an environment of its own and shares no code with ours. In float64 its casts to float32 are
switched off, and what it makes in float32 is made in float64, so that the equation is compared. A row without a state
is of a witness that takes or gives none.

The last column is about the witness alone: how far it is from its own answer when the sequence is fed to it in two
chunks through its cache. Our layers give the same answer for every chunking by law (`transduce laws`).

{table}

{verdict}
{notes}
Made by `python -m benchmarks.witnesses --venvs FOLDER`; the numbers stand in `results/witnesses.json`.
"""


def page(rows: list[Row]) -> str:
    titles = ("layer", "witness", "dtype", "outputs", "gradient", "state", "steps", "the witness in chunks")
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for r in rows:
        errors = [_cell(e) for e in (r.outputs, r.gradient, r.states, r.steps, r.chunks)]
        cells = [r.layer, r.witness, r.dtype, *(errors if r.problem is None else [r.problem])]
        lines.append("| " + " | ".join(cells) + " |")
    agree, asked = sum(r.agrees for r in rows), sum(r.problem is None for r in rows)
    limits = " and ".join(f"{limit:g} in {dtype}" for dtype, limit in LIMITS.items())
    verdict = f"{agree} of {asked} rows agree everywhere, within {limits}."
    astray = sorted({f"{r.layer} ({r.witness})" for r in rows
                     if isinstance(r.chunks, float) and r.chunks > 10 * LIMITS[r.dtype]})  # fmt: skip
    if astray:
        verdict += " Witnesses that contradict themselves when fed in chunks: " + ", ".join(astray) + "."
    notes = dict.fromkeys(f"* {r.witness}: {r.note}." for r in rows if r.note)
    notes = "\nWhat had to be changed in a witness, or worked around:\n\n" + "\n".join(notes) + "\n" if notes else ""
    return PAGE.format(steps=STEPS, table="\n".join(lines), verdict=verdict, notes=notes)


def updated(before: list[dict[str, Any]], rows: list[Row]) -> list[Row]:
    """The rows of an earlier record, with those of the same layer, package and dtype replaced."""
    key = lambda r: (r.layer, *r.witness.split(" ")[:1], *r.witness.split(" ")[2:], r.dtype)
    old = [Row(**{k: v for k, v in row.items() if k != "agrees"}) for row in before]
    new = {key(r): r for r in rows}
    return [new.pop(key(r), r) for r in old] + list(new.values())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venvs", type=Path, help="folder of the witnesses' virtual environments")
    parser.add_argument("--only", default="", help="witnesses whose name contains this; other rows stay as they were")
    options = parser.parse_args(arguments)
    rows = gather(options.venvs, options.only)
    path = RESULTS / "witnesses.json"
    if options.only and path.exists():
        rows = updated(json.loads(path.read_text())["rows"], rows)
    text = page(rows)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    content = {
        "command": "python -m benchmarks.witnesses --venvs FOLDER",
        "limits": LIMITS,
        "rows": [{**asdict(r), "agrees": r.agrees} for r in rows],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    (ROOT / "docs" / "witnesses.md").write_text(text)
    return 0 if all(r.agrees for r in rows if r.problem is None) else 1


if __name__ == "__main__":
    raise SystemExit(main())
