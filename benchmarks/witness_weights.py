"""How weights and states of other packages' layers are called in ours."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor, nn

from benchmarks.witness_entry import Entry, Settings, Weights, first_named, load
from benchmarks.witness_parts import DIM
from transduce.core.protocols import Mixer
from transduce.nn import MLSTM, RWKV4, GatedDeltaNet, GriffinRecurrent, Mamba, Mamba2, MinGRU, MinLSTM, from_torch


def _conv(w: Weights, name: str = "conv1d") -> dict[str, Tensor]:
    """A depthwise nn.Conv1d; a missing bias is zero."""
    weight = w[f"{name}.weight"][:, 0]
    return {"weight": weight, "bias": w.get(f"{name}.bias", torch.zeros_like(weight[:, 0]))}


def _under(prefix: str, parts: Weights) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in parts.items()}


def mamba(w: Weights, settings: Settings) -> Mixer:
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
    return load(Mamba(DIM, states=states, rank=rank).to(w["D"].dtype), renamed | _under("conv", _conv(w)))


def mamba2(w: Weights, settings: Settings) -> Mixer:
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
    return load(mixer, renamed | _under("conv", _conv(w)))


def griffin(w: Weights, settings: Settings) -> Mixer:
    joined = lambda kind: torch.cat((w[f"rg_lru.recurrent_gate_{kind}"], w[f"rg_lru.input_gate_{kind}"]), -1)
    renamed = {f"{ours}.{part}": w[f"{theirs}.{part}"]
               for ours, theirs in (("branch", "linear_y"), ("input", "linear_x"), ("output", "linear_out"))
               for part in ("weight", "bias")}  # fmt: skip
    renamed |= {f"recurrence.gates.{part}": joined(part) for part in ("weight", "bias")}
    renamed["recurrence.rate"] = rate = w["rg_lru.recurrent_param"]
    heads = len(renamed["recurrence.gates.bias"])
    mixer = GriffinRecurrent(DIM, len(rate), heads).to(rate.dtype)
    return load(mixer, renamed | _under("conv", _conv(w, "conv_1d")))


def rwkv4(w: Weights, settings: Settings) -> Mixer:
    mix = torch.stack([w[f"time_mix_{part}"][0, 0] for part in ("receptance", "key", "value")])
    renamed = {"shift.mix": mix[None], "decay": w["time_decay"], "bonus": w["time_first"]}
    renamed |= {f"{part}.weight": w[f"{part}.weight"] for part in ("receptance", "key", "value", "output")}
    return load(RWKV4(DIM).to(mix.dtype), renamed)


def mlstm(w: Weights, settings: Settings) -> Mixer:
    renamed = {
        "input.weight": torch.cat([w[f"{part}.weight"] for part in ("q", "k", "v", "ogate_preact")]),
        "gates.weight": torch.cat((w["igate_preact.weight"], w["fgate_preact.weight"])),
        "gates.bias": torch.cat((w["igate_preact.bias"], w["fgate_preact.bias"])),
        "norm": w["multihead_norm.weight"].flatten(),
        "output.weight": w["out_proj.weight"],
    }
    heads = len(w["igate_preact.bias"])
    return load(MLSTM(DIM, heads, **settings).to(w["q.weight"].dtype), renamed)


def gated_delta(w: Weights, settings: Settings) -> Mixer:
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
    return load(mixer, renamed | _under("rule.conv", _conv(w)))


def gated_delta_reflecting(w: Weights, settings: Settings) -> Mixer:
    heads = len(w["A_log"])
    renamed = {
        "rule.input.weight": torch.cat([w[f"{part}_proj.weight"] for part in "qkv"]),
        "strength.weight": w["b_proj.weight"],
        "decay.weight": w["a_proj.weight"],
        "decay.bias": w["dt_bias"],
        "rate": w["A_log"],
        "output.gain": w["o_norm.weight"],
        "output.gate.weight": w["g_proj.weight"],
        "output.output.weight": w["o_proj.weight"],
    }
    expansion = len(w["v_proj.weight"]) // len(w["q_proj.weight"])
    mixer = GatedDeltaNet(DIM, heads, expansion=expansion, **settings).to(w["A_log"].dtype)
    return load(mixer, renamed | _under("rule.conv", _conv(w)))


def _torch(kind: str) -> Callable[[Weights, Settings], Mixer]:
    def build(w: Weights, settings: Settings) -> Mixer:
        module = getattr(nn, kind)(DIM, DIM, batch_first=True).to(w["weight_hh_l0"].dtype)
        module.load_state_dict(dict(w))
        return from_torch(module)

    return build


def _min(kind: Callable[..., Mixer], layer: str, *order: int) -> Callable[[Weights, Settings], Mixer]:
    """``order``: which of their rows, hidden first, are ours."""

    def build(w: Weights, settings: Settings) -> Mixer:
        parts, out = w[f"{layer}.weight"].chunk(len(order)), w["to_out.weight"]
        renamed = {
            "input.weight": torch.cat([parts[i] for i in order]),
            "input.bias": out.new_zeros(len(order) * out.shape[1]),
            "project.weight": out,
            "project.bias": out.new_zeros(DIM),
        }
        return load(kind(DIM, expansion=out.shape[1] / DIM, form="log").to(out.dtype), renamed)

    return build


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


_convolved = first_named("tail", "memory")
_mamba = Entry("Mamba", mamba, lambda s: {"tail": _tail(s["conv"]), "memory": s["memory"]}, _convolved)
_mamba2 = Entry("Mamba2", mamba2, lambda s: {"tail": _tail(s["conv"]), "memory": s["memory"].mT}, _convolved)
LAYERS: dict[str, Entry] = {
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
    "gated-delta olmo": Entry("GatedDeltaNet, reflecting", gated_delta_reflecting, _mamba.theirs, _convolved),
    "gru": Entry("GRU", _torch("GRU"), dict, first_named("h"), None),
    "lstm": Entry("LSTM", _torch("LSTM"), dict, first_named("h", "c"), None),
    "elman": Entry("Elman", _torch("RNN"), dict, first_named("h"), None),
    "min-gru": Entry('MinGRU, form="log"', _min(MinGRU, "to_hidden_and_gate", 1, 0), dict, first_named("h"), "bench"),
    "min-lstm": Entry(
        'MinLSTM, form="log"', _min(MinLSTM, "to_hidden_and_f_i_gate", 1, 2, 0), dict, first_named("h"), "bench"
    ),
}
