"""Ctrl-C and termination as a request that the loop answers between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

EXIT_CODE = 130
"""What a command that was interrupted should return."""


class Interrupts:
    """Inside the block SIGINT and SIGTERM only set ``pending``; a second SIGINT interrupts at once.

    Outside the main thread, where Python allows no handlers, nothing is installed and ``pending`` stays None.
    """

    def __init__(self) -> None:
        self.pending: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.pending is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.pending = signal.Signals(number).name
