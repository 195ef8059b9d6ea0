"""The end of a run: last checkpoint, final figures, curve and bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import bundle, plots, weights
from .state import TrainResult, corpus_record

if TYPE_CHECKING:
    from .trainer import Trainer


def finish(run: Trainer, reason: str) -> TrainResult:
    """Store the run and its bundle. With several processes all of them must come here."""
    state = run.progress
    state.stopped_because = reason
    run.save()
    metrics = {} if run.world.agree(run.interrupts.pending) else _final_metrics(run)
    pending = run.world.agree(run.interrupts.pending)
    if pending:  # perhaps only during that last measurement, which a resumed run repeats
        reason = f"interrupted by {pending}"
        run.note(f"{reason} at step {state.step}; go on with --resume")
    if run.world.main:
        plots.learning_curve(
            state.history,
            run.out.curve,
            sequence_name=run.prepared.sequence_name,
            symbol_name=run.prepared.symbol_name,
        )
    written = _write_bundle(run, metrics, reason)
    return TrainResult(metrics, state.history, reason, state.step, run.elapsed(), written)


def _final_metrics(run: Trainer) -> dict[str, Any]:
    """Measure the weights that go into the bundle on all held-out examples that the budget allows."""
    rows = run.progress.plan.final_rows
    current = None
    with run.engine.evaluated_weights():
        if run.best is not None:
            current = weights.snapshot(run.system.model)
            weights.restore(run.system.model, run.best, what="The best weights")
        else:
            run.best = weights.snapshot(run.system.model)
        found = run.measure(rows)
        if current is not None:
            weights.restore(run.system.model, current, what="The last weights")
    return {} if found is None else {"valid": found.numbers()}


def _write_bundle(run: Trainer, metrics: dict[str, Any], reason: str) -> Path:
    """The best weights where they are known, the present ones otherwise; they also stay in the model."""
    state = run.progress
    if run.best is None:
        with run.engine.evaluated_weights():
            run.best = weights.snapshot(run.system.model)
    training = {
        "steps": state.step,
        "epochs": round(run.loader.epoch, 2),
        "seconds": round(run.elapsed(), 1),
        "weights_of_step": (run.config.keep_best and state.best_step) or state.step,
        "stopped_because": reason,
        "optimiser": "AdamW",
        "device": str(run.device),
        "processes": run.world.size,
        **run.config.to_json(),
        "precision": state.precision,
        "threads": torch.get_num_threads(),
    }
    about = {"corpus": corpus_record(run.prepared), "training": training}
    system, spec = run.system, run.prepared.spec
    written = run.out.bundle
    if run.world.main:
        bundle.write(written, run.best, system.name, system.config, spec, metrics, about, True)
    weights.restore(run.system.model, run.best, what="The stored weights")
    run.system.model.eval()
    return written
