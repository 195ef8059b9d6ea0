"""``transduce data check``: what a file is made of, which rows are broken and why, what looks wrong."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Callable, Literal, Sequence

import tyro

from transduce.core.errors import DataError, UserError, nearest

from .data import SourceUnits, TargetUnits
from .options import MaybeInt, MaybePath, MaybeText, parse

if TYPE_CHECKING:
    from transduce.data.files import Part
    from transduce.data.quarantine import Bad
    from transduce.data.rows import Rules


Units = Literal["chars", "words", "bytes", "bpe"]


@dataclass(frozen=True)
class CheckData:
    data: Annotated[str, tyro.conf.Positional]
    """A .tsv, .csv, .jsonl, .parquet or .txt file, a folder with train, valid and test files, or hf:NAME."""
    train: MaybeText = None
    """The file that is trained on, where DATA is the one that is tested on: the two are compared."""
    source_column: MaybeText = None
    """Name of the source column (source where left out); de+fr joins two columns."""
    target_column: MaybeText = None
    """Name of the target column (target where left out)."""
    source_units: SourceUnits = "chars"
    """How sources are split into the symbols that are counted."""
    target_units: TargetUnits = "chars"
    """How targets are split into the symbols that are counted."""
    max_bad: float = 0.01
    """Share of rows that may be broken; above it the command ends with code 1."""
    max_rows: MaybeInt = None
    """Read this many rows of each part, no more."""
    quarantine: MaybePath = None
    """Write every broken row into this file, an object a line: file, row, reason, raw text."""


def data_command(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        arguments = ["check", *arguments]
    if not arguments or arguments[0] != "check":
        close = nearest(arguments[0], ["check"]) if arguments else ""
        raise UserError(f"Say what to do with the data: transduce data check FILE.{close}")
    return check(
        parse(CheckData, arguments[1:], "data check", "Check your own data before you train on them.")
    )


def check(options: CheckData) -> int:
    """Print the report; 1 where more rows are broken than may be, else 0."""
    from transduce.data.check import compare, describe, figures

    with ExitStack() as stack:
        on_bad = None if options.quarantine is None else _writer(options.quarantine, stack)
        parts = _read(options, _rules(options, on_bad))
    units = options.source_units, options.target_units
    sides = {name: figures(part, units) for name, part in parts.items()}
    for name, part in parts.items():
        shown = name if len(parts) > 1 else Path(options.data).name
        print(*describe(shown, part, sides[name]), sep="\n")
    for name, part in parts.items():
        if name != "train":
            for note in compare(name, part, parts["train"], sides):
                print(f"warning: {note}")
    if options.quarantine is not None:
        count = sum(part.quarantine.bad for part in parts.values())
        print(
            f"{options.quarantine}: {count:,} broken rows"
            if count
            else f"{options.quarantine}: empty, no row is broken"
        )
    return int(any(part.quarantine.exceeded for part in parts.values()))


def _rules(options: CheckData, on_bad: Callable[[Bad], None] | None) -> Rules:
    from transduce.data.rows import Rules, join_of

    named = options.source_column or options.target_column
    columns = (options.source_column or "source", options.target_column or "target") if named else None
    if options.max_rows is not None and options.max_rows < 1:
        raise UserError(f"--max-rows must be at least 1, got {options.max_rows}.")
    joins = join_of(options.source_units), join_of(options.target_units)
    return Rules(columns, joins, options.max_bad, options.max_rows, on_bad)


def _read(options: CheckData, rules: Rules) -> dict[str, Part]:
    from transduce.data import corpora
    from transduce.data.files import read_given

    if options.data.partition(":")[0] in corpora.names():
        raise DataError(
            f"{options.data} is built in and has no broken rows; give a file, a folder or hf:NAME."
        )
    parts = read_given(options.data, rules)
    if options.train is None:
        return parts
    if len(parts) > 1:
        raise UserError(f"{options.data} has a training part of its own; leave --train out.")
    train, test = read_given(options.train, rules).get("train"), parts["train"]
    if train.kind != test.kind:
        raise DataError(
            f"{options.data} holds {test.kind} and {options.train} holds {train.kind}: compare like with like."
        )
    return {"train": train, "test": test}


def _writer(path: Path, stack: ExitStack) -> Callable[[Bad], None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = stack.enter_context(open(path, "w", encoding="utf-8"))

    def write(bad: Bad) -> None:
        record = {"file": str(bad.path), "row": bad.row, "reason": bad.reason, "raw": bad.raw}
        file.write(json.dumps(record) + "\n")  # ASCII escapes: half characters can be written too

    return write
