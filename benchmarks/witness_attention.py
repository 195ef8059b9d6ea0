"""Self-attention of transformers and torch: windows, grouped queries, schemes of positions. Nothing of transduce is
imported here."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor, nn

from benchmarks.witness_parts import BATCH, DIM, Step, Witness, dynamic_cache, float32_means, randomize

Call = Callable[[Tensor, dict[str, Any]], Tensor]
"""One layer on a chunk x, told ``mask``, ``positions``, ``total`` (steps so far, these included) and ``cache``."""


def _witness(layer: str, module: nn.Module, config: Any, call: Call, settings: dict[str, Any]) -> Witness:
    """``module`` with the masks and the cache that the model around it would make for it."""
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    config._attn_implementation = "eager"
    make_mask = create_causal_mask if settings["window"] is None else create_sliding_window_causal_mask
    dtype = next(module.parameters()).dtype

    def over(x: Tensor, cache: Any) -> Tensor:
        past = 0 if cache is None else cache.get_seq_length()
        positions = torch.arange(past, past + x.shape[1])[None]
        with float32_means(dtype):
            how = dict(inputs_embeds=x, attention_mask=None, past_key_values=cache, position_ids=positions)
            mask = make_mask(config, **how)
            return call(x, dict(mask=mask, positions=positions, total=past + x.shape[1], cache=cache))

    def begin() -> tuple[Step, Callable[[], dict[str, Tensor]]]:
        cache = dynamic_cache(config)
        return lambda x: over(x, cache), lambda: {"keys": cache.layers[0].keys, "values": cache.layers[0].values}

    return Witness("transformers", layer, module, lambda x: over(x, None), begin, settings)


def starcoder2(dtype: torch.dtype) -> Witness:
    from transformers import Starcoder2Config
    from transformers.models.starcoder2.modeling_starcoder2 import Starcoder2Attention, Starcoder2RotaryEmbedding

    settings = {"heads": 4, "kv_heads": 2, "window": 8, "position": "rotary"}
    config = Starcoder2Config(
        hidden_size=DIM, num_attention_heads=4, num_key_value_heads=2, sliding_window=8, use_bias=True,
        num_hidden_layers=1,
    )  # fmt: skip
    module = Starcoder2Attention(config, 0)
    randomize(module, dtype)
    with float32_means(dtype):
        rotary = Starcoder2RotaryEmbedding(config)

    def call(x: Tensor, how: dict[str, Any]) -> Tensor:
        return module(x, rotary(x, how["positions"]), how["mask"], how["cache"])[0]

    return _witness("Starcoder2Attention", module, config, call, settings)


def llama(dtype: torch.dtype) -> Witness:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    settings = {"heads": 4, "kv_heads": 4, "window": None, "position": "rotary"}
    config = LlamaConfig(hidden_size=DIM, num_attention_heads=4, attention_bias=True, num_hidden_layers=1)
    module = LlamaAttention(config, 0)
    randomize(module, dtype)
    with float32_means(dtype):
        rotary = LlamaRotaryEmbedding(config)

    def call(x: Tensor, how: dict[str, Any]) -> Tensor:
        return module(x, rotary(x, how["positions"]), how["mask"], how["cache"])[0]

    return _witness("LlamaAttention", module, config, call, settings)


def recurrent_gemma(dtype: torch.dtype) -> Witness:
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaAttention

    settings = {"heads": 4, "kv_heads": 1, "window": 8, "position": "half-rotary"}
    config = RecurrentGemmaConfig(
        hidden_size=DIM, num_attention_heads=4, num_key_value_heads=1, attention_window_size=8, attention_bias=True,
        num_hidden_layers=1, block_types=["attention"], head_dim=4,
    )  # fmt: skip
    with float32_means(dtype):
        module = RecurrentGemmaAttention(config, 0)
    randomize(module, dtype)

    def call(x: Tensor, how: dict[str, Any]) -> Tensor:
        return module(x, how["positions"], how["mask"], how["cache"])[0]

    return _witness("RecurrentGemmaAttention", module, config, call, settings)


def bloom(dtype: torch.dtype) -> Witness:
    from transformers import BloomConfig
    from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor

    settings = {"heads": 4, "kv_heads": 4, "window": None, "position": "alibi"}
    config = BloomConfig(hidden_size=DIM, n_head=4, n_layer=1, hidden_dropout=0.0, attention_dropout=0.0)
    module = BloomAttention(config, 0)
    randomize(module, dtype)

    def call(x: Tensor, how: dict[str, Any]) -> Tensor:
        alibi = build_alibi_tensor(torch.ones(BATCH, how["total"], dtype=torch.long), 4, dtype)
        return module(x, torch.zeros_like(x), alibi, how["mask"], how["cache"], use_cache=True)[0]

    return _witness("BloomAttention", module, config, call, settings)


def gpt2(dtype: torch.dtype) -> Witness:
    from transformers import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    settings = {"heads": 4, "kv_heads": 4, "window": None, "position": None}
    config = GPT2Config(n_embd=DIM, n_head=4, n_layer=1, attn_pdrop=0.0, resid_pdrop=0.0)
    module = GPT2Attention(config, layer_idx=0)
    randomize(module, dtype)
    call = lambda x, how: module(x.contiguous(), how["cache"], how["mask"])[0]  # its projection takes no other strides
    return _witness("GPT2Attention", module, config, call, settings)


def torchs_own(dtype: torch.dtype) -> Witness:
    settings = {"heads": 4, "kv_heads": 4, "window": None, "position": None}
    module = nn.MultiheadAttention(DIM, 4, batch_first=True)
    randomize(module, dtype)

    def run(x: Tensor) -> Tensor:
        ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return module(x, x, x, attn_mask=ahead, need_weights=False)[0]

    return Witness("torch", "MultiheadAttention", module, run, settings=settings)


ATTENTION: dict[str, Callable[[torch.dtype], Witness]] = {
    "attention starcoder2": starcoder2,
    "attention llama": llama,
    "attention recurrent-gemma": recurrent_gemma,
    "attention bloom": bloom,
    "attention gpt2": gpt2,
    "attention torch": torchs_own,
}
