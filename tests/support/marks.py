"""Marks by measurement: what takes long runs with everything, and not in the inner loop; of many alike a sample runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Any

import pytest

#: Where it is set, nothing is left to samples.
ALL = "FXPRUNE_ALL_TESTS"


def sampled(values: Iterable[Any], every: int, always: Collection[Any] = ()) -> list[Any]:
    """Returns one in so many of a test's parameters, and those that are always wanted; all of them under `ALL`."""
    rows = list(values)
    return [value for i, value in enumerate(rows) if ALL in os.environ or i % every == 0 or value in always]


def but_slow(values: Iterable[Any], quick: Collection[Any], every: int = 1) -> list[Any]:
    """Returns parameters of a test, all of them marked slow but those that are named as quick.

    Args:
        values: the parameters; a tuple holds several arguments.
        quick: those of them that the inner loop takes.
        every: one in so many of them runs, and the quick ones; see `sampled`.
    """
    rows = sampled(values, every, quick)
    assert quick and all(value in rows for value in quick), "a test keeps a quick parameter"
    return [value if value in quick else pytest.param(*_arguments(value), marks=pytest.mark.slow) for value in rows]


def _arguments(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
