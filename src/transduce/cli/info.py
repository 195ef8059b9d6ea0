"""``transduce systems``, ``show``, ``reproduce`` and ``laws``."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Callable, Literal, Sequence

import tyro

from transduce import systems
from transduce.core.errors import UserError

from .machine import set_up
from .options import field_docs, parse
from .own_module import from_module, said


@dataclass(frozen=True)
class Systems:
    results: Path = Path("results")
    """Folder with measured results."""


def systems_command(arguments: Sequence[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    options = parse(Systems, arguments, "systems", "List the systems.")
    records = _records(options.results)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("system", "data", "what it is", "paper", "measured"):
        table.add_column(column, overflow="fold")
    for name in systems.names():
        page = systems.find(name)
        found = _measured(records.get(name, []))
        if not found and page.reproduce is not None:
            found = ["full check not run here"]
        table.add_row(name, page.kind, page.title, page.paper, "\n".join(found) or "-")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


def _records(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The measured results in a folder, by system: full checks and records of ``eval``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_text())
            if not record.get("quick") and record.get("measured"):
                found.setdefault(record["system"], []).append(record)
        except (OSError, ValueError, KeyError, AttributeError):  # some other file
            continue
    return found


def _measured(records: Sequence[dict[str, Any]]) -> list[str]:
    """A line a record: claims that hold, or the figure on the test part."""
    lines: list[str] = []
    for record in records:
        from transduce.data.metrics import METRICS, described

        measured, corpus = record["measured"], record.get("corpus") or {}
        if isinstance(measured, list):
            judged = [m.get("holds") for m in measured if m.get("holds") is not None]
            lines.append(f"{sum(judged)} of {len(judged)} claims hold")
            continue
        test = measured.get("test", {})
        scores = {key: test[key] for key in METRICS if key in test}
        if scores:  # hardly a translation equals its reference, so the share that do says little
            lines.append(f"{corpus.get('name', 'data')}: {described(scores)}")
        elif "sequence_error" in test:
            error = f"{corpus.get('sequence_name', 'sequence error')} {100 * test['sequence_error']:.1f} %"
            lines.append(f"{corpus.get('name', 'data')}: {error}")
        elif "bits_per_character" in test:
            lines.append(f"{corpus.get('name', 'data')}: {test['bits_per_character']:.2f} bits per character")
    return list(dict.fromkeys(lines))


@dataclass(frozen=True)
class Show:
    system: tyro.conf.Positional[str]
    """Name of the system."""


def show_command(arguments: Sequence[str]) -> int:
    page = systems.find(parse(Show, arguments, "show", "Describe one system.").system)
    from transduce.systems.build import train_defaults
    from transduce.train import TrainConfig

    module = importlib.import_module(page.build.__module__)
    print(f"{page.name}: {page.title}\n{page.paper}\n\n{(module.__doc__ or '').strip()}\n\nsettings:")
    _print_settings(page.config_type(), {f.name for f in fields(page.config_type)})
    own, usual = train_defaults(page), TrainConfig()
    changed = {f.name for f in fields(own) if getattr(own, f.name) != getattr(usual, f.name)}
    print(f"\ntraining (`transduce fit {page.name} --help` lists the rest):")
    _print_settings(own, changed)
    corpus = "cmudict" if page.kind == "pairs" else "shakespeare"
    if page.sample is not None:
        source, target = page.sample.units
        print(f"\ndata: pairs such as\n  {page.sample.rows[0][0]}  ->  {page.sample.rows[0][1]}")
        print(f"  (your own file: --source-units {source} --target-units {target})")
        corpus = page.sample.corpus
    print(f"\ntry:\n  transduce fit {page.name} --data {corpus} --out runs/{page.name}")
    return 0


def _print_settings(defaults: Any, names: set[str]) -> None:
    """Flag, default, choices and documentation of some fields of a dataclass instance."""
    hints, docs = typing.get_type_hints(type(defaults)), field_docs(type(defaults))
    for f in fields(defaults):
        if f.name in names:
            options = typing.get_args(hints[f.name]) if typing.get_origin(hints[f.name]) is Literal else ()
            choices = f"  ({', '.join(map(str, options))})" if options else ""
            flag, default = f.name.replace("_", "-"), getattr(defaults, f.name)
            if isinstance(default, bool):  # the flag that changes it, as `fit` takes no value for one
                print(f"  --{'no-' if default else ''}{flag}  ({'on' if default else 'off'} without it)")
            else:
                print(f"  --{flag} {default}{choices}")
            print(
                textwrap.fill(docs.get(f.name, ""), 100, initial_indent="      ", subsequent_indent="      ")
            )


@dataclass(frozen=True)
class Reproduce:
    system: tyro.conf.Positional[str]
    """Name of the system."""
    out: Path = Path("results")
    """Folder for the record and its figures."""
    quick: bool = False
    """A smoke run in seconds; its figures mean nothing and go to the folder quick inside --out."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of the trainings."""


def reproduce_command(arguments: Sequence[str]) -> int:
    options = parse(Reproduce, arguments, "reproduce", "Run a system's full check.")
    page = systems.find(options.system)
    if page.reproduce is None:
        raise UserError(
            f"{page.name} has no full check of its own; its figures come from `transduce fit` (see results)."
        )
    set_up()
    from transduce.train.check import Check

    # A smoke run must not take the place of a measured result.
    folder = options.out / "quick" if options.quick else options.out
    check = Check(page.name, folder, options.quick, options.seeds[:1] if options.quick else options.seeds)
    page.reproduce(check)
    print(f"written: {check.write()}" + "".join(f", {folder / f}" for f in check.figures))
    if options.quick:
        print("a smoke run: every part works, the figures mean nothing")
    else:
        print("all claims hold" if check.passed else "a claim was missed")
    return 0 if check.passed or options.quick else 1


@dataclass(frozen=True)
class Laws:
    layer: tyro.conf.Positional[str]
    """module:Factory, a callable that makes a mixer of a given width."""
    dim: int = 16
    """Width of the layer."""
    dtype: Literal["float32", "float64"] = "float64"
    """Arithmetic of the check."""


def laws_command(arguments: Sequence[str]) -> int:
    options = parse(Laws, arguments, "laws", "Tell which law of the state protocol a layer breaks.")
    if options.dim < 1:
        raise UserError(f"--dim must be at least 1, got {options.dim}.")
    factory = from_module(options.layer, "the layer", "transduce.nn:MinGRU")
    set_up()
    import torch

    from transduce.testing import mixer_laws, render_laws

    _try_out(factory, options)
    results = mixer_laws(factory, options.dim, dtype=getattr(torch, options.dtype))
    print(render_laws(options.layer, results))
    return 0 if all(r.passed for r in results) else 1


def _try_out(factory: Callable[[int], Any], options: Laws) -> None:
    """Make the layer once; what goes wrong here belongs to the user's module."""
    try:
        made = factory(options.dim)
    except Exception as problem:
        raise UserError(f"{options.layer} cannot be made with dim {options.dim}: {said(problem)}.") from None
    missing = [name for name in ("init_state", "forward", "state_dict") if not hasattr(made, name)]
    if missing:
        raise UserError(
            f"{options.layer} makes a {type(made).__name__}, not a mixer: it has no {missing[0]}; "
            "see transduce.core.protocols.Mixer."
        )
