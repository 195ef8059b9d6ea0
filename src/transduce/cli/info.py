"""``transduce systems``, ``show``, ``reproduce`` and ``laws``."""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Sequence

import tyro

from transduce import systems
from transduce.core.errors import UserError

from .options import field_docs, parse


@dataclass(frozen=True)
class Systems:
    results: Path = Path("results")
    """Folder with measured results."""


def systems_command(arguments: Sequence[str]) -> int:
    from rich.console import Console
    from rich.table import Table

    options = parse(Systems, arguments, "systems", "List the systems.")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("system", "data", "what it is", "paper", "full check"):
        table.add_column(column, overflow="fold")
    for name in systems.names():
        page = systems.find(name)
        table.add_row(
            name, page.kind, page.title, page.paper, _state(options.results, name, page.reproduce is not None)
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return 0


def _state(folder: Path, name: str, has_check: bool) -> str:
    try:
        record = json.loads((folder / f"{name}.json").read_text())
        return "passed" if record["passed"] else "missed"
    except (OSError, ValueError, KeyError):
        return "not run here" if has_check else "-"


@dataclass(frozen=True)
class Show:
    system: tyro.conf.Positional[str]
    """Name of the system."""


def show_command(arguments: Sequence[str]) -> int:
    page = systems.find(parse(Show, arguments, "show", "Describe one system.").system)
    module = importlib.import_module(page.build.__module__)
    print(f"{page.name}: {page.title}\n{page.paper}\n\n{(module.__doc__ or '').strip()}\n\nsettings:")
    docs = field_docs(page.config_type)
    for f in fields(page.config_type):
        print(f"  --{f.name.replace('_', '-')} {f.default}\n      {docs.get(f.name, '')}")
    print(
        f"\ntry:\n  transduce fit {page.name} --data {'cmudict' if page.kind == 'pairs' else 'shakespeare'} --out runs/{page.name}"
    )
    return 0


@dataclass(frozen=True)
class Reproduce:
    system: tyro.conf.Positional[str]
    """Name of the system."""
    out: Path = Path("results")
    """Folder for the record and its figures."""
    quick: bool = False
    """A smoke run in seconds; its figures mean nothing."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of the trainings."""


def reproduce_command(arguments: Sequence[str]) -> int:
    options = parse(Reproduce, arguments, "reproduce", "Run a system's full check.")
    page = systems.find(options.system)
    if page.reproduce is None:
        raise UserError(
            f"{page.name} has no full check of its own; its figures come from `transduce fit` (see results)."
        )
    from transduce.core.heap import keep_large_blocks
    from transduce.train.check import Check

    keep_large_blocks()
    check = Check(
        page.name, options.out, options.quick, options.seeds[:1] if options.quick else options.seeds
    )
    page.reproduce(check)
    print(f"written: {check.write()}" + "".join(f", {options.out / f}" for f in check.figures))
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
    factory = _factory(options.layer)
    import torch

    from transduce.testing import mixer_laws, render_laws

    try:
        factory(options.dim)
    except Exception as problem:
        raise UserError(
            f"{options.layer}({options.dim}) fails: {type(problem).__name__}: {problem}"
        ) from None
    results = mixer_laws(factory, options.dim, dtype=getattr(torch, options.dtype))
    print(render_laws(options.layer, results))
    return 0 if all(r.passed for r in results) else 1


def _factory(name: str):
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UserError(f'Name the layer as module:Factory, for example transduce.nn:MinGRU, not "{name}".')
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as problem:
        raise UserError(f"The module {module_name} cannot be imported: {problem}.") from None
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise UserError(f"The module {module_name} has no callable {attribute}.")
    return factory
