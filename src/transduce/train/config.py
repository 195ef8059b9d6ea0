"""Every choice of a training run, in one frozen dataclass."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from transduce.core.errors import UserError

from .schedules import SCHEDULES

if TYPE_CHECKING:
    from transduce.data import Encoded, Loader

PRECISIONS = ("auto", "float32", "bf16")


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Raises :class:`UserError` naming the field when a value makes no sense."""

    max_time: float = 600.0
    """Wall-clock budget of the run in seconds, evaluations and saving included. Turned into steps once."""
    max_steps: int | None = None
    """At most this many optimiser steps."""
    max_epochs: float | None = None
    """At most this many passes over the training part; fractions are allowed."""
    batch_symbols: int = 8192
    """Padded symbols (source and target) in a batch. Long examples come in smaller batches."""
    batch_cells: int | None = None
    """At most this many padded pairs of a source and a target symbol in a batch, for models that hold a value
    for every such pair; None for no such limit."""
    longest: int | None = None
    """Training rows with a source or a target of more symbols are left out; held-out ones stay. None keeps all."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    schedule: Literal["one-cycle", "cosine", "inverse-sqrt", "constant"] = "one-cycle"
    """How the learning rate moves over the plan."""
    warmup: float = 0.1
    """Share of the plan over which the learning rate rises to its peak."""
    weight_decay: float = 0.01
    """Decoupled weight decay of AdamW, on matrices only: biases, gains and other vectors are left alone."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's decay rates of the first and second moment."""
    clip: float = 1.0
    """Largest global gradient norm; 0 switches clipping off."""
    pack: bool = False
    """Language models: fill rows with several short texts instead of padding each to the longest one."""
    accumulate: int = 1
    """Batches whose gradients are summed, weighted by their symbols, before each step."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Arithmetic of matrix products: bf16 autocast, float32, or bf16 where it is measured to be clearly
    faster."""
    ema: float | None = None
    """Decay of an exponential moving average of the weights (0.999, say), evaluated and stored instead of
    them."""
    evaluations: int = 10
    """Evaluations on held-out examples, evenly over the plan; 0 for none before the end."""
    evaluation_rows: int = 1000
    """Held-out examples that each of them reads, always the same ones."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a new best."""
    keep_best: bool = True
    """Store the weights of the best evaluation rather than the last ones."""
    log_every: int = 20
    """Steps from one line of the log to the next; widened on long runs so that about 500 lines come out."""
    tensorboard: bool = False
    """Write the figures of the log to the run folder's tensorboard/ as well (package tensorboard)."""
    save_every: float = 60.0
    """Seconds between checkpoints."""
    seed: int = 0
    """Seed of the order of the data, of dropout and of the objective's own randomness."""
    threads: int | None = None
    """CPU threads; the default leaves torch's choice."""

    def __post_init__(self) -> None:
        if not self.max_time > 0 or math.isinf(self.max_time):
            raise UserError(
                f"max_time must be a number of seconds above 0, got {self.max_time:g}; 600 is ten minutes."
            )
        for name, least in _AT_LEAST.items():
            value = getattr(self, name)
            if value is not None and not (value >= least and math.isfinite(value)):
                raise UserError(f"{name} must be at least {least}, got {value}.")
        for name in ("learning_rate", "max_epochs", "save_every"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"{name} must be above 0, got {value}.")
        for name, options in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in options:
                raise UserError(f"{name} must be one of {', '.join(options)}, got {getattr(self, name)!r}.")
        if not 0.0 <= self.warmup < 1.0:
            raise UserError(f"warmup is a share of the plan, at least 0 and below 1, got {self.warmup}.")
        if len(self.betas) != 2 or not all(0.0 <= b < 1.0 for b in self.betas):
            raise UserError(f"betas are two numbers, at least 0 and below 1, got {self.betas}.")
        if self.ema is not None and not 0.0 < self.ema < 1.0:
            raise UserError(f"ema must lie between 0 and 1, or be left out, got {self.ema}.")

    @property
    def batch_limits(self) -> dict[str, int | None]:
        """How large a batch may be."""
        return {"batch_symbols": self.batch_symbols, "batch_cells": self.batch_cells}

    def loader(self, part: Encoded) -> Loader:
        """The training part in the batches and the order of this run."""
        from transduce.data import Loader  # here, so that the command line need not wait for it

        return Loader(part, seed=self.seed, packed=self.pack, longest=self.longest, **self.batch_limits)

    def suit(self, kind: str) -> None:
        """Raise :class:`UserError` for settings that data of this kind ("pairs", "text") cannot have."""
        if self.pack and kind != "text":
            raise UserError(
                "Only texts can be packed, a row of several pairs would mix up their sources: leave pack out."
            )

    def to_json(self) -> dict[str, Any]:
        """A dictionary that JSON can hold."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}


_AT_LEAST = {
    "max_steps": 1,
    "batch_symbols": 1,
    "batch_cells": 1,
    "longest": 1,
    "weight_decay": 0,
    "clip": 0,
    "accumulate": 1,
    "evaluations": 0,
    "evaluation_rows": 1,
    "patience": 1,
    "log_every": 1,
    "threads": 1,
}

LIMITS = ("max_time", "max_steps", "max_epochs")
"""Fields that a resumed run may change: they move the end of the run."""

FREE = ("save_every", "tensorboard", "threads")
"""Fields that a resumed run may change without any trace in the numbers (threads: up to rounding)."""


def resumable(before: dict[str, Any], now: TrainConfig) -> bool:
    """Compare the settings of a stored run with the present ones.

    Returns True when a limit was moved. Raises :class:`UserError` naming a field that must not change.
    """
    present = now.to_json()
    before = {"longest": None, **before}  # runs from before there was this setting do not say
    same({k: v for k, v in before.items() if k not in LIMITS + FREE}, present)
    return any(before.get(name) != present[name] for name in LIMITS)


def same(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> None:
    """Raise :class:`UserError` naming the first entry of ``before`` that is another one ``now``."""
    for name, old in before.items():
        value = now.get(name)
        if isinstance(old, dict) and isinstance(value, dict):
            same(old, value, f"{prefix}{name}.")
        elif old != value:
            raise UserError(
                f"The run was started with {prefix}{name} = {old} "
                f"and cannot go on with {prefix}{name} = {value}: "
                f"give {old} again, or start a new run in another folder."
            )
