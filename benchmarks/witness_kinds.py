"""How the weights and states of :mod:`benchmarks.witness_small`, :mod:`benchmarks.witness_attention` and
:mod:`benchmarks.witness_fla` are called in ours."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.witness_entry import Entry, Settings, Weights, first_named, load
from benchmarks.witness_parts import DIM
from transduce.core.protocols import Mixer
from transduce.nn import (
    HGRN2,
    LIF,
    LRU,
    RWKV7,
    SLSTM,
    Attention,
    CausalConv,
    DeltaNet,
    GatedLinearAttention,
    Retention,
)
from transduce.nn.arena import KVArena


def slstm(w: Weights, settings: Settings) -> Mixer:
    size = DIM // settings["heads"]
    recurrent = w["cell._recurrent_kernel_"].unflatten(1, (4, size)).transpose(0, 1)  # gate, head, row, column
    renamed = {
        "cell.input.weight": w["input.weight"],
        "cell.input.bias": w["input.bias"] + w["cell._bias_"],
        "cell.weight": recurrent.reshape(4 * DIM, size),
    }
    return load(SLSTM(DIM, heads=settings["heads"]).to(w["input.weight"].dtype), renamed)


# ---------------------------------------------------------------- state spaces


def _planes(z: Tensor) -> Tensor:
    return torch.stack((z.real, z.imag))


def lru(w: Weights, settings: Settings) -> Mixer:
    renamed = {
        "nu": w["nu_log"],
        "theta": w["theta_log"],
        "log_gamma": w["gamma_log"],
        "input": _planes(w["B"]),
        "output": _planes(w["C"]),
        "skip": w["D"].diagonal(),
    }
    return load(LRU(DIM, len(w["nu_log"])).to(w["D"].dtype), renamed)


def s5(w: Weights, settings: Settings) -> Mixer:
    """The discrete system of the continuous one, with the zero-order hold."""
    poles, step = w["seq.Lambda"], w["seq.log_step"].exp()
    inputs = torch.expm1(poles * step) / poles
    renamed = {
        "nu": torch.log(-poles.real * step),
        "theta": torch.log(torch.remainder(poles.imag * step, 2 * math.pi)),
        "log_gamma": torch.zeros_like(step),
        "input": _planes(inputs[:, None] * torch.view_as_complex(w["seq.B"])),
        "output": _planes(w["seq.C"]),
        "skip": w["seq.D"],
    }
    return load(LRU(DIM, len(step)).to(step.dtype), renamed)


# ---------------------------------------------------------------- matrix memories


def _halves(rows: Tensor) -> Tensor:
    """(..., K) whose rotated pairs are neighbours -> those of channels i and i + K/2."""
    return torch.cat((rows[..., ::2], rows[..., 1::2]), -1)


def retention(w: Weights, settings: Settings) -> Mixer:
    heads = len(settings["decays"])
    paired = [_halves(w[f"{part}_proj.weight"].unflatten(0, (heads, -1)).mT).mT.flatten(0, 1) for part in "qk"]
    renamed = {
        "input.weight": torch.cat((*paired, w["v_proj.weight"], w["g_proj.weight"])),
        "output.weight": w["out_proj.weight"],
    }
    return load(Retention(DIM, heads, **settings).to(paired[0].dtype), renamed)


def _retained(states: dict[str, Tensor]) -> dict[str, Tensor]:
    """Theirs scale keys where ours scales queries."""
    memory = states["memory"]
    return {"memory": _halves(memory.mT).mT * memory.shape[2] ** 0.5}


def _values_first(states: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"memory": states["memory"].mT}


def _behind_conv(states: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"tail": states["conv"][..., -3:].mT, "memory": states["memory"]}


def gated_linear(w: Weights, settings: Settings) -> Mixer:
    renamed = {
        "input.weight": torch.cat([w[f"{part}_proj.weight"] for part in "qkvg"]),
        "gate.0.weight": w["gk_proj.0.weight"],
        "gate.1.weight": w["gk_proj.1.weight"],
        "gate.1.bias": w["gk_proj.1.bias"],
        "norm": w["g_norm_swish_gate.weight"],
        "output.weight": w["o_proj.weight"],
    }
    return load(GatedLinearAttention(DIM, **settings).to(w["q_proj.weight"].dtype), renamed)


class _Bound(nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        return self.value


def hgrn2(w: Weights, settings: Settings) -> Mixer:
    renamed = {
        "input.weight": torch.cat([w[f"{part}_proj.weight"] for part in "qfi"]),
        "norm": w["g_norm.weight"],
        "output.weight": w["o_proj.weight"],
    }
    mixer = HGRN2(DIM, **settings, bound=_Bound(w["lower_bound"]))
    return load(mixer.to(w["lower_bound"].dtype), renamed)


def delta(w: Weights, settings: Settings) -> Mixer:
    conv = torch.cat([w[f"{part}_conv1d.weight"][:, 0] for part in "qkv"])
    renamed = {
        "rule.input.weight": torch.cat([w[f"{part}_proj.weight"] for part in "qkv"]),
        "rule.conv.weight": conv,
        "rule.conv.bias": torch.zeros_like(conv[:, 0]),
        "strength.weight": w["b_proj.weight"],
        "output.gain": w["o_norm.weight"],
        "output.output.weight": w["o_proj.weight"],
    }
    return load(DeltaNet(DIM, **settings).to(conv.dtype), renamed)


def rwkv7(w: Weights, settings: Settings) -> Mixer:
    shares = torch.stack([w[f"x_{role}"] for role in "rwkvag"])  # of the step before
    linear = {"receptance": "R_", "key": "K_", "value": "V_", "output": "O_"}
    low = {"decay": "w", "rate": "a", "gate": "g"}
    renamed = {f"{ours}.weight": w[theirs].T for ours, theirs in linear.items()}
    renamed |= {f"{ours}.down.weight": w[f"{theirs}1"].T for ours, theirs in low.items()}
    renamed |= {f"{ours}.up.weight": w[f"{theirs}2"].T for ours, theirs in low.items()}
    renamed |= {
        "shift.mix": 1 - shares[None],
        "decay.bias": w["w0"],
        "rate.bias": w["a0"],
        "removal_scale": w["k_k"],
        "rate_scale": w["k_a"],
        "bonus": w["r_k"].unflatten(0, (-1, settings["head_width"])),
        "norm.weight": w["ln_w"],
        "norm.bias": w["ln_b"],
    }
    mixer = RWKV7(len(w["w0"]), settings["head_width"], rank=w["w1"].shape[1])
    return load(mixer.to(shares.dtype), renamed)


# ---------------------------------------------------------------- attention


def attention(w: Weights, settings: Settings) -> Mixer:
    joined = lambda part: torch.cat([w[f"{name}_proj.{part}"] for name in "qkv"])
    return _attention({part: joined(part) for part in ("weight", "bias")}, _part(w, "o_proj"), settings)


def _part(w: Weights, name: str) -> dict[str, Tensor]:
    return {part: w[f"{name}.{part}"] for part in ("weight", "bias")}


def _attention(project: Weights, output: Weights, settings: Settings) -> Mixer:
    renamed = {f"{ours}.{part}": value for ours, parts in (("project", project), ("output", output))
               for part, value in parts.items()}  # fmt: skip
    return load(Attention(DIM, **settings).to(output["weight"].dtype), renamed)


def bloom(w: Weights, settings: Settings) -> Mixer:
    """Queries, keys and values stand side by side in each head."""
    heads = settings["heads"]
    by_kind = lambda t: t.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2)
    project = {part: by_kind(value) for part, value in _part(w, "query_key_value").items()}
    return _attention(project, _part(w, "dense"), settings)


def gpt2(w: Weights, settings: Settings) -> Mixer:
    project, output = ({"weight": w[f"{name}.weight"].T, "bias": w[f"{name}.bias"]} for name in ("c_attn", "c_proj"))
    return _attention(project, output, settings)


def torchs_own(w: Weights, settings: Settings) -> Mixer:
    project = {part: w[f"in_proj_{part}"] for part in ("weight", "bias")}
    return _attention(project, _part(w, "out_proj"), settings)


def _cached(arena: KVArena) -> dict[str, Tensor]:
    """What the next step can see, oldest first."""
    filled = int(arena.count[0])
    seen = filled if arena.window is None else min(filled, arena.window - 1)
    places = torch.arange(filled - seen, filled) % arena.slots
    return {"keys": arena.keys[:, places].transpose(1, 2), "values": arena.values[:, places].transpose(1, 2)}


# ---------------------------------------------------------------- convolution and spikes


def conv(w: Weights, settings: Settings) -> Mixer:
    kernel = w["weight"].shape[2]
    mixer = CausalConv(DIM, kernel, depthwise=False, **settings).to(w["weight"].dtype)
    return load(mixer, {name: w[name] for name in ("weight", "bias")})


def lif(w: Weights, settings: Settings) -> Mixer:
    return LIF(DIM).to(w["beta"].dtype)


KINDS: dict[str, Entry] = {
    "attention starcoder2": Entry("Attention, window, grouped", attention, dict, _cached),
    "attention llama": Entry("Attention", attention, dict, _cached),
    "attention recurrent-gemma": Entry("Attention, half-rotary, window", attention, dict, _cached),
    "attention bloom": Entry("Attention, alibi", bloom, dict, _cached),
    "attention gpt2": Entry("Attention, no positions", gpt2, dict, _cached),
    "attention torch": Entry("Attention, no positions", torchs_own, dict, _cached, None),
    "slstm": Entry("SLSTM, 4 heads", slstm, dict, first_named("h", "c", "n", "m"), "xlstm"),
    "lru": Entry("LRU", lru, dict, first_named("memory"), "bench"),
    "lru s5": Entry("LRU", s5, dict, first_named("memory"), "bench"),
    "retention yet-another": Entry("Retention", retention, _retained, first_named("memory"), "bench"),
    "retention torchscale": Entry("Retention", retention, _retained, first_named("memory"), "bench"),
    "gla fla": Entry("GatedLinearAttention", gated_linear, _values_first, first_named("memory"), "fla"),
    "hgrn2 fla": Entry("HGRN2, one head, bounded", hgrn2, _values_first, first_named("memory"), "fla"),
    "delta fla": Entry("DeltaNet, reflecting", delta, _behind_conv, first_named("tail", "memory"), "fla"),
    "rwkv7": Entry("RWKV7", rwkv7, dict, first_named("last", "memory"), "bench"),
    "conv tcn": Entry("CausalConv, dense, dilation 3", conv, dict, first_named("tail"), "bench"),
    "lif": Entry("LIF", lif, dict, first_named("membrane"), "bench"),
}
