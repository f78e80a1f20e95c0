"""Marks by measurement: what takes long runs with everything, and not in the inner loop."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def but_slow(values: Iterable[Any], quick: Collection[Any]) -> list[Any]:
    """Returns parameters of a test, all of them marked slow but those that are named as quick.

    Args:
        values: the parameters; a tuple holds several arguments.
        quick: those of them that the inner loop takes.
    """
    rows = list(values)
    assert quick and all(value in rows for value in quick), "a test keeps a quick parameter"
    return [value if value in quick else pytest.param(*_arguments(value), marks=pytest.mark.slow) for value in rows]


def _arguments(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
