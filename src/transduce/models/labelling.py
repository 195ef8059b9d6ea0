"""A label for every step, or one for a whole sequence: a network around any mixer."""

from __future__ import annotations

from torch import Tensor, nn

from transduce.core.protocols import Mixer
from transduce.core.seq import zero_masked

POOLS = (None, "mean", "last")


class Labeller(nn.Module):
    """logits_t = W mixer(embed(x))_t + b; with ``pool`` one vector of logits a row.

    x: whatever ``embed`` turns into (B,T,dim): ids (B,T), values (B,T,F). ``pool``: None gives (B,T,num_labels),
    "mean" the logits of the mean over the valid steps, "last" those of the last valid step, both (B,num_labels).
    """

    def __init__(
        self, embed: nn.Module, mixer: Mixer, dim: int, num_labels: int, *, pool: str | None = None
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            raise ValueError(f'pool is one of {", ".join(map(repr, POOLS))}, not {pool!r}')
        self.embed, self.mixer, self.pool = embed, mixer, pool
        self.head = nn.Linear(dim, num_labels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        h, _ = self.mixer(self.embed(x), mask=mask)
        if self.pool == "mean":
            steps = h.shape[1] if mask is None else mask.sum(1, keepdim=True)
            h = zero_masked(h, mask).sum(1) / steps
        elif self.pool == "last":
            h = h[:, -1] if mask is None else h[range(len(h)), mask.cumsum(1).argmax(1)]
        return self.head(h)
