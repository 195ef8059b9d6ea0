"""From dataclasses to flags: documentation of fields, durations, and what of a dataclass the user set."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import textwrap
import typing
from functools import lru_cache
from typing import Annotated, Any, Mapping, Sequence, TypeVar

import tyro

from transduce.core.errors import UserError

T = TypeVar("T")

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds(text: str, flag: str = "--max-time") -> float:
    """ "90", "90s", "10m", "1.5h" -> seconds, above 0; ``flag`` is what a complaint names."""
    found = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*(s|m|min|h)?\s*", text)
    if found is None:
        raise UserError(f'{flag} takes a time such as 600, 90s, 10m or 2h, not "{text}".')
    value = float(found[1]) * _UNITS[found[2] or ""]
    if not 0 < value < math.inf:
        raise UserError(f"{flag} must be above 0, got {text}; 10m is ten minutes.")
    return value


@lru_cache(maxsize=None)
def field_docs(kind: type) -> dict[str, str]:
    """The string that stands below each field in a dataclass's source, by field name."""
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0].body
    docs: dict[str, str] = {}
    for item, below in zip(body, body[1:]):
        is_text = (
            isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        )
        if isinstance(item, ast.AnnAssign) and is_text:
            docs[item.target.id] = " ".join(below.value.value.split())
    return docs


def settings_of(defaults: Any, name: str, about: str, skip: Sequence[str] = ()) -> type:
    """A dataclass with the fields, documentation and values of the dataclass instance ``defaults``, but
    without its checks: they would report their findings through the parser."""
    kind = type(defaults)
    hints, docs = typing.get_type_hints(kind), field_docs(kind)
    fields = [
        (
            f.name,
            Annotated[hints[f.name], _shown(hints[f.name], getattr(defaults, f.name), docs.get(f.name, ""))],
            dataclasses.field(default=getattr(defaults, f.name)),
        )
        for f in dataclasses.fields(kind)
        if f.name not in skip
    ]
    made = dataclasses.make_dataclass(name, fields, frozen=True)
    made.__doc__ = about
    return made


def _shown(hint: Any, default: Any, note: str) -> Any:
    """How a flag stands in the help. What is simply left out by default needs no talk of None."""
    members = [m for m in typing.get_args(hint) if m is not type(None)]
    if default is not None or len(members) != 1:
        return tyro.conf.arg(help=note)
    (kind,) = members
    choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
    metavar = (
        "{" + ",".join(map(str, choices)) + "}" if choices else getattr(kind, "__name__", "VALUE").upper()
    )
    return tyro.conf.arg(help=note, metavar=metavar, help_behavior_hint="")


def given(options: Any, arguments: Sequence[str]) -> dict[str, Any]:
    """The fields of parsed ``options`` that stand in ``arguments``, their defaults included when written out."""
    written = {a.split("=", 1)[0].replace("_", "-") for a in arguments if a.startswith("--")}
    found: dict[str, Any] = {}
    for f in dataclasses.fields(options):
        flag = f.name.replace("_", "-")
        if written & {f"--{flag}", f"--no-{flag}"}:
            found[f.name] = getattr(options, f.name)
    return found


def parse(kind: type[T], arguments: Sequence[str], command: str, description: str = "") -> T:
    """Parse flags into a dataclass; mistakes are explained by tyro, which exits with code 2."""
    return tyro.cli(
        kind,
        args=list(arguments),
        prog=f"transduce {command}",
        description=description or None,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff),
    )


def replaced(value: T, changes: Mapping[str, Any]) -> T:
    """``dataclasses.replace`` that takes only what the class has, and lists (from JSON) as tuples."""
    known = {f.name for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **{k: _tuples(v) for k, v in changes.items() if k in known})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
