"""``transduce sweep``: search for good settings of a system; the journal file is all that processes share."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from transduce import systems
from transduce.core.errors import UserError

from .data import DataOptions
from .machine import set_up
from .options import parse, replaced, seconds, settings_of
from .searching import Watch, score_of, searched
from .settings import as_flags, divided, read, shown, try_out

STUDY = "transduce sweep"
SHOWN = 5


@dataclass(frozen=True)
class SweepOptions:
    system: tyro.conf.Positional[str]
    """The system whose settings are searched."""
    search: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting to search: FIELD=LOW:HIGH, FIELD=LOW:HIGH:log or FIELD=A,B,C; may be given often."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A setting to keep, FIELD=VALUE; may be given often."""
    trials: int = 20
    """Trainings in all, those of earlier calls and of other processes on the same journal included."""
    budget: str = "60s"
    """Wall clock of each training: 600, 90s, 10m, 2h."""
    journal: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="")] = None
    """File that remembers the sweep; runs/sweep-SYSTEM-DATA.log where left out."""
    seed: int = 0
    """Seed of every training."""
    device: str = "cpu"
    """cpu, or cuda where torch sees one."""


def sweep_command(arguments: Sequence[str]) -> int:
    parts = [
        ("data", settings_of(DataOptions(), "Data", "What to train on.")),
        ("run", tyro.conf.FlagCreatePairsOff[SweepOptions]),
    ]
    kind = dataclasses.make_dataclass("Sweep", parts, frozen=True)
    options = parse(kind, arguments, "sweep", "Search for good settings by the error on held-out rows.")
    return Sweep(options.run, DataOptions(**dataclasses.asdict(options.data))).run(
        ["transduce", "sweep", *arguments]
    )


def import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(
            'A sweep needs optuna, which is not installed: pip install "transduce[train]".'
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


class Sweep:
    """What is asked for, checked as far as it can be; then trial after trial until there are enough."""

    def __init__(self, options: SweepOptions, data: DataOptions) -> None:
        self.optuna = import_optuna()
        self.options, self.data = options, data
        self.page = systems.find(options.system)
        self.budget = seconds(options.budget, "--budget")
        if data.data is None:
            raise UserError("Say what to train on: --data with the name of a corpus or the path of a file.")
        if options.trials < 1:
            raise UserError(f"--trials must be at least 1, got {options.trials}.")
        self.space = [searched(self.page, text) for text in options.search]
        if not self.space:
            raise UserError("Say what to search, for example --search learning_rate=1e-4:1e-2:log.")
        self.fixed = self._fixed()
        twice = [n for n in self._names() if self._names().count(n) > 1]
        if twice:
            raise UserError(f"{twice[0]} stands there twice; search it or set it, once.")
        try_out(self.page, self.fixed)
        self.journal = options.journal or Path("runs") / f"sweep-{options.system}-{Path(data.data).stem}.log"

    def _names(self) -> list[str]:
        return [s.name for s in self.space] + list(self.fixed)

    def _fixed(self) -> dict[str, Any]:
        found = {}
        for text in self.options.set:
            field, equals, value = text.partition("=")
            if not equals:
                raise UserError(f'--set takes FIELD=VALUE, not "{text}".')
            found[field.replace("-", "_")] = read(self.page, field, value)
        return found

    # ------------------------------------------------------------ the study

    def request(self) -> dict[str, Any]:
        """What makes a sweep the same one."""
        return {
            "system": self.page.name,
            "search": [dataclasses.asdict(s) | {"choices": list(s.choices)} for s in self.space],
            "set": json.loads(json.dumps(self.fixed)),
            "data": self.data.to_json(),
            "budget": self.budget,
            "seed": self.options.seed,
        }

    def study(self) -> Any:
        """The study in the journal, new or gone on with. Raises :class:`UserError` for another sweep's."""
        from transduce.train.config import same
        from transduce.train.storage import writing

        optuna = self.optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        with writing(self.journal):
            self.journal.parent.mkdir(parents=True, exist_ok=True)
            if self.journal.is_dir():
                raise UserError(f"{self.journal} is a folder; name a file as --journal.")
            self._refuse_other_files()
            try:
                study = optuna.create_study(
                    storage=JournalStorage(JournalFileBackend(str(self.journal))), study_name=STUDY,
                    sampler=optuna.samplers.TPESampler(n_startup_trials=6, constant_liar=True),
                    pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
                    load_if_exists=True,
                )  # fmt: skip
                stored = study.user_attrs.get("request")
            except (ValueError, KeyError, TypeError, AttributeError):
                raise UserError(f"{self.journal} is damaged; name another file as --journal.") from None
        if stored is None:
            study.set_user_attr("request", self.request())
            study.enqueue_trial(self._defaults(), skip_if_exists=True)
            return study
        try:
            for before, now in ((stored, self.request()), (self.request(), stored)):
                same(before, now)
        except UserError as problem:
            said = str(problem).split(":")[0].replace("The run was", f"The sweep in {self.journal} was")
            raise UserError(f"{said}; name another --journal.") from None
        return study

    def _refuse_other_files(self) -> None:
        """optuna would append to any file; a journal's first line is the creation of a study."""
        if not self.journal.exists():
            return
        with open(self.journal, "rb") as file:
            first = file.readline(10_000)
        try:
            ours = not first or json.loads(first)["study_name"] == STUDY
        except (ValueError, KeyError, TypeError):
            ours = False
        if not ours:
            raise UserError(f"{self.journal} is not the journal of a sweep; name another file as --journal.")

    def _defaults(self) -> dict[str, Any]:
        """The system's own values of what is searched: the first trial, so that no result is worse."""
        from transduce.systems.build import train_defaults

        own = dataclasses.asdict(train_defaults(self.page)) | dataclasses.asdict(self.page.config_type())
        return {
            s.name: str(own[s.name]) if s.choices else own[s.name]
            for s in self.space
            if s.holds(own[s.name])
        }

    # ------------------------------------------------------------ trials

    def run(self, command: Sequence[str]) -> int:
        from transduce.systems.build import KINDS

        device = set_up(self.options.device)
        corpus = self.data.load()
        if corpus.kind != self.page.kind:
            raise UserError(
                f"{self.page.name} trains on {KINDS[self.page.kind]}; "
                f"{corpus.name} holds {KINDS[corpus.kind]}."
            )
        study = self.study()
        while (left := self._left(study)) > 0:
            print(f"\n{left} trials left, about {left * self.budget / 60:.0f} min", file=sys.stderr)
            if not self._trial(study, corpus, device):
                print(f"stopped; the same command goes on:\n  {shlex.join(command)}")
                return 130
        self._report(study, corpus)
        return 0

    def _left(self, study: Any) -> int:
        """Trials that nobody has begun. What a killed process has left behind is begun anew."""
        states = self.optuna.trial.TrialState
        live = 0
        for trial in study.get_trials(deepcopy=False):
            if trial.state == states.RUNNING:
                begun = trial.user_attrs.get("begun", time.time())
                if time.time() - begun > 3 * self.budget + 300:
                    study.tell(trial.number, state=states.FAIL, skip_if_finished=True)
                else:
                    live += 1
            live += trial.state in (states.COMPLETE, states.PRUNED)
        return self.options.trials - live

    def _trial(self, study: Any, corpus: Any, device: Any) -> bool:
        """Ask for settings, train, tell. False: the user has stopped it."""
        states = self.optuna.trial.TrialState
        trial = study.ask()
        trial.set_user_attr("begun", time.time())
        try:
            values = self._values(trial)
            print(f"trial {trial.number}: {shown(values)}", file=sys.stderr, flush=True)
            score, reason = self._train(values, corpus, device, trial)
        except self.optuna.TrialPruned:
            score, reason = None, "behind the others"
        except BaseException:
            study.tell(trial, state=states.FAIL)
            raise
        if score is None and not reason:
            study.tell(trial, state=states.FAIL)
            return False
        if score is None:
            # Pruned, not failed: the search learns from it to stay away.
            trial.set_user_attr("reason", reason)
            study.tell(trial, state=states.PRUNED)
            print(f"trial {trial.number}: given up, {reason}", file=sys.stderr)
        else:
            study.tell(trial, score)
            print(f"trial {trial.number}: {_figure(score, corpus)}", file=sys.stderr)
        return True

    def _values(self, trial: Any) -> dict[str, Any]:
        found = dict(self.fixed)
        for s in self.space:
            value = s.suggest(trial)
            found[s.name] = read(self.page, s.name, value) if s.choices else value
        return found

    def _train(
        self, values: Mapping[str, Any], corpus: Any, device: Any, trial: Any
    ) -> tuple[float | None, str]:
        """The error on the validation part, or None and why. No reason: the user has stopped it."""
        from transduce.systems.build import assemble
        from transduce.train import TrainConfig, Trainer, World
        from transduce.train.engine import NotFinite

        from .trial import sentence

        model, train = divided(self.page, values)
        try:
            try_out(self.page, values)
        except UserError as problem:  # settings that do not go together
            return None, str(problem)
        prepared, system = assemble(
            self.page, corpus, replaced(self.page.config_type(), model), vocabulary=self.data.vocabulary,
            seed=self.options.seed,
        )  # fmt: skip
        settings = dataclasses.replace(
            system.train or TrainConfig(), max_time=self.budget, max_steps=None, max_epochs=None,
            seed=self.options.seed,
        )  # fmt: skip
        settings = replaced(settings, train)
        system.model.to(device)
        place = tempfile.TemporaryDirectory(prefix="transduce-trial-")
        with place as folder, sentence(only_memory=True) as said:
            try:
                result = Trainer(
                    system, prepared, settings, Path(folder) / "run", world=World.alone(device), reporter=Watch(trial),
                ).run()  # fmt: skip
            except NotFinite:
                return None, "the loss was no longer a finite number"
        if said:
            return None, said[0]
        return (None, "") if result.interrupted else (score_of(result.metrics.get("valid", {})), "")

    # ------------------------------------------------------------ the end

    def _report(self, study: Any, corpus: Any) -> None:
        from transduce.report.sweep import picture

        states = self.optuna.trial.TrialState
        finished = sorted(
            (t for t in study.get_trials(deepcopy=False) if t.state == states.COMPLETE), key=lambda t: t.value
        )
        if not finished:
            reasons = {t.user_attrs.get("reason") for t in study.get_trials(deepcopy=False)} - {None}
            raise UserError(f"No trial came to an end: {'; '.join(sorted(reasons)) or 'all were stopped'}")
        pruned = sum(t.state == states.PRUNED for t in study.get_trials(deepcopy=False))
        print(
            f"{len(finished)} trials finished, {pruned} were given up; by the {_name(corpus)} on the "
            "validation part (the test part was not looked at):"
        )
        for t in finished[:SHOWN]:
            print(f"  trial {t.number:>3}  {_figure(t.value, corpus)}  {shown(rounded(t.params))}")
        scale = 1.0 if corpus.kind == "text" else 100.0
        unit = "" if corpus.kind == "text" else ", %"
        drawn = picture(
            study.get_trials(deepcopy=False), {s.name: s.log for s in self.space},
            self.journal.with_suffix(".png"),
            f"{self.page.name} on {corpus.name}: {_name(corpus)}{unit}", scale,
        )  # fmt: skip
        print(f"journal: {self.journal}   picture: {drawn}")
        print(f"train with the best settings:\n  {self.command(finished[0])}")

    def command(self, best: Any) -> str:
        """The ``fit`` command with the settings of a trial."""
        values = {
            **self.fixed,
            **{
                s.name: read(self.page, s.name, best.params[s.name]) if s.choices else best.params[s.name]
                for s in self.space
            },
        }
        words = ["transduce", "fit", self.page.name]
        for field in dataclasses.fields(self.data):
            value = getattr(self.data, field.name)
            if value is not None and value != field.default:
                words += [f"--{field.name.replace('_', '-')}", str(value)]
        out = Path("runs") / f"{self.page.name}-best"
        return shlex.join([*words, "--out", str(out), "--max-time", f"{self.budget:g}s", *as_flags(values)])


def rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}


def _name(corpus: Any) -> str:
    return "bits per character" if corpus.kind == "text" else corpus.symbol_name


def _figure(score: float, corpus: Any) -> str:
    return f"{score:.4f}" if corpus.kind == "text" else f"{100 * score:.2f} %"
