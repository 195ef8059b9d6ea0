"""Our layers against the same layers of other packages, with the same weights: ``python -m benchmarks.witnesses --venvs
FOLDER``.

Another package's layer (``benchmarks/witness_layers.py``) runs in a process and a virtual environment of its own and
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
from typing import Any, Callable, Mapping

import torch
from torch import Tensor, nn

from benchmarks.harness import PEERS, RESULTS
from benchmarks.witness_layers import DIM, STEPS, path_of
from transduce.core.protocols import Mixer
from transduce.core.state import leaves, map_tensors
from transduce.nn import MLSTM, RWKV4, GatedDeltaNet, GriffinRecurrent, Mamba, Mamba2, MinGRU, from_torch

ROOT = Path(__file__).resolve().parent.parent
Weights = Mapping[str, Tensor]
LIMITS = {"float64": 1e-12, "float32": 2e-5}
"""Largest error that counts as the same, relative to the larger of 1 and the witness's largest number."""


# ---------------------------------------------------------------- weights of theirs in layers of ours


def _load(mixer: Mixer, weights: Weights) -> Mixer:
    """``weights`` by our names; every parameter must be named."""
    own = dict(mixer.named_parameters())
    missing, unknown = own.keys() - weights.keys(), weights.keys() - own.keys()
    assert not missing and not unknown, f"not given {sorted(missing)}, unknown {sorted(unknown)}"
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(weights[name])
    return mixer


def _conv(w: Weights, name: str = "conv1d") -> dict[str, Tensor]:
    """A depthwise nn.Conv1d; a missing bias is zero."""
    weight = w[f"{name}.weight"][:, 0]
    return {"weight": weight, "bias": w.get(f"{name}.bias", torch.zeros_like(weight[:, 0]))}


def _under(prefix: str, parts: Weights) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in parts.items()}


def mamba(w: Weights, settings: Mapping[str, Any]) -> Mixer:
    rank, states = w["dt_proj.weight"].shape[1], w["A_log"].shape[1]
    renamed = {
        "input.weight": w["in_proj.weight"],
        "select.weight": w["x_proj.weight"],
        "step.weight": w["dt_proj.weight"],
        "step.bias": w["dt_proj.bias"],
        "log_rates": w["A_log"],
        "skip": w["D"],
        "output.weight": w["out_proj.weight"],
    }
    return _load(Mamba(DIM, states=states, rank=rank).to(w["D"].dtype), renamed | _under("conv", _conv(w)))


def mamba2(w: Weights, settings: Mapping[str, Any]) -> Mixer:
    heads, inner = len(w["D"]), w["out_proj.weight"].shape[1]
    groups, states = 2, (w["conv1d.weight"].shape[0] - inner) // 4
    renamed = {
        "input.weight": w["in_proj.weight"],
        "step_bias": w["dt_bias"],
        "log_rates": w["A_log"],
        "skip": w["D"],
        "gain": w["norm.weight"],
        "output.weight": w["out_proj.weight"],
    }
    mixer = Mamba2(DIM, heads, states=states, groups=groups, expansion=inner / DIM).to(w["D"].dtype)
    return _load(mixer, renamed | _under("conv", _conv(w)))


def griffin(w: Weights, settings: Mapping[str, Any]) -> Mixer:
    joined = lambda kind: torch.cat((w[f"rg_lru.recurrent_gate_{kind}"], w[f"rg_lru.input_gate_{kind}"]), -1)
    renamed = {f"{ours}.{part}": w[f"{theirs}.{part}"]
               for ours, theirs in (("branch", "linear_y"), ("input", "linear_x"), ("output", "linear_out"))
               for part in ("weight", "bias")}  # fmt: skip
    renamed |= {f"recurrence.gates.{part}": joined(part) for part in ("weight", "bias")}
    renamed["recurrence.rate"] = rate = w["rg_lru.recurrent_param"]
    heads = len(renamed["recurrence.gates.bias"])
    mixer = GriffinRecurrent(DIM, len(rate), heads).to(rate.dtype)
    return _load(mixer, renamed | _under("conv", _conv(w, "conv_1d")))


def rwkv4(w: Weights, settings: Mapping[str, Any]) -> Mixer:
    mix = torch.stack([w[f"time_mix_{part}"][0, 0] for part in ("receptance", "key", "value")])
    renamed = {"shift.mix": mix[None], "decay": w["time_decay"], "bonus": w["time_first"]}
    renamed |= {f"{part}.weight": w[f"{part}.weight"] for part in ("receptance", "key", "value", "output")}
    return _load(RWKV4(DIM).to(mix.dtype), renamed)


def mlstm(w: Weights, settings: Mapping[str, Any]) -> Mixer:
    renamed = {
        "input.weight": torch.cat([w[f"{part}.weight"] for part in ("q", "k", "v", "ogate_preact")]),
        "gates.weight": torch.cat((w["igate_preact.weight"], w["fgate_preact.weight"])),
        "gates.bias": torch.cat((w["igate_preact.bias"], w["fgate_preact.bias"])),
        "norm": w["multihead_norm.weight"].flatten(),
        "output.weight": w["out_proj.weight"],
    }
    heads = len(w["igate_preact.bias"])
    return _load(MLSTM(DIM, heads, **settings).to(w["q.weight"].dtype), renamed)


def gated_delta(w: Weights, settings: Mapping[str, Any]) -> Mixer:
    heads, keys = len(w["A_log"]), DIM // len(w["A_log"])
    values = w["out_proj.weight"].shape[1] // heads
    q, k, v, z = w["in_proj_qkvz.weight"].view(heads, -1, DIM).split((keys, keys, values, values), 1)
    b, a = w["in_proj_ba.weight"].view(heads, 2, DIM).unbind(1)
    renamed = {
        "rule.input.weight": torch.cat([part.flatten(0, 1) for part in (q, k, v)]),
        "strength.weight": b,
        "decay.weight": a,
        "decay.bias": w["dt_bias"],
        "rate": w["A_log"],
        "output.gain": w["norm.weight"],
        "output.gate.weight": z.flatten(0, 1),
        "output.output.weight": w["out_proj.weight"],
    }
    mixer = GatedDeltaNet(DIM, heads, expansion=values // keys).to(a.dtype)
    return _load(mixer, renamed | _under("rule.conv", _conv(w)))


def _torch(kind: str) -> Callable[[Weights, Mapping[str, Any]], Mixer]:
    def build(w: Weights, settings: Mapping[str, Any]) -> Mixer:
        module = getattr(nn, kind)(DIM, DIM, batch_first=True).to(w["weight_hh_l0"].dtype)
        module.load_state_dict(dict(w))
        return from_torch(module)

    return build


def min_gru(w: Weights, settings: Mapping[str, Any]) -> Mixer:
    hidden, gate = w["to_hidden_and_gate.weight"].chunk(2)
    out = w["to_out.weight"]
    renamed = {"input.weight": torch.cat((gate, hidden)), "input.bias": torch.zeros(2 * len(gate)),
               "project.weight": out, "project.bias": torch.zeros(DIM)}  # fmt: skip
    return _load(MinGRU(DIM, expansion=len(gate) / DIM, form="log").to(out.dtype), renamed)


# ---------------------------------------------------------------- states in common terms


def _tail(conv: Tensor) -> Tensor:
    """(B,C,k or k-1), as transformers keeps them, to the last three inputs (B,3,C)."""
    return conv[..., -3:].mT


def _wkv_sums(top: Tensor, total: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The average over the past and the logarithm of its weight, which do not depend on the reference point."""
    return {"average": total / weight, "log weight": top + torch.log(weight)}


def _unscaled(memory: Tensor, normaliser: Tensor, m: Tensor) -> dict[str, Tensor]:
    """mLSTM's memory without the stabiliser, which is another in every implementation."""
    m = m.reshape(m.shape[0], m.shape[1])
    return {"memory": memory * m.exp()[..., None, None], "normaliser": normaliser * m.exp()[..., None]}


@dataclass(frozen=True)
class Entry:
    """``build(weights, settings)`` our layer; ``theirs`` and ``ours`` bring both states to the same names and shapes.
    ``home``: the virtual environment of the witness, None for this one."""

    layer: str
    build: Callable[[Weights, Mapping[str, Any]], Mixer]
    theirs: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    ours: Callable[[Any], dict[str, Tensor]]
    home: str | None = "transformers"


def _first_named(*names: str) -> Callable[[Any], dict[str, Tensor]]:
    return lambda state: dict(zip(names, leaves(state)))


_convolved = _first_named("tail", "memory")
_mamba = Entry("Mamba", mamba, lambda s: {"tail": _tail(s["conv"]), "memory": s["memory"]}, _convolved)
_mamba2 = Entry("Mamba2", mamba2, lambda s: {"tail": _tail(s["conv"]), "memory": s["memory"].mT}, _convolved)
ENTRIES: dict[str, Entry] = {
    "mamba": _mamba,
    "mamba mambapy": Entry("Mamba", mamba, _mamba.theirs, _convolved, "bench"),
    "mamba2": _mamba2,
    "mamba2 bamba": _mamba2,
    "griffin": Entry("GriffinRecurrent", griffin, _mamba.theirs, _convolved),
    "rwkv4": Entry(
        "RWKV4",
        rwkv4,
        lambda s: {"last": s["last"], **_wkv_sums(s["top"], s["sum"], s["weight"])},
        lambda s: {"last": s.last, **_wkv_sums(*s.average[..., [0, 2, 1]].unbind(-1))},
    ),
    "mlstm": Entry(
        "MLSTM",
        mlstm,
        lambda s: _unscaled(s["memory"], s["normaliser"], s["stabiliser"]),
        lambda s: _unscaled(s.memory, s.normaliser, s.stabiliser),
    ),
    "gated-delta": Entry("GatedDeltaNet", gated_delta, _mamba.theirs, _convolved),
    "gru": Entry("GRU", _torch("GRU"), dict, _first_named("h"), None),
    "lstm": Entry("LSTM", _torch("LSTM"), dict, _first_named("h", "c"), None),
    "elman": Entry("Elman", _torch("RNN"), dict, _first_named("h"), None),
    "min-gru": Entry('MinGRU, form="log"', min_gru, dict, _first_named("h"), "bench"),
}


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
        command = [python, "-m", "benchmarks.witness_layers", dtype, folder, *names]
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

Each row is one of our layers with the weights of the same layer of another package, on the same inputs. Errors are
relative to the larger of 1 and the witness's largest number: of the outputs of {steps} steps, of the gradient of the
inputs, of the state behind them, and of the outputs of further steps, taken one by one from that state. The witness
runs in a process and an environment of its own and shares no code with ours. In float64 its casts to float32 are
switched off, so that the equation is compared.

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
