"""The step at which a loss or gradient was no longer finite, kept so that it can be computed again.

::

    dump-000123/  dump.json            system, settings, data fields, step, precision, rows, what was found
                  tensors.safetensors  weights before the step, the batch, the states of the generators
"""

from __future__ import annotations

import dataclasses
import math
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Mapping

import torch
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as format_tensors
from torch import Tensor, nn

from transduce.core.errors import UserError
from transduce.core.protocols import Model, System
from transduce.core.seq import Batch, Seq

from . import weights
from .checkpoint import restore_random
from .engine import NotFinite, autocast
from .storage import new_folder, strict_json, to_json, write_new

if TYPE_CHECKING:
    from .trainer import Trainer

KIND = "transduce dump"


@dataclass(frozen=True)
class Dump:
    """What :func:`read` finds. ``about`` is dump.json."""

    about: dict[str, Any]
    weights: dict[str, Tensor]
    random: dict[str, Tensor]
    batch: Batch


@dataclass(frozen=True)
class Found:
    """What a step gave: the loss, and the first module whose output or parameter whose gradient is not finite."""

    loss: float
    layer: str | None
    gradient: str | None

    @property
    def finite(self) -> bool:
        return math.isfinite(self.loss) and self.gradient is None


def leave(run: Trainer, problem: NotFinite) -> None:
    """Find the layer and write a dump into the run folder; the problem then names both. A disk that refuses, or
    weights that are spread over processes, leave the problem as it is."""
    engine = run.engine
    if run.world.shard:
        return
    kept = {name: t.clone() for name, t in engine.random_before.items()}
    batch = problem.batch.to(run.device)
    restore_random(kept, engine.generator)
    found = compute(run.system, batch, problem.step, engine.precision, engine.generator)
    problem.layer = found.layer or found.gradient
    if not run.world.main:
        return
    about = {
        "kind": KIND,
        "format": 1,
        "system": run.system.name,
        "config": dataclasses.asdict(run.system.config),
        "spec": run.prepared.spec.to_json(),
        "step": problem.step,
        "seed": run.config.seed,
        "precision": engine.precision,
        "rows": list(problem.batch.rows),
        "what": problem.what,
        "value": str(problem.value),
        "layer": problem.layer,
    }
    path = run.out.path / f"dump-{problem.step:06d}"
    try:
        with new_folder(path) as folder:
            write_new(folder / "tensors.safetensors", format_tensors(_tensors(run.system.model, kept, batch)))
            write_new(folder / "dump.json", to_json(about))
    except OSError:
        return
    problem.dump = str(path)


def _tensors(model: Model, random: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    found = {f"model/{name}": t for name, t in weights.snapshot(model).items()}
    found |= {f"random/{name}": t for name, t in random.items()}
    for side, seq in (("source", batch.source), ("target", batch.target)):
        if seq is not None:
            found |= {f"batch/{side}": seq.data, f"batch/{side}_mask": seq.valid()}
    if batch.resets is not None:
        found["batch/resets"] = batch.resets
    return {name: t.detach().cpu().contiguous() for name, t in found.items()}


def read(path: Path | str) -> Dump:
    """Raises :class:`UserError` for what is no dump, or a damaged one. Nothing in it is code."""
    path = Path(path)
    try:
        about = strict_json((path / "dump.json").read_bytes())
        tensors = parse_tensors((path / "tensors.safetensors").read_bytes())
        if about["kind"] != KIND:
            raise KeyError
    except FileNotFoundError:
        raise UserError(f"{path} is not a dump: name the folder dump-... that a stopped run names.") from None
    except Exception:
        raise UserError(f"The dump {path} is damaged, so the step cannot be shown again.") from None
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "random": {}, "batch": {}}
    for name, tensor in tensors.items():
        group, rest = name.split("/", 1)
        groups[group][rest] = tensor.clone()
    parts = groups["batch"]
    seqs = [Seq(parts[side], parts[f"{side}_mask"]) if side in parts else None for side in ("source", "target")]
    batch = Batch(*seqs, tuple(about["rows"]), parts.get("resets"))
    return Dump(about, groups["model"], groups["random"], batch)


def replay(found: Dump, system: System) -> Found:
    """Compute the step again. ``system``: the dump's system, built with its settings."""
    weights.restore(system.model, found.weights, what="The dump")
    generator = torch.Generator()
    restore_random(found.random, generator)
    about = found.about
    return compute(system, found.batch, about["step"], about["precision"], generator)


def compute(
    system: System, batch: Batch, step: int, precision: str, generator: torch.Generator
) -> Found:
    """Loss and gradients of one batch, and where the first number is lost. Weights stay as they are."""
    model = system.model
    model.train()
    kept = [p.grad for p in model.parameters()]
    for p in model.parameters():
        p.grad = None
    with _watched(model) as lost:
        with autocast(next(model.parameters()).device, precision):
            loss = system.objective(model, batch, step=step, generator=generator)
        value = float(loss.total.detach())
        gradient = None
        if math.isfinite(value):
            loss.total.backward()
            wrong = [n for n, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
            gradient = f"the gradient of {wrong[-1]}" if wrong else None
    for p, grad in zip(model.parameters(), kept):
        p.grad = grad
    layer = lost[0] if lost else None if math.isfinite(value) else "the loss itself"
    return Found(value, layer, gradient)


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules whose outputs hold NaN or infinity, in the order in which they were computed."""
    lost: list[str] = []

    def watch(name: str):  # noqa: ANN202
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not all(t.isfinite().all() for t in _floats(output)):
                broken = next((n for n, p in module.named_parameters() if not p.isfinite().all()), None)
                lost.append(f"the weights {name}.{broken}" if broken else name)

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if name]
    try:
        yield lost
    finally:
        for handle in handles:
            handle.remove()


def _floats(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _floats(item)
    elif isinstance(value, Seq):
        yield value.data if value.mask is None else value.data[value.mask]
