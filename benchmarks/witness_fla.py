"""Layers of flash-linear-attention, whose kernels Triton's interpreter runs on a CPU. Nothing of transduce is imported
here."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Callable, Iterator
from unittest.mock import patch

import torch
from torch import Tensor, nn

from benchmarks.witness_parts import DIM, Step, Witness, float32_means, randomize


def _first_configuration(self: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of Triton's tuner, which wants a device to time on."""
    return self.fn.run(*args, **kwargs, **self.configs[0].all_kwargs())


@contextmanager
def _interpreted(dtype: torch.dtype) -> Iterator[None]:
    import triton.language as tl
    from triton.runtime.autotuner import Autotuner

    with ExitStack() as stack:
        stack.enter_context(float32_means(dtype))
        stack.enter_context(patch.object(Autotuner, "run", _first_configuration))
        if dtype == torch.float64:
            stack.enter_context(patch.object(tl, "float32", tl.float64))
        yield


def _witness(layer: str, module: nn.Module, settings: dict[str, Any], **how: Any) -> Witness:
    from fla.models.utils import Cache

    dtype = next(module.parameters()).dtype

    def begin() -> tuple[Step, Callable[[], dict[str, Tensor]]]:
        cache = Cache()

        def states() -> dict[str, Tensor]:
            found, convs = {"memory": cache[0]["recurrent_state"]}, cache[0]["conv_state"]
            return found if convs is None else found | {"conv": torch.cat(convs, 1)}

        return lambda x: module(x, past_key_values=cache, use_cache=True, **how)[0], states

    return Witness(
        "flash-linear-attention", layer, module, lambda x: module(x, **how)[0], begin, settings,
        "its kernels run in Triton's interpreter, with the first of the configurations that they could be tuned to",
        within=partial(_interpreted, dtype),
    )  # fmt: skip


def gla(dtype: torch.dtype) -> Witness:
    from fla.layers import GatedLinearAttention

    module = GatedLinearAttention(hidden_size=DIM, num_heads=4, layer_idx=0)
    randomize(module, dtype)
    return _witness("GatedLinearAttention", module, {"heads": 4})


def hgrn2(dtype: torch.dtype) -> Witness:
    import fla.layers.hgrn2 as home
    from fla.layers import HGRN2Attention
    from fla.modules.norm import layernorm

    module = HGRN2Attention(hidden_size=DIM, expand_ratio=DIM, layer_idx=0)
    randomize(module, dtype)
    module.layer_idx = _AboveTheFirst()
    module.register_buffer("lower_bound", torch.linspace(0.05, 0.9, DIM, dtype=dtype))
    home.rms_norm_linear = partial(layernorm.rms_norm_linear, eps=1e-5 / DIM)
    witness = _witness("HGRN2Attention", module, {"heads": 1}, lower_bound=module.lower_bound)
    witness.note += (
        f"; it divides what is read by sqrt(K) = {DIM**0.5:g}, which its norm takes out again up to the epsilon, so "
        "the norm is given one that is K times as small; it is told not to be the first layer, which has no lower bound"
    )
    return witness


class _AboveTheFirst(int):
    """The index of a first layer, whose cache comes first, that counts as a higher one, which has a lower bound."""

    def __gt__(self, other: int) -> bool:
        return True


def delta(dtype: torch.dtype) -> Witness:
    from fla.layers import DeltaNet

    module = DeltaNet(hidden_size=DIM, num_heads=4, allow_neg_eigval=True, norm_eps=1e-6, layer_idx=0)
    randomize(module, dtype)
    return _witness("DeltaNet", module, {"reflect": True})


FLA: dict[str, Callable[[torch.dtype], Witness]] = {"gla fla": gla, "hgrn2 fla": hgrn2, "delta fla": delta}
