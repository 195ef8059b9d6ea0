"""Spoken digits as sequences of mel energies, for the checks of mixers, and networks that listen to them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from transduce.core.seq import zero_masked
from transduce.data.corpora._spoken_digits import RATE, Recording, load_recordings
from transduce.models import Labeller

from ._digits import Sequences

BANDS, WINDOW, HOP, MOST, ANSWERS = 40, 200, 80, 100, 10
"""Mel bands; 25 ms are looked at every 10 ms; no word is followed for more than one second."""


def mel_bands(size: int = 256, low: float = 60.0, high: float = 3800.0) -> Tensor:
    """(BANDS, size/2+1): triangles over the bins of a Fourier transform, equally wide on the mel scale."""
    to_mel = lambda f: 2595 * np.log10(1 + f / 700)
    edges = 700 * (10 ** (np.linspace(to_mel(low), to_mel(high), BANDS + 2) / 2595) - 1)
    bins = np.arange(size // 2 + 1) * RATE / size
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return torch.from_numpy(np.minimum(rising, falling).clip(0)).float()


def mel_energies(recording: Recording) -> Tensor:
    """(T,BANDS) logarithms, a step for every 10 ms."""
    samples = torch.from_numpy(recording.samples / 2.0**15).float()
    samples = nn.functional.pad(samples, (0, max(0, WINDOW - len(samples))))
    frames = samples.unfold(0, WINDOW, HOP)[:MOST] * torch.hann_window(WINDOW)
    return torch.log(torch.fft.rfft(frames, 256).abs().square() @ mel_bands().T + 1e-6)


def spoken_digits(*, choosing: bool = False) -> dict[str, Sequences]:
    """"train" (2,700, the validation part included) and "test" (300): each band of mean 0 and deviation 1 over the training
    part, and NaN behind the end of a word. For ``choosing`` settings, the validation part is what is tested on."""
    parts = load_recordings()
    if choosing:
        rows = {"train": parts["train"], "test": parts["valid"]}
    else:
        rows = {"train": parts["train"] + parts["valid"], "test": parts["test"]}
    energies = {name: [mel_energies(r) for r in found] for name, found in rows.items()}
    every = torch.cat(energies["train"])
    mean, deviation = every.mean(0), every.std(0)
    return {
        name: Sequences(
            nn.utils.rnn.pad_sequence([(e - mean) / deviation for e in found], True, torch.nan),
            torch.tensor([r.digit for r in rows[name]]),
        )
        for name, found in energies.items()
    }


class Listener(nn.Module):
    """A labeller of sequences that end in NaN, taught to answer before their end.

    While it is trained it answers (N,V,ANSWERS) from the mean of its features after evenly spaced shares of each sequence,
    from ``least`` to all of it, and hears inputs with noise of deviation ``noise``. In evaluation it answers once, (N,V).
    """

    def __init__(self, labeller: Labeller, *, least: float = 0.4, noise: float = 0.4) -> None:
        super().__init__()
        self.labeller, self.least, self.noise = labeller, least, noise

    def forward(self, x: Tensor) -> Tensor:
        lengths = steps(x)
        mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        x = x.nan_to_num()
        if not self.training:
            return self.labeller(x, mask)
        longest = int(lengths.max())
        x, mask = x[:, :longest], None if bool(mask[:, :longest].all()) else mask[:, :longest]
        h, _ = self.labeller.mixer(self.labeller.embed(x + self.noise * torch.randn_like(x)), mask=mask)
        shares = torch.linspace(self.least, 1.0, ANSWERS, device=x.device)
        counts = (lengths[:, None] * shares).ceil().long()
        sums = zero_masked(h, mask).cumsum(1).gather(1, (counts - 1)[..., None].expand(-1, -1, h.shape[2]))
        return self.labeller.head(sums / counts[..., None]).mT


def steps(x: Tensor) -> Tensor:
    """(N,): length of each sequence."""
    return (~x[..., 0].isnan()).sum(1)
