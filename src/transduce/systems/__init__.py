"""The catalogue: one module per system, found by its file name, imported only when asked for."""

from __future__ import annotations

import importlib
from pathlib import Path

from transduce.core.errors import UserError, nearest
from transduce.core.registry import Page, registered


def _modules() -> dict[str, str]:
    root = Path(__file__).parent
    return {
        page.stem.replace("_", "-"): f"{__name__}.{page.parent.name}.{page.stem}"
        for page in sorted(root.glob("*/*.py"))
        if not page.stem.startswith("_")
    }


def names() -> list[str]:
    """Every system by name. Imports none of them."""
    return sorted(_modules())


def find(name: str) -> Page:
    """The page of one system; imports its module."""
    modules = _modules()
    if name not in modules:
        raise UserError(
            f'There is no system "{name}".{nearest(name, modules)} `transduce systems` lists them all.'
        )
    importlib.import_module(modules[name])
    page = registered(name)
    assert page is not None, f"{modules[name]} does not register {name}"
    return page
