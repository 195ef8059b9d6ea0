"""Layers of other packages, run in their own process: ``python -m benchmarks.witness_layers DTYPE FOLDER NAME ...``.

Each entry builds one layer with random weights, runs it and writes what it was and what came out to FOLDER. Nothing of
transduce is imported here, so a witness shares no code with what it speaks about. In float64 the casts to float32
that many of these layers contain are switched off: what is compared is the equation, not the casts.
"""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import torch
from torch import Tensor, nn

BATCH, STEPS, MORE, DIM = 2, 37, 3, 16
"""The sequence that is compared, and the steps taken one by one behind it."""

Step = Callable[[Tensor], Tensor]


@dataclass
class Witness:
    """``run(x)`` computes the whole sequence from a fresh start. ``begin()`` makes a ``feed``, a function that takes
    chunks one after the other, and ``states()`` which tells the state behind what was fed. ``settings`` are for our
    layer; ``note``: what had to be changed or worked around."""

    package: str
    layer: str
    module: nn.Module
    run: Step
    begin: Callable[[], tuple[Step, Callable[[], dict[str, Tensor]]]] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def _randomize(module: nn.Module, dtype: torch.dtype, **special: Callable[[Tensor], Tensor]) -> None:
    """Weights that no default hides behind: normal, scaled by what they read, and ``special`` ones by name."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=g, dtype=torch.float64)
            last = name.rsplit(".", 1)[-1]
            if last in special:
                value = special[last](noise)
            elif p.dim() > 1 and "conv" not in name:
                value = noise / p.shape[-1] ** 0.5
            else:
                value = 0.5 * noise
            p.copy_(value)
    module.to(dtype).eval()


def _dynamic_cache(config: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=config)


def _transformers_mixer(module: nn.Module, config: Any, layer: str) -> Witness:
    """A mixer with ``cache_params``, as transformers' state space layers have it."""

    def begin() -> tuple[Step, Callable[[], dict[str, Tensor]]]:
        cache = _dynamic_cache(config)

        def states() -> dict[str, Tensor]:
            return {"conv": cache.get_conv_state(0, state_idx=0), "memory": cache.get_recurrent_state(0, state_idx=0)}

        return lambda x: module(x, cache_params=cache), states

    return Witness("transformers", layer, module, lambda x: module(x), begin)


def mamba(dtype: torch.dtype) -> Witness:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = MambaConfig(hidden_size=DIM, state_size=5, num_hidden_layers=1, time_step_rank=3)
    module = MambaMixer(config, 0)
    _randomize(module, dtype, A_log=lambda z: 0.5 * z, D=lambda z: 1 + z)
    return _transformers_mixer(module, config, "MambaMixer")


def mamba2(dtype: torch.dtype) -> Witness:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=DIM, state_size=5, num_heads=4, head_dim=8, n_groups=2, num_hidden_layers=1, chunk_size=8
    )
    module = Mamba2Mixer(config, 0)
    _randomize(module, dtype, A_log=lambda z: 0.5 * z, D=lambda z: 1 + z)
    return _transformers_mixer(module, config, "Mamba2Mixer")


def bamba(dtype: torch.dtype) -> Witness:
    from transformers import BambaConfig
    from transformers.models.bamba.modeling_bamba import BambaMixer

    config = BambaConfig(
        hidden_size=DIM, mamba_d_state=5, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=2, num_hidden_layers=1,
        mamba_chunk_size=8, mamba_expand=2, num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    module = BambaMixer(config, 0)
    _randomize(module, dtype, A_log=lambda z: 0.5 * z, D=lambda z: 1 + z)
    witness = _transformers_mixer(module, config, "BambaMixer")
    witness.settings["eps"] = config.rms_norm_eps
    return witness


def mambapy(dtype: torch.dtype) -> Witness:
    from mambapy.mamba import MambaBlock, MambaConfig

    module = MambaBlock(MambaConfig(d_model=DIM, n_layers=1, d_state=5, dt_rank=3))
    _randomize(module, dtype, A_log=lambda z: 0.5 * z, D=lambda z: 1 + z)

    def begin() -> tuple[Step, Callable[[], dict[str, Tensor]]]:
        cache = [None, torch.zeros(BATCH, 2 * DIM, 3, dtype=dtype)]

        def feed(x: Tensor) -> Tensor:
            outputs = []
            for x_t in x.unbind(1):
                y, cache[:] = module.step(x_t, tuple(cache))
                outputs.append(y)
            return torch.stack(outputs, 1)

        return feed, lambda: {"conv": cache[1], "memory": cache[0]}

    return Witness("mambapy", "MambaBlock", module, module, begin)


def recurrent_gemma(dtype: torch.dtype) -> Witness:
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

    config = RecurrentGemmaConfig(hidden_size=DIM, lru_width=DIM, num_attention_heads=4, num_hidden_layers=1)
    module = RecurrentGemmaRecurrentBlock(config, 0)
    _randomize(module, dtype)

    def at(first: int, x: Tensor) -> Tensor:
        return torch.arange(first, first + x.shape[1])[None].expand(len(x), -1)

    def begin() -> tuple[Step, Callable[[], dict[str, Tensor]]]:
        seen = [0]
        module._setup_cache(BATCH, "cpu", dtype)
        module.rg_lru.recurrent_states = module.rg_lru.recurrent_states.to(dtype)

        def feed(x: Tensor) -> Tensor:
            y, _ = module(x, at(seen[0], x), None, use_cache=True)
            seen[0] += x.shape[1]
            return y

        return feed, lambda: {"conv": module.conv1d_state, "memory": module.rg_lru.recurrent_states}

    return Witness(
        "transformers",
        "RecurrentGemmaRecurrentBlock",
        module,
        lambda x: module(x, at(0, x), None, use_cache=False)[0],
        begin,
    )


def rwkv4(dtype: torch.dtype) -> Witness:
    from transformers import RwkvConfig
    from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

    config = RwkvConfig(hidden_size=DIM, attention_hidden_size=DIM, num_hidden_layers=1, vocab_size=8)
    module = RwkvSelfAttention(config, 0)
    mix = torch.sigmoid
    _randomize(module, dtype, time_mix_key=mix, time_mix_value=mix, time_mix_receptance=mix)

    def begin() -> tuple[Step, Callable[[], dict[str, Tensor]]]:
        # One layer's state: the attention's part of what transformers keeps for a whole model.
        state = [torch.zeros(BATCH, DIM, 1, dtype=dtype) for _ in range(5)]
        state[4] -= 1e30

        def feed(x: Tensor) -> Tensor:
            if x.shape[1] > 1:
                y, state[:] = module(x, state=state, use_cache=True)
                return y
            outputs = []
            for row, x_row in enumerate(x):  # it takes one step of one row only, see the note below
                y, now = module(x_row[None], state=[s[row : row + 1] for s in state], use_cache=True)
                for kept, new in zip(state, now):
                    kept[row] = new[0]
                outputs.append(y)
            return torch.cat(outputs)

        parts = lambda: {n: state[i][..., 0] for n, i in (("last", 1), ("sum", 2), ("weight", 3), ("top", 4))}
        return feed, parts

    fresh = [torch.zeros(BATCH, DIM, 1, dtype=dtype) for _ in range(5)]
    with torch.no_grad():
        shape = tuple(module(torch.zeros(BATCH, 1, DIM, dtype=dtype), state=fresh)[0].shape)
    note = f"one step of {BATCH} rows from a state gives outputs of shape {shape} instead of {(BATCH, 1, DIM)}"
    return Witness("transformers", "RwkvSelfAttention", module, lambda x: module(x)[0], begin, note=note)


def mlstm(dtype: torch.dtype) -> Witness:
    from transformers import xLSTMConfig
    from transformers.models.xlstm.modeling_xlstm import xLSTMLayer

    kind = str(dtype).removeprefix("torch.")
    config = xLSTMConfig(
        hidden_size=DIM, num_heads=4, num_hidden_layers=1, vocab_size=8, chunk_size=8, mode="inference",
        return_last_states=True, eps=0.0,
    )  # fmt: skip
    for name in ("autocast_kernel_dtype", "inference_state_dtype"):
        config.__dict__[name] = kind  # float64 would be refused
    module = xLSTMLayer(config)
    _randomize(module, dtype, weight=lambda z: z / 4 if z.dim() > 1 else 1 + 0.3 * z)

    def begin() -> tuple[Step, Callable[[], dict[str, Tensor]]]:
        kept = [None]

        def feed(x: Tensor) -> Tensor:
            y, kept[0] = module(x, kept[0])
            return y

        return feed, lambda: dict(zip(("memory", "normaliser", "stabiliser"), kept[0]))

    settings = {"keys": module.qk_dim, "cap": config.gate_soft_cap}
    return Witness("transformers", "xLSTMLayer", module, lambda x: module(x)[0], begin, settings)


def gated_delta(dtype: torch.dtype) -> Witness:
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    heads, keys, values = 4, 4, 8
    config = Qwen3NextConfig(
        hidden_size=DIM, linear_num_value_heads=heads, linear_num_key_heads=heads, linear_key_head_dim=keys,
        linear_value_head_dim=values, num_hidden_layers=1, layer_types=["linear_attention"], rms_norm_eps=1e-6,
    )  # fmt: skip
    module = Qwen3NextGatedDeltaNet(config, 0)
    _randomize(module, dtype, A_log=lambda z: 0.5 * z, weight=lambda z: z / 4 if z.dim() > 1 else 1 + 0.3 * z)
    return _transformers_mixer(module, config, "Qwen3NextGatedDeltaNet")


def _torch_recurrence(kind: str) -> Callable[[torch.dtype], Witness]:
    def build(dtype: torch.dtype) -> Witness:
        module = getattr(nn, kind)(DIM, DIM, batch_first=True)
        _randomize(module, dtype)

        def begin() -> tuple[Step, Callable[[], dict[str, Tensor]]]:
            kept: list[Any] = [None]

            def feed(x: Tensor) -> Tensor:
                y, kept[0] = module(x, kept[0])
                return y

            def states() -> dict[str, Tensor]:
                parts = kept[0] if kind == "LSTM" else (kept[0],)
                return {name: part[0] for name, part in zip(("h", "c"), parts)}

            return feed, states

        return Witness("torch", kind, module, lambda x: module(x)[0], begin)

    return build


def min_gru(dtype: torch.dtype) -> Witness:
    from minGRU_pytorch import minGRU

    module = minGRU(DIM, expansion_factor=1.5)
    _randomize(module, dtype)

    def begin() -> tuple[Step, Callable[[], dict[str, Tensor]]]:
        kept: list[Any] = [None]

        def feed(x: Tensor) -> Tensor:
            y, kept[0] = module(x, kept[0], return_next_prev_hidden=True)
            return y

        return feed, lambda: {"h": kept[0][:, 0]}

    return Witness("minGRU-pytorch", "minGRU", module, lambda x: module(x), begin)


WITNESSES: dict[str, Callable[[torch.dtype], Witness]] = {
    "mamba": mamba,
    "mamba mambapy": mambapy,
    "mamba2": mamba2,
    "mamba2 bamba": bamba,
    "griffin": recurrent_gemma,
    "rwkv4": rwkv4,
    "mlstm": mlstm,
    "gated-delta": gated_delta,
    "gru": _torch_recurrence("GRU"),
    "lstm": _torch_recurrence("LSTM"),
    "elman": _torch_recurrence("RNN"),
    "min-gru": min_gru,
}


def _keep_float64() -> None:
    """Casts of float64 tensors to float32 do nothing from now on."""
    cast_float, cast_to, cast_type = Tensor.float, Tensor.to, Tensor.type

    def to(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.dtype == torch.float64:
            args = tuple(a for a in args if a is not torch.float32)
            kwargs = {k: v for k, v in kwargs.items() if v is not torch.float32}
            if not args and not kwargs:
                return self
        return cast_to(self, *args, **kwargs)

    def type_(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self if self.dtype == torch.float64 and args == (torch.float32,) else cast_type(self, *args, **kwargs)

    def float_(self: Tensor, **how: Any) -> Tensor:
        return self if self.dtype == torch.float64 else cast_float(self, **how)

    float_.patched = True
    Tensor.float, Tensor.to, Tensor.type = float_, to, type_


def testify(name: str, dtype: torch.dtype) -> dict[str, Any]:
    """What the layer ``name`` computes: weights, inputs, outputs, gradients, states, and what came of continuing."""
    if dtype == torch.float64 and not hasattr(Tensor.float, "patched"):
        _keep_float64()
    torch.manual_seed(0)
    witness = WITNESSES[name](dtype)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, STEPS + MORE, DIM, generator=g, dtype=torch.float64).to(dtype)
    leaf = x[:, :STEPS].clone().requires_grad_()
    y = witness.run(leaf)
    cotangent = torch.randn(y.shape, generator=g, dtype=torch.float64).to(dtype)
    (dx,) = torch.autograd.grad(y, leaf, cotangent)
    found = {
        "package": witness.package,
        "version": importlib.metadata.version(witness.package),
        "layer": witness.layer,
        "settings": witness.settings,
        "note": witness.note,
        "weights": {k: v.detach().clone() for k, v in witness.module.state_dict().items()},
        "x": x,
        "cotangent": cotangent,
        "y": y.detach(),
        "dx": dx,
    }
    if witness.begin is not None:
        with torch.no_grad():
            feed, states = witness.begin()
            feed(x[:, :STEPS])
            found["states"] = {k: v.detach().clone() for k, v in states().items()}
            found["stepped"] = torch.cat([feed(x_t[:, None]) for x_t in x[:, STEPS:].unbind(1)], 1)
            feed, _ = witness.begin()
            try:
                found["chunked"] = torch.cat((feed(x[:, :20]), feed(x[:, 20:])), 1)
            except (RuntimeError, ValueError, IndexError) as refused:
                found["chunked"] = f"refuses: {str(refused).splitlines()[0]}"
    return found


def path_of(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(' ', '-')}.pt"


def main(dtype: str, folder: str, *names: str) -> None:
    for name in names:
        try:
            found = testify(name, getattr(torch, dtype))
        except ImportError as absent:
            found = {"absent": str(absent)}
        torch.save(found, path_of(Path(folder), name))


if __name__ == "__main__":
    main(*sys.argv[1:])
