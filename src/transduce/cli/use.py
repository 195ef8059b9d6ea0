"""``transduce predict`` and ``transduce eval``: use and measure a trained model."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Sequence

import tyro

from transduce.core.errors import DataError, UserError

from .data import DataOptions
from .machine import set_up
from .options import given, parse

if TYPE_CHECKING:
    from transduce.api import Transducer
    from transduce.data import Corpus

FOR_PAIRS = ("beam", "num_best", "scores", "allow_unknown")
FOR_TEXTS = ("length", "temperature", "seed")


@dataclass(frozen=True)
class Predict:
    run: tyro.conf.Positional[Path]
    """A run folder or a bundle."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to answer; without any, lines are read from --file or standard input."""
    file: Path | None = None
    """Read one text a line from this file."""
    beam: int | None = None
    """Beam width; greedy without it."""
    num_best: int = 1
    """Answers to each text."""
    scores: bool = False
    """Print each answer's score behind it: its log-probability, divided by its length under a beam."""
    allow_unknown: bool = False
    """Read symbols that the model never saw as unknown instead of refusing them."""
    length: int = 200
    """Language models: symbols to write."""
    temperature: float = 0.8
    """Language models: below 1 is safer, above 1 wilder."""
    seed: int = 0
    """Language models: seed of the sampling."""
    device: str = "cpu"
    """cpu, or cuda where torch sees one."""


def predict_command(arguments: Sequence[str]) -> int:
    options = parse(tyro.conf.FlagCreatePairsOff[Predict], arguments, "predict", "Ask a trained model.")
    for name, value in (
        ("--beam", options.beam),
        ("--num-best", options.num_best),
        ("--length", options.length),
    ):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, got {value}.")
    if not options.temperature > 0:
        raise UserError(f"--temperature must be above 0, got {options.temperature}.")
    set_up(options.device)
    from transduce.api import load

    model = load(options.run, device=options.device)
    for name in given(options, arguments):
        if name in (FOR_PAIRS if model.is_language_model else FOR_TEXTS):
            kind = "a language model" if model.is_language_model else "a model from source to target"
            raise UserError(f"--{name.replace('_', '-')} has no meaning for {kind}; leave it out.")
    texts = _texts(options)
    if model.is_language_model:
        for text in texts:
            written = model.continue_text(
                text, length=options.length, temperature=options.temperature, seed=options.seed
            )
            print(text + written)
        return 0
    found = model.predictions(
        texts, beam=options.beam, num_best=options.num_best, allow_unknown=options.allow_unknown
    )
    for text, row in zip(texts, found):
        for answer in row:
            print("\t".join([text, answer.text] + ([f"{answer.score:.3f}"] if options.scores else [])))
    return 0


def _texts(options: Predict) -> list[str]:
    if options.texts and options.file is not None:
        raise UserError("Give texts or --file, not both.")
    if options.texts:
        return list(options.texts)
    try:
        if options.file is None and sys.stdin.isatty():
            print("one text a line, Ctrl-D ends:", file=sys.stderr)
        raw = options.file.read_bytes() if options.file is not None else sys.stdin.buffer.read()
    except OSError as problem:
        raise DataError(f"{options.file} cannot be read: {problem.strerror}.") from None
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as problem:
        line = raw.count(b"\n", 0, problem.start) + 1
        raise DataError(f"The input is not UTF-8 (line {line}); save it as UTF-8.") from None
    texts = [line for line in lines if line.strip()]
    if not texts:
        raise DataError("There is nothing to predict: give texts, --file, or lines on standard input.")
    return texts


@dataclass(frozen=True)
class Evaluate:
    run: tyro.conf.Positional[Path]
    """A run folder or a bundle."""
    beam: int | None = None
    """Beam width; greedy without it."""
    split: Literal["test", "valid", "train"] = "test"
    """Which part of the data."""
    data: str | None = None
    """Another corpus or file than the one the model was trained on."""
    data_dir: Path | None = None
    """Folder with data files that are not fetched (also: TRANSDUCE_DATA)."""
    source_column: str | None = None
    """Name of the source column of your file."""
    target_column: str | None = None
    """Name of the target column of your file."""
    max_bad: float = 0.01
    """Share of broken rows of your file that are left out."""
    record: Path | None = None
    """Add the figures, their intervals and how the model was trained to this JSON file."""
    device: str = "cpu"
    """cpu, or cuda where torch sees one."""


def eval_command(arguments: Sequence[str]) -> int:
    options = parse(Evaluate, arguments, "eval", "Measure a trained model.")
    if options.beam is not None and options.beam < 1:
        raise UserError(f"--beam must be at least 1, got {options.beam}.")
    set_up(options.device)
    from transduce.api import load
    from transduce.train import bundle

    from .report import add_record, describe, intervals, label, write_json

    model = load(options.run, device=options.device)
    if model.is_language_model and options.beam is not None:
        raise UserError("A language model is measured in bits per character; leave --beam out.")
    corpus = _corpus_of(options, model)
    part = model.part(options.split, corpus)
    if len(part) == 0:
        raise DataError(f"{corpus.name} has no {options.split} examples.")
    found = model.evaluate(part, beam=options.beam, metrics=corpus.metrics)
    how = "" if model.is_language_model else (f", beam {options.beam}" if options.beam else ", greedy")
    print(f"{corpus.name} {options.split}{how}: {describe(found, corpus.sequence_name, corpus.symbol_name)}")
    name = label(options.split, options.beam)
    if corpus.name == model.corpus.get("name"):
        bundle.add_metrics(model.path, {name: found.numbers()})
    else:
        name = f"{re.sub(r'[^A-Za-z0-9.-]', '_', corpus.name)}-{name}"
    record = {"corpus": corpus.name, "split": options.split, "beam": options.beam}
    if (options.run / "bundle").is_dir():
        write_json(options.run / f"eval-{name}.json", {**record, **found.numbers(), **intervals(found)})
    if options.record is not None:
        add_record(options.record, model, name, found)
    return 0


def _corpus_of(options: Evaluate, model: Transducer) -> Corpus:
    """The data that were asked for, else those that the model was trained on."""
    shared = ("data", "data_dir", "source_column", "target_column", "max_bad")
    named = DataOptions(**{name: getattr(options, name) for name in shared})
    if options.data is not None:
        return named.load()
    return model.own_corpus(
        {
            name: value
            for name in ("data_dir", "source_column", "target_column")
            if (value := getattr(named, name)) is not None
        }
    )
