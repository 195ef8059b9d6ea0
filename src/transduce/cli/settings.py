"""Settings written as FIELD=VALUE: read by the type of the field, checked by building the system."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Mapping

from transduce.core.errors import UserError, nearest
from transduce.core.registry import Page

from .options import replaced

OWN = ("max_time", "max_steps", "max_epochs", "seed")
"""Training settings that the commands with a budget set themselves."""


def kinds(page: Page) -> dict[str, Any]:
    """Every setting of a system and of its training, by name, with its type."""
    from transduce.train import TrainConfig

    hints = {**typing.get_type_hints(TrainConfig), **typing.get_type_hints(page.config_type)}
    return {name: hint for name, hint in hints.items() if name not in OWN}


def read(page: Page, field: str, text: str) -> Any:
    """The value of one setting. Raises :class:`UserError` for a field that is not there or text that does not
    fit."""
    known = kinds(page)
    name = field.replace("-", "_")
    if name in OWN:
        raise UserError(f"{name} is not set by hand here: the budget and the seeds of the command decide it.")
    if name not in known:
        raise UserError(
            f"{page.name} has no setting {field}.{nearest(name, known)} `transduce fit {page.name} --help` "
            "lists them."
        )
    try:
        return value_of(text, known[name])
    except ValueError:
        raise UserError(f'{name} of {page.name} takes {described(known[name])}, not "{text}".') from None


def value_of(text: str, hint: Any) -> Any:
    """``text`` as a value of the annotated type: numbers, words, truth values, choices, tuples (a,b,c), None.

    Raises ValueError where it is none.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none" and type(None) in inner:
            return None
        for member in inner:
            if member is not type(None):
                try:
                    return value_of(text, member)
                except ValueError:
                    continue
        raise ValueError(text)
    if origin is typing.Literal:
        for choice in inner:
            if str(choice) == text:
                return choice
        raise ValueError(text)
    if origin is tuple:
        parts = [p for p in text.strip("()").split(",") if p.strip()]
        if inner and inner[-1] is not Ellipsis and len(parts) != len(inner):
            raise ValueError(text)
        return tuple(value_of(p.strip(), inner[0]) for p in parts)
    if hint is bool:
        if text.lower() in ("true", "yes", "1", "false", "no", "0"):
            return text.lower() in ("true", "yes", "1")
        raise ValueError(text)
    if hint in (int, float, str):
        return hint(text)
    raise ValueError(text)


def described(hint: Any) -> str:
    """A type in words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("None" if m is type(None) else described(m) for m in inner)
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is tuple:
        return "numbers parted by commas"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "text")


def divided(page: Page, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the architecture, and settings of the training; a name that both have is the
    architecture's, as it is for ``fit``."""
    own = {f.name for f in dataclasses.fields(page.config_type)}
    return (
        {k: v for k, v in values.items() if k in own},
        {k: v for k, v in values.items() if k not in own},
    )


def try_out(page: Page, values: Mapping[str, Any]) -> None:
    """Build the system with these settings, on no memory.

    Raises :class:`UserError` where a setting makes no sense, before anything is trained.
    """
    from transduce.systems.build import train_defaults

    model, train = divided(page, values)
    try:
        defaults = train_defaults(page, replaced(page.config_type(), model))
    except UserError:
        raise
    except (ValueError, RuntimeError) as problem:  # widths that do not divide, say
        said = " ".join(str(problem).split()).rstrip(".")
        raise UserError(f"{page.name} cannot be built with {shown(values)}: {said}.") from None
    replaced(defaults, train)


def shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in values.items()) or "its defaults"


def as_flags(values: Mapping[str, Any]) -> list[str]:
    """The same settings as flags of ``fit``."""
    words: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            words += [f"--{flag}", *map(str, value)]
        else:
            words += [f"--{flag}", f"{value:.6g}" if isinstance(value, float) else str(value)]
    return words
