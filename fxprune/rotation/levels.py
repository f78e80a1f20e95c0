"""Levels: how a stream is given where ops have gains of each channel's own.

A value on a stream is a part that is given in the new basis times its level, channel by channel: behind a gain the level is that gain,
and whoever reads there takes it into its weights; before a gain it is the inverse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.rotation.conducting import Conduction, Link, Spot
from fxprune.rotation.streams import StreamError

#: How far apart levels may be, as a share, that are the same.
_CLOSE = 1e-9


def levels(found: Conduction, like: Tensor) -> dict[Spot, Tensor]:
    """Returns the level of each spot, ``[channels]``.

    Args:
        found: a stream's links and flat spots.
        like: ones, ``[channels]``.

    Raises:
        StreamError: a value would need two.
    """
    known = dict.fromkeys(found.flat, like)
    near: dict[Spot, list[tuple[Spot, int, Tensor | None, bool]]] = {}
    for link in found.links:
        near.setdefault(link.first, []).append((link.second, link.power, link.factor, True))
        near.setdefault(link.second, []).append((link.first, link.power, link.factor, False))
    for start in (*known, *near):
        known.setdefault(start, like)
        todo = [start]
        while todo:
            spot = todo.pop()
            for other, power, factor, onward in near.get(spot, ()):
                level = _next(known[spot], power, factor, onward)
                if other not in known:
                    known[other] = level
                    todo.append(other)
    for link in found.links:
        _check(link, known)
    return known


def _next(level: Tensor, power: int, factor: Tensor | None, onward: bool) -> Tensor:
    if onward:
        return level**power * (1.0 if factor is None else factor)
    return (level if factor is None else level / factor) ** power


def _check(link: Link, known: dict[Spot, Tensor]) -> None:
    expected = _next(known[link.first], link.power, link.factor, True)
    if not torch.allclose(expected, known[link.second], rtol=_CLOSE, atol=0.0, equal_nan=True):
        module = link.second.node.meta.get("module")
        raise StreamError(
            f"{link.second.node.target}{f' in {module}' if module else ''}: what has a gain is read as it is as well"
        )
