"""SIGTERM, which clusters send before they kill, and Ctrl-C: noted until the work has a place to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from iqa.errors import Stopped


class StopSignals:
    """As a context, notes the first SIGTERM or Ctrl-C in `asked`; a second one raises `Stopped` at once.

    In another thread than the main one nothing is caught: Python has it so.
    """

    def __init__(self) -> None:
        self.asked = 0  # number of the signal
        self._at_once = False

    def __enter__(self) -> StopSignals:
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._note) for kind in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *raised: object) -> None:
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal end the work inside at once, wherever it is, by raising `Stopped`."""
        self._at_once = True
        try:
            if self.asked:
                raise Stopped("stopped", self.asked)
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.asked = self.asked, number
        if again or self._at_once:
            raise Stopped("stopped", number)
