"""From dataclasses to flags: documentation of fields, durations, and overrides of a system's own settings."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from functools import lru_cache
from typing import Annotated, Any, Mapping, Sequence, TypeVar

import tyro

from transduce.core.errors import UserError

T = TypeVar("T")

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """ "90", "90s", "10m", "1.5h" -> seconds."""
    found = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*(s|m|min|h)?\s*", text)
    if found is None:
        raise UserError(f'--max-time takes a time such as 600, 90s, 10m or 2h, not "{text}".')
    return float(found[1]) * _UNITS[found[2] or ""]


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


def overrides(kind: type, name: str, skip: Sequence[str] = ()) -> type:
    """A dataclass like ``kind`` in which every field may be left out (None): what the user changed, and
    only that."""
    hints = typing.get_type_hints(kind)
    docs = field_docs(kind)
    fields = []
    for f in dataclasses.fields(kind):
        if f.name in skip:
            continue
        note = docs.get(f.name, "")
        default = f.default if f.default is not dataclasses.MISSING else None
        shown = f"{note} (default: {default})" if default is not None else note
        annotated = Annotated[
            typing.Optional[hints[f.name]], tyro.conf.arg(help=shown, help_behavior_hint="")
        ]
        fields.append((f.name, annotated, dataclasses.field(default=None)))
    made = dataclasses.make_dataclass(name, fields, frozen=True)
    made.__doc__ = f"settings of {kind.__module__}"
    return made


def given(options: Any) -> dict[str, Any]:
    """The fields that the user set."""
    return {f.name: v for f in dataclasses.fields(options) if (v := getattr(options, f.name)) is not None}


def parse(kind: type[T], arguments: Sequence[str], command: str, description: str = "") -> T:
    """Parse flags into a dataclass; mistakes are explained by tyro, which exits with code 2."""
    return tyro.cli(
        kind,
        args=list(arguments),
        prog=f"transduce {command}",
        description=description or None,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff),
    )


def replaced(value: T, changes: Mapping[str, Any]) -> T:
    """``dataclasses.replace`` that takes only what the class has."""
    known = {f.name for f in dataclasses.fields(value)}
    return dataclasses.replace(value, **{k: v for k, v in changes.items() if k in known})
