"""Something callable out of a module of the user's own."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path
from typing import Any, Callable

from transduce.core.errors import UserError, nearest


def from_module(name: str, what: str, example: str) -> Callable[..., Any]:
    """The callable ``module:attribute``. ``what`` it is and an ``example`` are for the complaint.

    Raises UserError for a name of another form, a module that cannot be imported, an attribute that is not there.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise UserError(f'Name {what} as module:name, for example {example}, not "{name}".')
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the user's own module, as `python -m` finds it
    try:
        module = importlib.import_module(module_name)
    except Exception as problem:  # the module is the user's, so anything may be raised
        raise UserError(f"The module {module_name} cannot be imported: {said(problem)}.") from None
    found = getattr(module, attribute, None)
    if not callable(found):
        raise UserError(
            f"The module {module_name} has no callable {attribute}.{nearest(attribute, vars(module))}"
        )
    return found


def said(problem: Exception) -> str:
    """What an exception of the user's code says, and where, on one line."""
    where = traceback.extract_tb(problem.__traceback__)[-1]
    text = " ".join(str(problem).split()).rstrip(".") or "no message"
    return f"{type(problem).__name__}: {text} ({Path(where.filename).name}, line {where.lineno})"
