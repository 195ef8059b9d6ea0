"""transduce: sequence modelling in PyTorch with one state protocol, proven by laws."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in ("fit", "load"):  # on first use: importing the package stays fast
        from transduce import api

        return getattr(api, name)
    raise AttributeError(f"module 'transduce' has no attribute {name!r}")
