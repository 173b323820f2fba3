"""The one exception for mistakes of the user, and how a script ends on it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input from outside: its text is one line that says what, where and what to do."""


def exit_on_user_error(main: Callable[[], None]) -> None:
    """Run a script's `main`; a UserError becomes one line on stderr and exit code 2.

    Args:
        main: the script's entry point, without arguments.
    """
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
