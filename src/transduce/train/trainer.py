"""The training job: a budget becomes a plan, the plan is walked step by step, and every stop can be resumed
exactly."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any, Iterator, Mapping

import torch
from torch import Tensor

from transduce.core.errors import UserError
from transduce.core.protocols import System
from transduce.core.seq import Batch
from transduce.data.batching import Encoded, Prepared, batches

from . import bundle, checkpoint, weights
from .board import Board
from .checkpoint import random_group
from .config import TrainConfig, resumable, same
from .distributed import World
from .ending import finish
from .engine import Engine, Update
from .evaluate import Evaluation, Interrupted, evaluate
from .plan import PROVISIONAL, Moment, Pace, Plan, cap, settle, shortened
from .progress import About, Meter, Reporter, Silent, clock
from .run import RunFolder, prepare_out
from .schedules import factor
from .signals import Interrupts
from .state import RunState, TrainResult, corpus_record, data_mark
from .storage import strict_json, to_json
from .trouble import careful_update


class Trainer:
    """Train ``system`` on ``prepared`` and leave log, checkpoints, curve and bundle in the folder ``out``.

    ``out`` must be new or empty, or with ``resume`` hold a checkpoint of the same run; see
    :func:`transduce.train.run.prepare_out`. A resumed run repeats the uninterrupted one bit for bit on the
    same machine with the same threads, as long as its plan was settled before (runs limited by ``max_steps``:
    always).
    """

    def __init__(
        self,
        system: System,
        prepared: Prepared,
        config: TrainConfig,
        out: Path | str,
        *,
        reporter: Reporter | None = None,
        resume: bool = False,
        request: Mapping[str, Any] | None = None,
        world: World = World(),
    ) -> None:
        if len(prepared.train.targets) == 0 or len(prepared.valid.targets) == 0:
            raise UserError(
                f"{prepared.corpus_name} has no training or no validation examples; training needs both."
            )
        self.system = system
        self.prepared = prepared
        self.config = config
        self.out = RunFolder(Path(out))
        self.device = world.device
        self.world = world
        self.reporter: Reporter = (reporter if world.main else None) or Silent()
        self.resume = resume
        self.request = dict(request or {})  # whatever the caller wants to find again in config.json
        self.searcher = system.search if prepared.kind == "pairs" else None
        self.progress = RunState()
        self.best: dict[str, Tensor] | None = None
        self._board = Board(self.out.path / "tensorboard") if config.tensorboard and world.main else None

    def run(self) -> TrainResult:
        """Train until the plan is done, patience ends or a signal comes.

        Raises :class:`UserError` for what the user can mend: a folder in use, a full disk, a loss that is not
        finite.
        """
        started = time.perf_counter()
        threads = torch.get_num_threads()
        if self.world.main:
            prepare_out(self.out.path, resume=self.resume)
        about = About(
            self.prepared.sequence_name,
            self.prepared.symbol_name,
            self.prepared.sequence_name.removesuffix(" error") if self.prepared.kind == "pairs" else "row",
            self.prepared.kind,
        )
        self.reporter.start(about)
        try:
            if self.config.threads is not None:
                torch.set_num_threads(self.config.threads)
            with Interrupts() as self.interrupts:
                self._begin(started)
                reason = self._loop()
                return finish(self, reason)
        finally:
            if self._board is not None:
                self._board.close()
            self.reporter.stop()
            torch.set_num_threads(threads)

    # ------------------------------------------------------------ begin and go on

    def _begin(self, started: float) -> None:
        c = self.config
        self.engine = Engine(self.system.model, self.system.objective, c, self.world)
        self.loader = c.loader(self.prepared.train)
        if self.loader.left_out:
            rows = len(self.prepared.train)
            self.note(f"{self.loader.left_out:,} of {rows:,} training rows have more than {c.longest} symbols: left out")
        self._data = data_mark(self.prepared)
        self._pace = Pace()
        self._meter = Meter()
        self._limit = cap(self.config, self.loader.batches_per_epoch)
        if self.resume:
            self._restore()
        else:
            self._start_fresh()
        self.engine.precision, self.engine.parts = self.progress.precision, self.progress.parts
        self._started = started - self.progress.seconds
        self._saved_at = time.perf_counter()
        self._save_cost = 0.0
        self._batches: Iterator[Batch] = iter(self.loader)

    def _start_fresh(self) -> None:
        if self.world.main:
            self.out.write_config(
                {
                    "system": self.system.name,
                    "config": dataclasses.asdict(self.system.config),
                    "train": self.config.to_json(),
                    "corpus": corpus_record(self.prepared),
                    "device": str(self.device),
                    "processes": self.world.size,
                    "versions": bundle.versions(),
                    "request": self.request,
                }
            )
        note = self.engine.choose_precision(self._probe_batch())
        self.engine.precision = self.world.agree(self.engine.precision)
        if note:
            self.note(note)
        steps, reason = self._limit
        if steps is not None:
            rows = min(len(self.prepared.valid.targets), self.config.evaluation_rows)
            self.progress.plan = Plan(steps, reason, rows, len(self.prepared.valid.targets))
        self.progress.precision = self.engine.precision

    def _restore(self) -> None:
        found = checkpoint.load(self.out.checkpoint)
        state = found.state
        self._same_world(state.get("world", {"processes": 1, "shard": False}))
        if state["system"] != self.system.name:
            raise UserError(
                f"The run at {self.out.path} trains {state['system']}, not {self.system.name}: "
                "choose another folder."
            )
        same(state["config"], strict_json(to_json(dataclasses.asdict(self.system.config))))
        moved = resumable(state["train"], self.config)
        if state["data"] != self._data:
            raise UserError(
                f"The data have changed since the run at {self.out.path} was started: "
                "give the same data, or start a new run."
            )
        self.progress = RunState.from_json(state["progress"])
        self.engine.restore(
            found.tensors,
            self.progress.ema_steps,
            lambda tensors: checkpoint.read_spread(found.path, tensors),
        )
        self.loader.load_state_dict(state["loader"])
        self.best = found.tensors.get("best")
        if self.world.main:
            self.out.rewrite_log(self.progress.history)
        for problem in found.skipped:
            self.note(f"{problem} An older checkpoint was used.")
        if moved:
            self.progress.plan = self._moved_plan()
            self.progress.stopped_because, self.progress.stale = "", 0
        elif not self.progress.finished:
            self.progress.stopped_because = ""
        self.note(f"resumed at step {self.progress.step} after {clock(self.progress.seconds)} of training")

    def _same_world(self, before: dict[str, Any]) -> None:
        """Another number of processes is fine; sharded weights are stored in another form than whole ones."""
        if before["shard"] != self.world.shard:
            how = "with --shard" if before["shard"] else "without --shard"
            raise UserError(f"The run at {self.out.path} was started {how} and can only go on {how}.")
        if before["processes"] != self.world.size:
            self.note(
                f"{self.world.size} instead of {before['processes']} processes: the same batches, other dropout"
            )

    def _moved_plan(self) -> Plan | None:
        """After a limit was changed by the user: plan anew, at once where steps or epochs alone decide."""
        steps, reason = self._limit
        self.note("the limits were changed, so the plan is made again")
        if steps is None:
            return None
        rows = len(self.prepared.valid.targets)
        return Plan(max(steps, self.progress.step), reason, min(rows, self.config.evaluation_rows), rows)

    # ------------------------------------------------------------ the loop

    def _loop(self) -> str:
        while not self.progress.stopped_because:
            state = self.progress
            now = self.world.agree(self._look())
            if now.settle:
                self._settle()
            elif now.shorter is not None:
                self.note(f"slower than planned: {now.shorter.steps:,} steps instead of {state.plan.steps:,}")
                state.plan = now.shorter
            if now.interrupted_by:
                return f"interrupted by {now.interrupted_by}"
            if state.plan is not None and state.evaluated_at != state.step:
                if state.plan.evaluation_due(state.step, self.config.evaluations) and not self._evaluate():
                    return f"interrupted by {self.world.agree(self.interrupts.pending)}"
            if now.save:
                self.save()
            if state.plan is not None and state.step >= state.plan.steps:
                return state.plan.limited_by
            if self.config.patience is not None and state.stale >= self.config.patience:
                return f"no better for {state.stale} evaluations"
            self._step()
        return self.progress.stopped_because

    def _step(self) -> None:
        state = self.progress
        begun = time.perf_counter()
        steps = state.plan.steps if state.plan else PROVISIONAL
        rate = self.config.learning_rate * factor(self.config.schedule, state.step, steps, self.config.warmup)
        micro = [next(self._batches) for _ in range(self.config.accumulate)]
        update = careful_update(self, micro, rate)
        state.step += 1
        state.loss_sum += update.loss * update.symbols
        state.loss_symbols += update.symbols
        seconds = time.perf_counter() - begun
        self._pace.add(seconds)
        self._report(update, rate, seconds)

    def _report(self, update: Update, rate: float, seconds: float) -> None:
        state = self.progress
        planned = state.plan.steps if state.plan else None
        left = (planned - state.step) * self._pace.per_step if planned and self._pace.timed else None
        report = self._meter.read(state.step, planned, update, rate, seconds, left)
        self.reporter.step(report)
        if state.step % max(self.config.log_every, (planned or 0) // 500) == 0 or state.step == planned:
            self._log(
                {
                    "loss": state.loss_sum / max(1, state.loss_symbols),
                    "learning_rate": rate,
                    "symbols_per_second": round(report.symbols_per_second, 1),
                    "rows_per_second": round(report.rows_per_second, 1),
                }
            )
            state.loss_sum, state.loss_symbols = 0.0, 0

    def _look(self) -> Moment | None:
        """What the clock and the signals ask for before the next step; the first process looks for all."""
        if not self.world.main:
            return None
        state, elapsed = self.progress, self.elapsed()
        settle = shorter = None
        if state.plan is None or not state.plan.settled:
            settle = self._pace.known(self.config.max_time, elapsed)
        elif (
            elapsed > 0.3 * self.config.max_time
            and state.step % max(1, state.plan.steps // 20) == 0
            and self._pace.timed
        ):
            shorter = shortened(
                state.plan, self.config, state.step, elapsed, self._pace, state.seconds_per_row
            )
        due = time.perf_counter() - self._saved_at > max(self.config.save_every, 20 * self._save_cost)
        return Moment(bool(settle), shorter, due and state.step > 0, self.interrupts.pending)

    def _settle(self) -> None:
        """Turn the time budget into a plan, now that the speed is known."""
        state, cost = self.progress, self._cost_of_a_row()
        if cost is None:  # interrupted
            return
        state.seconds_per_row, rows = cost, len(self.prepared.valid.targets)
        plan = settle(self.config, state.step, self.elapsed(), self._pace, cost, rows, self._limit)
        state.plan = self.world.agree(plan)
        self.note(
            f"plan: {state.plan.steps:,} steps, {1000 * self._pace.per_step:.0f} ms each; "
            f"held-out errors on {state.plan.evaluation_rows:,} of {rows:,} examples"
        )

    def _cost_of_a_row(self) -> float | None:
        """Seconds to evaluate a held-out row, rather too many than too few. None: interrupted."""
        self.measure(min(8, len(self.prepared.valid.targets)))  # kernels of the decoder are compiled here
        found = self.measure(min(128, len(self.prepared.valid.targets)))
        return None if found is None else found.seconds / found.rows

    def elapsed(self) -> float:
        return time.perf_counter() - self._started

    # ------------------------------------------------------------ evaluation

    def measure(self, rows: int) -> Evaluation | None:
        """Evaluate the model on ``rows`` held-out examples, always the same ones; None: interrupted."""
        part, total = self.prepared.valid, len(self.prepared.valid.targets)
        if rows < total:
            part = part.select([i * total // rows for i in range(rows)])
        found = None
        with self.engine.replicas.whole():
            if self.world.main:
                found = self._measured(part)
            return self.world.agree(found)

    def _measured(self, part: Encoded) -> Evaluation | None:
        try:
            with self.engine.random_kept():
                return evaluate(
                    self.system.model,
                    self.searcher,
                    part,
                    self.prepared.spec,
                    batch_symbols=2 * self.config.batch_symbols,
                    batch_cells=self.config.batch_cells,
                    stop=lambda: self.interrupts.pending is not None,
                )
        except Interrupted:
            return None

    def _evaluate(self) -> bool:
        """Evaluate, log, and keep the weights if they are the best so far. False: interrupted."""
        state = self.progress
        with self.engine.evaluated_weights():
            found = self.measure(state.plan.evaluation_rows)
            if found is None:
                return False
            score = found.loss if found.symbol_error is None else found.symbol_error
            better = state.best_score is None or score < state.best_score
            if better:
                state.best_score, state.best_step, state.stale = score, state.step, 0
                if self.config.keep_best:
                    self.best = weights.snapshot(self.system.model)
            else:
                state.stale += 1
        state.evaluated_at, state.seconds_per_row = state.step, found.seconds / found.rows
        numbers = found.numbers()
        self._log({"valid_loss": numbers.get("loss"), **{k: v for k, v in numbers.items() if k != "loss"}})
        self.reporter.evaluated(numbers)
        return True

    # ------------------------------------------------------------ files

    def _log(self, numbers: dict[str, Any]) -> None:
        record = {
            "step": self.progress.step,
            "epoch": round(self.loader.epoch, 4),
            "seconds": round(self.elapsed(), 3),
            **numbers,
        }
        self.progress.history.append(record)
        if self.world.main:
            self.out.append_log(record)
            if self._board is not None:
                self._board.add(record)

    def note(self, text: str) -> None:
        self.progress.events.append(f"step {self.progress.step}: {text}")
        self.reporter.note(text)

    def save(self) -> None:
        begun = time.perf_counter()
        state = self.progress
        state.seconds = self.elapsed()
        state.ema_steps = self.engine.ema.steps if self.engine.ema else 0
        groups = self.engine.tensors() | ({"best": self.best} if self.best is not None else {})
        groups |= {random_group(r): states for r, states in enumerate(self.world.gathered(groups["random"]))}
        stored = {
            "system": self.system.name,
            "config": dataclasses.asdict(self.system.config),
            "train": self.config.to_json(),
            "data": self._data,
            "loader": self.loader.state_dict(),
            "progress": state.to_json(),
            "world": {"processes": self.world.size, "shard": self.world.shard},
        }
        checkpoint.save(self.out.checkpoint, groups, stored, self.world)
        self._saved_at = time.perf_counter()
        self._save_cost = self._saved_at - begun

    def _probe_batch(self) -> Batch:
        """A held-out batch of middling length."""
        found = batches(self.prepared.valid, **self.config.batch_limits)
        return found[len(found) // 2]
