"""Shapes of a schedule: how much of the way from dense to the budget is behind at a point of time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

Shape = Literal["cubic", "linear", "one_cycle"]

#: Of the logistic curve of Hubens et al. 2021: its slope, and where it begins.
_ALPHA, _BETA = 14.0, 5.0


def cubic(time: float) -> float:
    """Returns ``1 - (1 - t)^3``: most goes early, while the network can still recover (Zhu & Gupta 2017, arXiv 1710.01878, Eq. 1)."""
    return 1 - (1 - time) ** 3


def linear(time: float) -> float:
    """Returns ``t``: as much at every step."""
    return time


def one_cycle(time: float) -> float:
    """Returns a logistic curve that is steep in the first half (Hubens et al. 2021, arXiv 2107.02086, Eq. 2)."""
    return (1 + math.exp(_BETA - _ALPHA)) / (1 + math.exp(_BETA - _ALPHA * time))


SHAPES: Mapping[str, Callable[[float], float]] = MappingProxyType(
    {"cubic": cubic, "linear": linear, "one_cycle": one_cycle}
)
assert tuple(SHAPES) == get_args(Shape)
