"""``transduce fit``: train, measure, draw, and say what to type next."""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Sequence


from transduce import systems
from transduce.core.errors import UserError
from transduce.core.registry import Page

from .options import given, overrides, parse, replaced, seconds

Units = Literal["chars", "words", "bytes", "bpe"]


@dataclass(frozen=True)
class DataOptions:
    data: str
    """A built-in corpus by name, or a .tsv, .csv, .jsonl or .txt file, or a folder with train, valid and
    test files."""
    data_dir: Path | None = None
    """Folder with data files that are not fetched (also: TRANSDUCE_DATA)."""
    source_column: str | None = None
    """Name of the source column of your file."""
    target_column: str | None = None
    """Name of the target column of your file."""
    source_units: Units | None = None
    """How sources are split into symbols."""
    target_units: Units | None = None
    """How targets are split into symbols."""

    def to_json(self) -> dict[str, Any]:
        """What ``eval`` needs to find the same data again, from any folder."""
        path = Path(self.data)
        return {
            "data": str(path.resolve()) if path.exists() else self.data,
            "data_dir": None if self.data_dir is None else str(self.data_dir.resolve()),
            "source_column": self.source_column,
            "target_column": self.target_column,
            "source_units": self.source_units,
            "target_units": self.target_units,
        }

    @property
    def columns(self) -> tuple[str, str] | None:
        if self.source_column is None and self.target_column is None:
            return None
        return self.source_column or "source", self.target_column or "target"


@dataclass(frozen=True)
class RunOptions:
    out: Path
    """Folder of the run; it must not exist yet."""
    max_time: str | None = None
    """Wall clock of the whole command: 600, 90s, 10m, 2h (default: 10m)."""
    device: str = "cpu"
    """cpu, or cuda where torch sees one."""
    resume: bool = False
    """Go on with the run in --out."""
    force: bool = False
    """Replace the run in --out."""
    vocabulary: int = 8000
    """Most symbols that a side may learn."""


def fit_command(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] not in ("-h", "--help"):
            raise UserError(
                "Name the system first: transduce fit SYSTEM --data ... --out ...; `transduce systems` lists them."
            )
        print(
            "usage: transduce fit SYSTEM --data NAME_OR_FILE --out FOLDER [options]\n\n"
            "`transduce fit SYSTEM --help` lists the options; `transduce systems` lists the systems."
        )
        return 0
    name, *rest = arguments
    page = systems.find(name)
    options = parse(_options(page), rest, f"fit {name}", page.title)
    return _fit(page, options.data_options, options.run, given(options.model), given(options.train))


def _options(page: Page) -> type:
    """One parser for data, run, the system's config and the training settings."""
    from transduce.train import TrainConfig

    parts = [
        ("data_options", DataOptions),
        ("run", RunOptions),
        ("model", overrides(page.config_type, "Model")),
        ("train", overrides(TrainConfig, "Training", skip=("max_time",))),
    ]
    return dataclasses.make_dataclass("Fit", parts, frozen=True)


def device_named(name: str):
    """A torch device, or one sentence why it cannot be used."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f'There is no device "{name}"; use cpu or cuda.') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("torch sees no CUDA device here; leave --device out to use the CPU.")
    return device


def _fit(page: Page, data: DataOptions, run: RunOptions, model: dict[str, Any], train: dict[str, Any]) -> int:
    import torch

    from transduce.core.heap import keep_large_blocks
    from transduce.data import load_corpus, prepare
    from transduce.train import RunFolder, Trainer, prepare_out
    from transduce.train.progress import reporter

    started = time.perf_counter()
    budget = seconds(run.max_time) if run.max_time is not None else 600.0
    if not budget > 0:
        raise UserError(f"--max-time must be above 0, got {run.max_time}; 10m is ten minutes.")
    device = device_named(run.device)
    keep_large_blocks()
    folder = RunFolder(run.out)
    if run.resume:
        prepare_out(run.out, resume=True, force=run.force)
        stored = folder.read_config()
        model = {**stored.get("config", {}), **model}
        train = {**{k: v for k, v in stored.get("train", {}).items() if k != "max_time"}, **train}
        if isinstance(train.get("betas"), list):
            train["betas"] = tuple(train["betas"])
    corpus = load_corpus(
        data.data,
        data_dir=data.data_dir,
        columns=data.columns,
        source_units=data.source_units,
        target_units=data.target_units,
    )
    if corpus.kind != page.kind:
        kinds = {"pairs": "pairs of source and target", "text": "plain text"}
        raise UserError(
            f"{page.name} trains on {kinds[page.kind]}; {corpus.name} holds {kinds[corpus.kind]}."
        )
    if not run.resume:
        prepare_out(run.out, force=run.force)
    prepared = prepare(corpus, vocabulary=run.vocabulary)
    torch.manual_seed(train.get("seed", 0))
    system = page.build(prepared.spec, replaced(page.config_type(), model))
    # The rest of the budget after loading, less what the final measurement on the test part takes.
    left = max(1.0, (budget - (time.perf_counter() - started)) * 0.93 - min(10.0, 0.1 * budget))
    config = replaced(dataclasses.replace(system.train, max_time=left), train)
    system.model.to(device)
    print(
        f"{page.name}: {sum(p.numel() for p in system.model.parameters()):,} parameters on {device}, "
        f"{torch.get_num_threads()} threads\n"
        f"{corpus.name}: {len(prepared.train):,} training rows, {len(prepared.valid):,} valid, {len(prepared.test):,} test",
        file=sys.stderr,
    )
    trainer = Trainer(
        system, prepared, config, run.out, device=device, reporter=reporter(), resume=run.resume, request=data.to_json()
    )
    result = trainer.run()
    if result.interrupted:
        print(
            f"stopped at step {result.steps:,}; go on with: transduce fit {page.name} --data {data.data} --out {run.out} --resume"
        )
        return result.exit_code
    from .report import finish

    finish(run.out, prepared, result, device)
    return 0
