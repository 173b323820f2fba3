"""Packages that only one feature needs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from iqa.errors import UserError


def require_packages(feature: str, extra: str, names: Sequence[str]) -> None:
    """Say before the work which packages of an optional extra are not installed.

    Args:
        feature: what needs them.
        extra: of `pyproject.toml`.
        names: as they are imported.

    Raises:
        UserError: some are not there.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{feature} needs {', '.join(missing)}, which is not installed: pip install 'smart-iqa[{extra}]'"
        )
