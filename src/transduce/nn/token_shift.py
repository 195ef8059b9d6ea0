"""What a step sees of the step before it: the token shift of RWKV."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from transduce.core.seq import zero_masked
from transduce.core.state import State

from .masking import only_pads_right, valid_resets


class TokenShift(nn.Module):
    """x^j_t = mu_j * x_t + (1 - mu_j) * x_{t-1} for j < num, zero before the first step (Peng et al. 2023, arXiv
    2305.13048, section 3.1.1).

    ``forward(x, state, mask=, resets=)`` gives a list of ``num`` tensors (B,T,dim) and the state: the last valid input
    (B,dim). ``mix`` (streams, num, dim) holds the mu_j. With several streams, row b * streams + p of a batch uses the
    mu_j of stream p, see :func:`transduce.models.perspectives.perspectives`.
    """

    def __init__(self, dim: int, num: int, *, streams: int = 1) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.full((streams, num, dim), 0.5))

    def init_state(self, batch: int) -> State:
        return self.mix.new_zeros(batch, self.mix.shape[2])

    def forward(
        self, x: Tensor, state: State = None, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[list[Tensor], State]:
        x, resets = zero_masked(x, mask), valid_resets(resets, mask)
        if state is None and mask is not None and only_pads_right(mask):
            mask = None  # behind the last valid step nobody reads
        first = x.new_zeros(x.shape[0], 1, x.shape[2]) if state is None else state.to(x.dtype)[:, None]
        past = torch.cat((first, x), 1)
        if mask is None:
            before, last = past[:, :-1], past[:, -1]
        else:  # place of the latest valid step up to each step, 0 for what came before the chunk
            place = torch.arange(1, mask.shape[1] + 1, device=mask.device)
            place = torch.where(mask, place, 0).cummax(1).values
            place = torch.cat((torch.zeros_like(place[:, :1]), place), 1)
            found = past.gather(1, place[..., None].expand_as(past))
            before, last = found[:, :-1], found[:, -1]
        if resets is not None:
            before = torch.where(resets[..., None], 0, before)
        streams = len(self.mix)
        change = x - before
        if streams == 1:
            mixed = [torch.addcmul(before, mu, change) for mu in self.mix[0].unbind(0)]
        else:
            groups = change.unflatten(0, (-1, streams))
            mixed = [before + (groups * mu[:, None]).flatten(0, 1) for mu in self.mix.unbind(1)]
        return mixed, None if state is None else last.clone()
