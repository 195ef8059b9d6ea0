"""A tiny recurrent encoder-decoder, a data set and a searcher for the tests of training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transduce.core.dist import Categorical
from transduce.core.protocols import Hypothesis, Model, System
from transduce.core.seq import BOS, EOS, Batch
from transduce.data.batching import Encoded, Example, Prepared
from transduce.data.fields import DataSpec, TextField
from transduce.objectives.likelihood import Likelihood
from transduce.train.config import TrainConfig


@dataclass(frozen=True)
class ToyConfig:
    width: int = 16
    dropout: float = 0.1
    sizes: tuple[int, ...] = (1, 2)


class Toy(Model):
    """The mean of the source embeddings starts a GRU over the target."""

    def __init__(self, spec: DataSpec, c: ToyConfig, kind: str = "pairs") -> None:
        super().__init__()
        self.source = nn.Embedding(spec.source.size, c.width) if kind == "pairs" else None
        self.target = nn.Embedding(spec.target.size, c.width)
        self.gru = nn.GRU(c.width, c.width, batch_first=True)
        self.dropout = nn.Dropout(c.dropout)
        self.out = nn.Linear(c.width, spec.target.size)
        self.out.weight = self.target.weight  # shared, as many real models do
        self.width = c.width

    def start(self, batch: Batch, *, capacity: int | None = None, continues: bool = True) -> Tensor:
        if batch.source is None:
            return torch.zeros(batch.size, self.width)
        valid = batch.source.valid()[..., None]
        return (self.source(batch.source.data) * valid).sum(1) / valid.sum(1)

    def forward(
        self, prev: Tensor, state: Tensor, *, mask: Tensor | None = None
    ) -> tuple[Categorical, Tensor]:
        y, state = self.gru(self.dropout(self.target(prev)), state[None].contiguous())
        return Categorical(self.out(y)), state[0]


def greedy(model: Model, batch: Batch, longest: int = 8) -> list[list[Hypothesis]]:
    state = model.start(batch)
    ids = torch.full((batch.size, 1), BOS)
    steps = []
    for _ in range(longest):
        dist, state = model(ids, state)
        ids = dist.mode()
        steps.append(ids)
    rows = torch.cat(steps, 1).tolist()
    return [[Hypothesis(tuple(r[: r.index(EOS)] if EOS in r else r), 0.0)] for r in rows]


def pairs(count: int = 120, kind: str = "pairs") -> Prepared:
    """Words of two or three letters and their upper-case, reversed spelling, one symbol a letter."""
    letters = "abcdefg"
    words = [letters[i % 7] + letters[(i // 7) % 7] + (letters[i % 5] if i % 2 else "") for i in range(count)]
    examples = [Example(w if kind == "pairs" else None, w[::-1].upper(), (w[::-1].upper(),)) for w in words]
    source, target = TextField.learn(words, "chars"), TextField.learn([e.target for e in examples], "chars")
    spec = DataSpec(source if kind == "pairs" else None, target, 3, 4)

    def encoded(part: list[Example]) -> Encoded:
        sources = [source.encode(e.source) for e in part] if kind == "pairs" else None
        return Encoded(sources, [target.encode(e.target) + [EOS] for e in part], part)

    parts = (encoded(examples[20:]), encoded(examples[:10]), encoded(examples[10:20]))
    return Prepared("toy", kind, spec, *parts, "word error", "letter error")


def toy(data: Prepared, *, seed: int = 0, config: ToyConfig = ToyConfig()) -> System:
    torch.manual_seed(seed)
    return System("toy", Toy(data.spec, config, data.kind), Likelihood(), greedy, config)


def quick(**changes: Any) -> TrainConfig:
    return TrainConfig(
        **{"max_steps": 30, "batch_symbols": 64, "precision": "float32", "evaluations": 3, **changes}
    )


class Recorder:
    """A reporter that keeps everything it is told."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.evaluations: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.stop_at = stop_at
        self.stopped = False

    def start(self, about: Any) -> None:
        self.about = about

    def step(self, report: Any) -> None:
        self.losses.append(report.loss)
        self.rates.append(report.learning_rate)
        if report.step == self.stop_at:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    def evaluated(self, numbers: dict[str, Any]) -> None:
        self.evaluations.append(dict(numbers))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def stop(self) -> None:
        self.stopped = True


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
