"""Packages that not every installation has, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from fxprune._base.errors import MissingExtraError


def need(name: str, extra: str, what: str) -> Any:
    """Returns a module.

    Args:
        name: its full name.
        extra: of fxprune, that brings it.
        what: needs it.

    Raises:
        MissingExtraError: it is not installed, or does not work; says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"{what} needs {name} ({error}): pip install 'fxprune[{extra}]'") from error
