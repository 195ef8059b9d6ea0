"""Where system pages sign in. Only systems are registered; everything else is passed as an argument."""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:  # names of systems are listed without torch
    from .protocols import System


@dataclass(frozen=True)
class Sample:
    """What a page reads that cannot learn just any pairs: the ``units`` of source and target, a few ``rows`` of them
    (both sides different in length where the page allows it), and a built-in ``corpus`` of that form."""

    units: tuple[str, str]
    rows: tuple[tuple[str, str], ...]
    corpus: str


@dataclass(frozen=True)
class Page:
    """One system: ``build(data, config)``, its config class, the task kind, its paper and its full check.

    ``kind`` says which data it trains on: "pairs" (source and target) or "text" (target only). ``sample``: what the
    pairs look like where the page needs a form of its own.
    """

    name: str
    build: Callable[[Any, Any], System]
    config_type: type
    kind: str
    title: str
    paper: str
    reproduce: Callable[..., Any] | None = None
    sample: Sample | None = None

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.build) or ""


_pages: dict[str, Page] = {}


def system(
    *,
    name: str,
    kind: str,
    title: str,
    paper: str = "",
    reproduce: Callable[..., Any] | None = None,
    sample: Sample | None = None,
):
    """Register ``def page(data, c: Config = Config()) -> System``. The config class is read off its
    annotation."""

    def register(build: Callable[[Any, Any], System]) -> Callable[[Any, Any], System]:
        config_type = typing.get_type_hints(build).get("c")
        if not (isinstance(config_type, type) and is_dataclass(config_type)):
            raise TypeError(f"system {name}: annotate the config argument `c` with a dataclass")
        known = _pages.get(name)
        if known is not None and known.build.__module__ != build.__module__:
            raise ValueError(f"two systems are named {name}: {known.build.__module__} and {build.__module__}")
        _pages[name] = Page(name, build, config_type, kind, title, paper, reproduce, sample)
        return build

    return register


def registered(name: str) -> Page | None:
    """The page of that name, if its module has been imported."""
    return _pages.get(name)
