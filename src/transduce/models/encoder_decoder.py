"""Source to target: an encoder that is read once and a decoder that is conditioned on its memory."""

from __future__ import annotations

import inspect

from torch import Tensor

from transduce.core.dist import Dist
from transduce.core.errors import UserError
from transduce.core.protocols import Decoder, Encoder, Model
from transduce.core.seq import Batch
from transduce.core.state import State


class EncoderDecoder(Model):
    """p(y | x) = prod_u p(y_u | y_<u, encoder(x)). The encoder runs inside :meth:`start`."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> State:
        if batch.source is None:
            raise ValueError("an encoder-decoder needs a batch with a source")
        memory, _ = self.encoder(batch.source)
        return self.decoder.start(batch.size, memory, capacity=capacity, continues=continues)

    def forward(self, prev: Tensor, state: State, *, mask: Tensor | None = None) -> tuple[Dist, State]:
        return self.decoder(prev, state, mask=mask)


class LanguageModel(Model):
    """p(y) = prod_u p(y_u | y_<u): a decoder without a memory.

    ``resets`` (B,U), where the decoder takes them: True at the first symbol of each of several texts in a row.
    """

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> State:
        return self.decoder.start(batch.size, None, capacity=capacity, continues=continues)

    def forward(
        self, prev: Tensor, state: State, *, mask: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Dist, State]:
        if resets is None:
            return self.decoder(prev, state, mask=mask)
        if "resets" not in inspect.signature(self.decoder.forward).parameters:
            raise UserError(
                "This model cannot begin a text inside of a row: train it without packing (pack)."
            )
        return self.decoder(prev, state, mask=mask, resets=resets)
