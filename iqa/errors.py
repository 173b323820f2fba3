"""Mistakes of the user: their one exception, the parser that raises it, and how a script ends on it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input from outside: its text is one line that says what, where and what to do.

    Names come from outside too: what would break the line or steer the terminal is written as an escape.
    """

    def __init__(self, text: str):
        super().__init__("".join(c if c.isprintable() else repr(c)[1:-1] for c in text))


class WriteError(UserError, OSError):
    """A file that could not be written: the disk is full, or its folder is gone or closed to us."""


class Stopped(KeyboardInterrupt):
    """The user, or the cluster, wants the program to end: its text says where it stopped.

    Args:
        text: one line.
        signal: number of the signal.
    """

    def __init__(self, text: str, signal: int):
        super().__init__(text)
        self.signal = signal


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and which takes no abbreviated flags."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> None:
        """Raise argparse's message instead of printing the usage before it."""
        raise UserError(f"{message} (see --help)")


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run a script's `main`; a UserError becomes one line on stderr and exit code 2.

    Args:
        main: the script's entry point, without arguments.
    """
    try:
        main()
    except UserError as error:
        rank = os.environ.get("RANK", "0")  # of several processes, each says which it is
        print(f"{'' if rank == '0' else f'[process {rank}] '}error: {error}", file=sys.stderr)
        sys.exit(2)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
