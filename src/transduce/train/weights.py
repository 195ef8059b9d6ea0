"""A model's tensors as one flat dictionary without aliases, and back with every mismatch named."""

from __future__ import annotations

from typing import Mapping

import torch
from torch import Tensor, nn

from transduce.core.errors import UserError

from .distributed import gathered, is_spread, spread_like


def collect(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name. A tensor that is shared under several names appears under
    its first."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach()
    return found


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """:func:`collect`, whole and copied to the CPU, so that later steps do not change it."""
    return {
        name: gathered(t).cpu() if is_spread(t) or t.device.type != "cpu" else t.clone()
        for name, t in collect(model).items()
    }


@torch.no_grad()
def restore(
    model: nn.Module, tensors: Mapping[str, Tensor], *, what: str, error: type[UserError] = UserError
) -> None:
    """Copy ``tensors`` into the model. Nothing is changed unless names, shapes and kinds of number all fit.

    ``what`` names the origin in the message of ``error``.
    """
    wanted = collect(model)
    missing, extra = [n for n in wanted if n not in tensors], [n for n in tensors if n not in wanted]
    if missing:
        raise error(f"{what} lacks the tensor {_some(missing)}, so it does not belong to this model.")
    if extra:
        raise error(f"{what} has the tensor {_some(extra)}, which this model does not have.")
    for name, tensor in wanted.items():
        given = tensors[name]
        if given.shape != tensor.shape:
            raise error(
                f"{what} has the tensor {name} in shape {tuple(given.shape)}, "
                f"the model needs {tuple(tensor.shape)}."
            )
        if (
            given.is_floating_point() != tensor.is_floating_point()
            or given.is_complex() != tensor.is_complex()
        ):
            raise error(f"{what} has the tensor {name} as {given.dtype}, the model needs {tensor.dtype}.")
    for name, tensor in wanted.items():
        tensor.copy_(spread_like(tensors[name], tensor))


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"
