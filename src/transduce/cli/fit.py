"""``transduce fit``: train, measure, draw, and say what to type next."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Sequence

import tyro

from transduce import systems
from transduce.core.errors import UserError
from transduce.core.registry import Page

from .data import DataOptions
from .machine import set_up
from .options import given, parse, replaced, seconds, settings_of

if TYPE_CHECKING:
    import torch

    from transduce.train.distributed import World


@dataclass(frozen=True)
class RunOptions:
    out: Path
    """Folder of the run; it must not exist yet."""
    max_time: str = "10m"
    """Wall clock of the whole command, loading and measuring included: 600, 90s, 10m, 2h."""
    device: str = "cpu"
    """cpu, or cuda where torch sees one."""
    resume: bool = False
    """Go on with the run in --out, under its own settings and data."""
    force: bool = False
    """Replace the run in --out."""
    devices: int = 1
    """Processes to train in on this machine (a GPU each with --device cuda). For several machines start
    `torchrun ... -m transduce.cli.main fit ...` on each, without this flag."""
    dry_run: bool = False
    """Tell memory, time per step and latency, measured on a few batches, and stop before the first step."""
    shard: bool = False
    """Spread weights, gradients and optimiser state over the processes (fully_shard)."""


def fit_command(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] not in ("-h", "--help"):
            raise UserError(
                "Name the system first: transduce fit SYSTEM --data ... --out ...; `transduce systems` lists them."
            )
        print(
            "usage: transduce fit SYSTEM --data NAME_OR_FILE --out FOLDER [options]\n\n"
            f"systems: {', '.join(systems.names())}\n\n"
            "`transduce fit SYSTEM --help` lists the options; `transduce systems` describes the systems."
        )
        return 0
    name, *rest = arguments
    page = systems.find(name)
    asked_for_help = not {"-h", "--help"}.isdisjoint(rest)
    options = parse(_options(page, asked_for_help), rest, f"fit {name}", page.title)
    if options.run.devices < 1:
        raise UserError(f"--devices must be at least 1, got {options.run.devices}.")
    from transduce.train.distributed import joined, launched

    device = set_up(options.run.device, options.run.devices)
    if options.run.dry_run and (options.run.devices > 1 or launched()):
        raise UserError("--dry-run measures one process; leave --devices out.")
    if options.run.devices > 1 and not launched():
        from .launch import launch

        return launch(["fit", *arguments], options.run.devices)
    with joined(device, shard=options.run.shard) as world:
        return _Job(page, options, rest, device, world).run()


def _options(page: Page, exact: bool) -> type:
    """One parser for data, run, the system's config and the training settings. ``exact``: show the training
    defaults of the system itself, which takes building it."""
    from transduce.systems.build import train_defaults
    from transduce.train import TrainConfig

    train = train_defaults(page) if exact else TrainConfig()
    parts = [
        ("data", settings_of(DataOptions(), "Data", "What to train on.")),
        ("run", tyro.conf.FlagCreatePairsOff[RunOptions]),
        ("model", settings_of(page.config_type(), "Model", f"The architecture of {page.name}.")),
        ("training", settings_of(train, "Training", f"Defaults are those of {page.name}.", ("max_time",))),
    ]
    return dataclasses.make_dataclass("Fit", parts, frozen=True)


def _going_on(options: RunOptions) -> RunOptions:
    """The options of processes that were started again after one had died: go on from the checkpoint if there
    is one."""
    from transduce.train import checkpoint
    from transduce.train.distributed import restarted

    if not restarted():
        return options
    stored = bool(checkpoint.stored(options.out / "checkpoint"))
    return dataclasses.replace(options, resume=stored, force=not stored)


class _Job:
    """One run of the command: settings from the flags, and from the stored run where it is resumed."""

    def __init__(
        self, page: Page, options: Any, arguments: Sequence[str], device: torch.device, world: World
    ) -> None:
        self.started = time.perf_counter()
        self.page, self.device, self.world = page, device, world
        self.run_options = _going_on(options.run)
        self.budget = seconds(options.run.max_time)
        self.data = DataOptions(**dataclasses.asdict(options.data))
        self.model, self.train = given(options.model, arguments), given(options.training, arguments)
        if self.run_options.resume:
            self._take_over(given(options.data, arguments), "max_time" in given(options.run, arguments))
        if self.data.data is None:
            raise UserError("Say what to train on: --data with the name of a corpus or the path of a file.")
        if self.data.vocabulary is not None and self.data.vocabulary < 1:
            raise UserError(f"--vocabulary must be at least 1, got {self.data.vocabulary}.")

    def _take_over(self, data: dict[str, Any], new_budget: bool) -> None:
        """The stored run's settings, under those that were given anew. Its time limit stays unless there is a
        new one, so that its plan, and with it every number, stays the same."""
        from transduce.train import RunFolder, prepare_out

        out = self.run_options.out
        if self.world.main:
            prepare_out(out, resume=True, force=self.run_options.force)
        stored = RunFolder(out).read_config()
        if stored.get("system") != self.page.name:
            raise UserError(
                f"The run at {out} trains {stored.get('system')}, not {self.page.name}: name that system, or "
                "choose another folder."
            )
        self.model = {**stored.get("config", {}), **self.model}
        train = dict(stored.get("train", {}))
        if new_budget:
            train.pop("max_time", None)
        self.train = {**train, **self.train}
        self.data = dataclasses.replace(DataOptions.from_json(stored.get("request") or {}), **data)

    def run(self) -> int:
        import torch

        from transduce.systems.build import assemble
        from transduce.train import Trainer, prepare_out
        from transduce.train.progress import reporter

        options, page = self.run_options, self.page
        corpus = self.data.load(quiet=not self.world.main)
        seed = self.train.get("seed", 0)
        prepared, system = assemble(
            page, corpus, replaced(page.config_type(), self.model), vocabulary=self.data.vocabulary, seed=seed
        )
        config = replaced(dataclasses.replace(system.train, max_time=self._time_left()), self.train)
        config.suit(prepared.kind)
        if options.dry_run:
            from transduce.train.forecast import forecast

            print("\n".join(forecast(system, prepared, config, self.world).lines(config)))
            return 0
        if not options.resume and self.world.main:  # behind everything that can be refused: --force deletes the old run here
            prepare_out(options.out, force=options.force)
        system.model.to(self.device)
        if self.world.main:
            several = f"{self.world.size} processes of " if self.world.size > 1 else ""
            print(
                f"{page.name}: {sum(p.numel() for p in system.model.parameters()):,} parameters on {self.device}, "
                f"{several}{config.threads or torch.get_num_threads()} threads\n"
                f"{corpus.name}: {len(prepared.train):,} training rows, {len(prepared.valid):,} valid, "
                f"{len(prepared.test):,} test",
                file=sys.stderr,
            )
        result = Trainer(
            system, prepared, config, options.out, reporter=reporter(),
            resume=options.resume, request=self.data.to_json(), world=self.world,
        ).run()  # fmt: skip
        if not self.world.main:
            return result.exit_code
        if result.interrupted:
            again = ["transduce", "fit", page.name, "--out", str(options.out), "--resume"]
            print(f"stopped at step {result.steps:,}; go on with:\n  {shlex.join(again)}")
            return result.exit_code
        from .report import finish

        finish(options.out, prepared, result, self.device)
        return 0

    def _time_left(self) -> float:
        """The rest of the budget after loading, less what the final measurement on the test part takes."""
        spent = time.perf_counter() - self.started
        return max(1.0, (self.budget - spent) * 0.93 - min(10.0, 0.1 * self.budget))
