"""What every system page must do, in seconds: build, learn one batch, decode it, save and load to the same
outputs."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transduce.core.protocols import System
from transduce.core.registry import Page, Sample
from transduce.core.seq import EOS, Batch, Seq
from transduce.data import Corpus, Example, Prepared, prepare
from transduce.train import bundle

from .decoder import check_decoder

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight")


def tiny_data(kind: str, sample: Sample | None = None) -> Prepared:
    """The rows of a page's ``sample``; without one eight words, backwards and in capitals as pairs, or as texts."""
    if sample is not None:
        rows = [Example(source, target, (target,)) for source, target in sample.rows]
        return prepare(Corpus("tiny", kind, rows, rows, rows, *sample.units))
    examples = [Example(w if kind == "pairs" else None, w[::-1].upper(), (w[::-1].upper(),)) for w in WORDS]
    return prepare(Corpus("tiny", kind, examples, examples, examples, "chars", "chars"))


def check_system(page: Page, *, steps: int = 100, learning_rate: float = 3e-3, config: Any = None) -> System:
    """Check a page on :func:`tiny_data` and return the trained system.

    The config round-trips through JSON's types, the model obeys the decoder laws, ``steps`` steps of Adam
    on one batch bring its objective near its least value (label smoothing of 0.1 leaves a tenth of a nat a
    symbol), pairs decode to their targets, and a bundle gives back the same scores.
    """
    data = tiny_data(page.kind, page.sample)
    torch.manual_seed(0)
    system = page.build(data.spec, page.config_type() if config is None else config)
    batch = data.train.batch(np.arange(len(data.train)))
    check_decoder(system.model, _with_padding(batch))
    _overfit(system, batch, steps, learning_rate)
    system.model.eval()
    with torch.no_grad():
        if page.kind == "pairs":
            found = system.search(system.model, Batch(batch.source, None, batch.rows))
            for row, (best, *_) in zip(batch.rows, found):
                decoded = data.spec.target.decode(best.ids)
                assert decoded == data.train.examples[row].target, (
                    f"{page.name} decodes {decoded!r} after learning one batch"
                )
        _saves_and_loads(page, system, data, batch)
    return system


def _with_padding(batch: Batch) -> Batch:
    """The batch, its targets repeated a different number of times where all are too short to tell padding apart."""
    if batch.target.steps >= 3:
        return batch
    rows = [
        [*ids[keep][:-1].tolist() * (1 + i % 3), EOS]
        for i, (ids, keep) in enumerate(zip(batch.target.data, batch.target.valid()))
    ]
    return Batch(batch.source, Seq.from_lists(rows), batch.rows)


def _overfit(system: System, batch: Batch, steps: int, learning_rate: float) -> None:
    optimiser = torch.optim.Adam(system.model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.2)
    system.model.train()
    for step in range(steps):
        loss = system.objective(system.model, batch, step=step, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad(set_to_none=True)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(system.model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    system.model.eval()
    with torch.no_grad():
        nll = float(system.objective(system.model, batch, step=steps).parts["nll"])
    assert nll < _floor(system, batch) + 0.1, f"{system.name} has {nll:.3f} nats a symbol left after {steps} steps on one batch"


def _floor(system: System, batch: Batch) -> float:
    """The nll of a perfect fit, in nats a symbol. Label smoothing of e makes 1 - e the best probability of a target;
    a model without a source cannot know which of the texts comes, which costs log(rows) a row."""
    smoothing = -math.log1p(-getattr(system.objective, "label_smoothing", 0.0))
    if batch.source is not None:
        return smoothing
    return smoothing + math.log(batch.size) * batch.size / int(batch.target.valid().sum())


def _saves_and_loads(page: Page, system: System, data: Prepared, batch: Batch) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = bundle.write(Path(folder) / "bundle", system.model, page.name, system.config, data.spec, {})
        parts = bundle.read(path)
    torch.manual_seed(1)
    other = page.build(parts.spec, parts.config_as(page.config_type))
    parts.load_into(other.model)
    other.model.eval()
    scores = [
        s.model(batch.previous, s.model.start(batch), mask=batch.target.mask)[0].scores
        for s in (system, other)
    ]
    assert torch.equal(*scores), f"{page.name} gives other scores after saving and loading"
