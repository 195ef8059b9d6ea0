"""Errors that a user can mend. The command line prints them as one line; Python code catches them as
ValueError."""

from __future__ import annotations

import difflib
from typing import Iterable


class UserError(ValueError):
    """One sentence: what is wrong and how to fix it."""


class DataError(UserError):
    """Something about the user's data."""


class BundleError(UserError):
    """Something about a stored model."""


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean "x"?' for the closest known word, or '' when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f' Did you mean "{close[0]}"?' if close else ""
