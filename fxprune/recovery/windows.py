"""Second moments of the windows that a convolution reads, from products of its input with itself moved: no window is unfolded.

The product of window places ``u`` and ``v``, summed over all windows, is that of the input with itself moved by ``v - u``, less
what lies in margins that no window has at ``u``. A 3x3 kernel has 13 moves where unfolded it has 45 products of places.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from fxprune.recovery.squares import own_products

#: Larger kernels have too many margins.
_PLACES = 25
#: What it costs to unfold a number, to read one in the middle of long products, and to put one in its place: in multiplications.
_UNFOLD, _READ, _PLACE = 800, 100, 400


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows that move by one along two dimensions; the first may be missing from the input, if nothing moves along it.

    Attributes:
        kernel: their sizes.
        padding: zeros before and behind each dimension.
        groups: of channels.
    """

    kernel: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int

    def pay(self, shape: Sequence[int], samples: int) -> bool:
        """Returns whether an input of a shape ``[b, c, (h,) w]`` is squared sooner so than if so many of its windows were unfolded."""
        batch, channels, *sizes = shape if len(shape) == 4 else (*shape[:2], 1, *shape[2:])
        each, places = channels // self.groups, math.prod(self.kernel)
        if not 1 < places <= _PLACES or not all(self._begins(dim, size) for dim, size in enumerate(sizes)):
            return False
        length = batch * math.prod(size + k - 1 for size, k in zip(sizes, self.kernel, strict=True))
        moves, columns = sum(1 for _ in self._moves()), each * places
        moved = length * each * moves * (2 * each + _READ) + columns**2 * _PLACE
        return moved < samples * columns * (columns / 2 + _UNFOLD)

    def squares(self, x: Tensor) -> tuple[int, Tensor, Tensor]:
        """Returns the number of windows of ``x[b, c, (h,) w]``, their means ``[groups, p]`` and centred squares ``[groups, p, p]``.

        The columns ``p`` are channels by places; the means are float64, the squares of the input's precision.
        """
        x = x if x.dim() == 4 else x.unsqueeze(2)
        count = len(x) * math.prod(len(self._begins(dim, size)) for dim, size in enumerate(x.shape[2:]))
        x = x.unflatten(1, (self.groups, -1))
        level = x.mean(dim=(0, 3, 4), keepdim=True)
        # a level is a signal beside the zeros around: it is left out, and a channel tells what is inside of what is not
        image = _Image(torch.cat([x - level, torch.ones_like(x[:, :, :1])], dim=2), self.kernel)
        reach = [[self._inside(dim, i, size) for i in range(self.kernel[dim])] for dim, size in enumerate(x.shape[3:])]
        places = list(product(*map(range, self.kernel)))
        sums = torch.stack(
            [image.total(reach[0][i], reach[1][j]) for i, j in places], dim=1
        )  # [groups, places, channels]
        r = level.reshape(self.groups, -1)
        columns = r.shape[1], len(places)
        found = r.new_empty(self.groups, *columns, *columns)
        for move in self._moves():
            for (one, other), value in self._moved(image, move, reach).items():
                u, v = places.index(one), places.index(other)
                value = value - (sums[:, u, :, None] / count * sums[:, v, None]).to(value.dtype)
                value = value[:, :-1] + r[:, :, None] * value[:, -1:]  # inside, each channel has its level again
                value = value[..., :-1] + value[..., -1:] * r[:, None]
                found[:, :, u, :, v] = value
                found[:, :, v, :, u] = value.mT
        means = (sums[..., :-1] + r[:, None] * sums[..., -1:]) / count
        return count, means.mT.flatten(1), found.flatten(3).flatten(1, 2)

    def _begins(self, dim: int, size: int) -> range:
        """Returns where windows begin along a dimension."""
        return range(-self.padding[dim], size + self.padding[dim] - self.kernel[dim] + 1)

    def _inside(self, dim: int, place: int, size: int) -> range:
        """Returns the indices of an input that windows have at a place."""
        begins = self._begins(dim, size)
        return range(max(begins[0] + place, 0), min(begins[-1] + place + 1, size))

    def _moves(self) -> Iterator[tuple[int, int]]:
        """Yields how far one place lies from another, of two moves that mirror each other one."""
        high, wide = self.kernel
        return ((di, dj) for di, dj in product(range(high), range(1 - wide, wide)) if di > 0 or dj >= 0)

    def _moved(
        self, image: _Image, move: tuple[int, int], reach: Sequence[Sequence[range]]
    ) -> dict[tuple[tuple[int, int], tuple[int, int]], Tensor]:
        """Returns the products, ``[groups, channels, channels]``, of all pairs of places of which one lies so far from the other."""
        whole = image.product(move)
        beyond = [
            [[n for n in range(size) if n not in at] for at in along]
            for along, size in zip(reach, image.sizes, strict=True)
        ]
        above = {i: image.product(move, rows=rows) for i, rows in enumerate(beyond[0])}
        aside = {j: image.product(move, columns=columns) for j, columns in enumerate(beyond[1])}
        found = {}
        for i, j in product(*map(range, self.kernel)):
            other = i + move[0], j + move[1]
            if all(0 <= n < k for n, k in zip(other, self.kernel, strict=True)):
                corner = image.product(move, rows=beyond[0][i], columns=beyond[1][j])
                found[(i, j), other] = whole - above[i] - aside[j] + corner
        return found


class _Image:
    """An input with zeros behind each row and image, so that what is moved beyond an end meets none of the next: ``x[groups, b, h, w, c]``."""

    def __init__(self, x: Tensor, kernel: Sequence[int]) -> None:
        self.sizes = x.shape[3:]
        self.x = functional.pad(x, [0, kernel[1] - 1, 0, kernel[0] - 1]).permute(1, 0, 3, 4, 2).contiguous()
        self._summed = self.x.sum(dim=1).double()

    def total(self, rows: range, columns: range) -> Tensor:
        """Returns sums over a part of the images, ``[groups, channels]``, float64."""
        return self._summed[:, rows.start : rows.stop, columns.start : columns.stop].sum(dim=(1, 2))

    def product(
        self, move: tuple[int, int], *, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None
    ) -> Tensor:
        """Returns the products of channels with those that lie further by a move, ``[groups, c, c]``, summed over places, or some rows and columns."""
        if rows is None and columns is None:
            every, step = self.x.flatten(1, 3), move[0] * self.x.shape[3] + move[1]
            return every[:, :-step].mT @ every[:, step:] if step else own_products(every)
        (high, wide), (di, dj) = self.sizes, move
        rows = [r for r in (range(high) if rows is None else rows) if r + di < high]
        columns = [c for c in (range(wide) if columns is None else columns) if 0 <= c + dj < wide]
        if not rows or not columns:
            return self.x.new_zeros(())
        here = _taken(_taken(self.x, 2, rows), 3, columns)
        there = _taken(_taken(self.x, 2, [r + di for r in rows]), 3, [c + dj for c in columns])
        return here.flatten(1, 3).mT @ there.flatten(1, 3)


def _taken(x: Tensor, dim: int, indices: Sequence[int]) -> Tensor:
    """Returns ascending indices of a dimension, a view where they lie side by side."""
    first, count = indices[0], len(indices)
    if indices[-1] - first + 1 == count:
        return x.narrow(dim, first, count)
    return x.index_select(dim, torch.tensor(indices, device=x.device))
