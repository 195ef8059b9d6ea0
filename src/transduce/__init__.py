"""transduce: sequence modelling in PyTorch with one state protocol, proven by laws."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        from transduce.api import load

        return load
    raise AttributeError(f"module 'transduce' has no attribute {name!r}")
