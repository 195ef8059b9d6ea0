"""A depth loop as the single layer of a decoder."""

from __future__ import annotations

from torch import Tensor, nn

from transduce.core.seq import Seq
from transduce.models.mixer_decoder import LayerState
from transduce.nn.depth import DepthLoop


class DepthLayer(nn.Module):
    """A :class:`~transduce.nn.depth.DepthLoop` where :class:`MixerDecoder` expects a decoder layer.

    The loop stands for all layers at once, its block's attention reads the memory at every depth step.
    """

    def __init__(self, loop: DepthLoop) -> None:
        super().__init__()
        self.mixer = loop

    def start(self, batch: int, memory: Seq | None, capacity: int | None, continues: bool) -> LayerState:
        attend = self.mixer.block.attend
        if attend is not None and memory is None:
            raise ValueError("this decoder attends to a memory: give start() one")
        return LayerState(
            self.mixer.init_state(batch, capacity=capacity) if continues else None,
            attend.start(memory) if attend is not None else None,
        )

    def forward(
        self, x: Tensor, state: LayerState, mask: Tensor | None, resets: Tensor | None = None
    ) -> tuple[Tensor, LayerState]:
        y, after = self.mixer(x, state.mixer, mask=mask, resets=resets, memory=state.memory)
        return y, LayerState(after, state.memory)
