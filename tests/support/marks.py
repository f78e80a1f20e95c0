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


#: For a test that takes long and has a quicker sibling: it runs under `ALL` alone.
only_with_all = pytest.mark.skipif(ALL not in os.environ, reason=f"takes long: {ALL}=1 runs it")


def drawn(examples: int, of: int = 3) -> int:
    """Returns how many examples Hypothesis draws: one in so many, and under `ALL` all."""
    return examples if ALL in os.environ else max(1, examples // of)


#: Of more parameters than so many, one in so many runs that is not quick.
_MANY, _OF_MANY = 4, 6


def but_slow(values: Iterable[Any], quick: Collection[Any], every: int | None = None) -> list[Any]:
    """Returns parameters of a test, all of them marked slow but those that are named as quick.

    Args:
        values: the parameters; a tuple holds several arguments.
        quick: those of them that the inner loop takes.
        every: one in so many of them runs, and the quick ones; by default all of a few, and one in six of many. See `ALL`.
    """
    rows = list(values)
    every = every or (_OF_MANY if len(rows) > _MANY else 1)
    assert quick and all(value in rows for value in quick), "a test keeps a quick parameter"
    runs = [v for i, v in enumerate(rows) if ALL in os.environ or v in quick or i % every == every - 1]
    return [value if value in quick else pytest.param(*_arguments(value), marks=pytest.mark.slow) for value in runs]


def _arguments(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
