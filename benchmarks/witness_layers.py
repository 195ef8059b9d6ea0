"""Recurrent layers of other packages, each with random weights. Nothing of transduce is imported here."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Callable

import torch
from torch import Tensor, nn

from benchmarks.witness_parts import BATCH, DIM, Step, Witness, dynamic_cache, randomize


def _transformers_mixer(module: nn.Module, config: Any, layer: str) -> Witness:
    """A mixer with ``cache_params``, as transformers' state space layers have it."""

    def begin() -> tuple[Step, Callable[[], dict[str, Tensor]]]:
        cache = dynamic_cache(config)

        def states() -> dict[str, Tensor]:
            return {"conv": cache.get_conv_state(0, state_idx=0), "memory": cache.get_recurrent_state(0, state_idx=0)}

        return lambda x: module(x, cache_params=cache), states

    return Witness("transformers", layer, module, lambda x: module(x), begin)


def mamba(dtype: torch.dtype) -> Witness:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = MambaConfig(hidden_size=DIM, state_size=5, num_hidden_layers=1, time_step_rank=3)
    module = MambaMixer(config, 0)
    randomize(module, dtype, A_log=lambda z: 0.5 * z, D=lambda z: 1 + z)
    return _transformers_mixer(module, config, "MambaMixer")


def mamba2(dtype: torch.dtype) -> Witness:
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=DIM, state_size=5, num_heads=4, head_dim=8, n_groups=2, num_hidden_layers=1, chunk_size=8
    )
    module = Mamba2Mixer(config, 0)
    randomize(module, dtype, A_log=lambda z: 0.5 * z, D=lambda z: 1 + z)
    return _transformers_mixer(module, config, "Mamba2Mixer")


def bamba(dtype: torch.dtype) -> Witness:
    from transformers import BambaConfig
    from transformers.models.bamba.modeling_bamba import BambaMixer

    config = BambaConfig(
        hidden_size=DIM, mamba_d_state=5, mamba_n_heads=4, mamba_d_head=8, mamba_n_groups=2, num_hidden_layers=1,
        mamba_chunk_size=8, mamba_expand=2, num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    module = BambaMixer(config, 0)
    randomize(module, dtype, A_log=lambda z: 0.5 * z, D=lambda z: 1 + z)
    witness = _transformers_mixer(module, config, "BambaMixer")
    witness.settings["eps"] = config.rms_norm_eps
    return witness


def mambapy(dtype: torch.dtype) -> Witness:
    from mambapy.mamba import MambaBlock, MambaConfig

    module = MambaBlock(MambaConfig(d_model=DIM, n_layers=1, d_state=5, dt_rank=3))
    randomize(module, dtype, A_log=lambda z: 0.5 * z, D=lambda z: 1 + z)

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
    randomize(module, dtype)

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
    randomize(module, dtype, time_mix_key=mix, time_mix_value=mix, time_mix_receptance=mix)

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
    randomize(module, dtype, weight=lambda z: z / 4 if z.dim() > 1 else 1 + 0.3 * z)

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
    randomize(module, dtype, A_log=lambda z: 0.5 * z, weight=lambda z: z / 4 if z.dim() > 1 else 1 + 0.3 * z)
    return _transformers_mixer(module, config, "Qwen3NextGatedDeltaNet")


def gated_delta_reflecting(dtype: torch.dtype) -> Witness:
    from transformers import OlmoHybridConfig
    from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet

    heads, keys, values = 4, 4, 8
    config = OlmoHybridConfig(
        hidden_size=DIM, linear_num_value_heads=heads, linear_num_key_heads=heads, linear_key_head_dim=keys,
        linear_value_head_dim=values, num_hidden_layers=2, layer_types=["linear_attention", "full_attention"],
        linear_allow_neg_eigval=True, num_attention_heads=4,
    )  # fmt: skip
    module = OlmoHybridGatedDeltaNet(config, 0)
    module.o_norm.variance_epsilon = 1e-6
    randomize(module, dtype, A_log=lambda z: 0.5 * z, weight=lambda z: z / 4 if z.dim() > 1 else 1 + 0.3 * z)
    witness = _transformers_mixer(module, config, "OlmoHybridGatedDeltaNet")
    witness.settings["reflect"], witness.note = True, "the epsilon of its norm is set to 1e-6"
    return witness


def _torch_recurrence(kind: str) -> Callable[[torch.dtype], Witness]:
    def build(dtype: torch.dtype) -> Witness:
        module = getattr(nn, kind)(DIM, DIM, batch_first=True)
        randomize(module, dtype)

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


def _min(layer: str) -> Callable[[torch.dtype], Witness]:
    def build(dtype: torch.dtype) -> Witness:
        module = getattr(import_module(f"minGRU_pytorch.{layer}"), layer)(DIM, expansion_factor=1.5)
        randomize(module, dtype)

        def begin() -> tuple[Step, Callable[[], dict[str, Tensor]]]:
            kept: list[Any] = [None]

            def feed(x: Tensor) -> Tensor:
                y, kept[0] = module(x, kept[0], return_next_prev_hidden=True)
                return y

            return feed, lambda: {"h": kept[0][:, 0]}

        return Witness("minGRU-pytorch", layer, module, lambda x: module(x), begin)

    return build


LAYERS: dict[str, Callable[[torch.dtype], Witness]] = {
    "mamba": mamba,
    "mamba mambapy": mambapy,
    "mamba2": mamba2,
    "mamba2 bamba": bamba,
    "griffin": recurrent_gemma,
    "rwkv4": rwkv4,
    "mlstm": mlstm,
    "gated-delta": gated_delta,
    "gated-delta olmo": gated_delta_reflecting,
    "gru": _torch_recurrence("GRU"),
    "lstm": _torch_recurrence("LSTM"),
    "elman": _torch_recurrence("RNN"),
    "min-gru": _min("minGRU"),
    "min-lstm": _min("minLSTM"),
}
