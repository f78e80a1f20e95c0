"""The packages of the extra ``train``, imported when they are needed."""

from __future__ import annotations

import importlib
from typing import Any


def need(name: str) -> Any:
    """Returns a package.

    Raises:
        ImportError: it is not installed, or does not work; says how to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"training needs {name} ({error}): pip install 'fxprune[train]'") from error
