"""Steps that go wrong, and what becomes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transduce.core.seq import Batch

from . import dump
from .checkpoint import restore_random
from .engine import NotFinite, Update, is_out_of_memory

if TYPE_CHECKING:
    from .trainer import Trainer


def careful_update(run: Trainer, micro: list[Batch], rate: float) -> Update:
    """One step of the engine. A batch that does not fit into memory is computed in two halves from then on, once;
    a loss or gradient that is not finite leaves a dump behind."""
    engine, step = run.engine, run.progress.step
    try:
        return engine.update(micro, step, rate)
    except NotFinite as problem:
        dump.leave(run, problem)
        raise
    except (RuntimeError, MemoryError) as problem:
        if not is_out_of_memory(problem) or engine.parts > 1 or run.world.size > 1:
            raise
    engine.optimiser.zero_grad(set_to_none=True)
    restore_random(engine.random_before, engine.generator)
    engine.parts = run.progress.parts = 2
    run.note(f"step {step} ran out of memory: from here on each batch is computed in two halves")
    return engine.update(micro, step, rate)
