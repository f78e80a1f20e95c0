"""Means and (cross-)covariances of what layers read, streamed: centred in each batch, merged in float64, in parts that fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from fxprune._base.errors import CalibrationError
from fxprune.coupling.selection import Selection
from fxprune.recovery.consumers import Consumer
from fxprune.twin.interpreter import Run


class Moments:
    """The count, means and centred second moments of ``x[samples, groups, p]`` with ``t[samples, groups, q]``.

    Attributes:
        held: those of samples that were held out, to judge by; None if none were.
    """

    def __init__(self) -> None:
        self.held: Moments | None = None
        self.count = 0
        self.mean_x, self.mean_t, self.xx, self.tx = torch.zeros(4, 0, dtype=torch.float64)

    def add(self, x: Tensor, t: Tensor | None = None) -> None:
        """Takes in a batch ``x[samples, groups, p]`` (Chan et al. 1983, parallel update); ``t`` has the same samples."""
        n = len(x)
        if n == 0:
            return
        t = x[..., :0] if t is None else t
        if x.dtype.itemsize < 4:  # a sum of squares leaves the range of float16
            x, t = x.float(), t.float()
        mean_x, mean_t = (part.mean(dim=0, dtype=torch.float64) for part in (x, t))
        centred = (x - mean_x.to(x.dtype)).transpose(0, 1)  # [groups, samples, p]
        xx = (centred.transpose(1, 2) @ centred).double()
        tx = ((t - mean_t.to(t.dtype)).permute(1, 2, 0) @ centred).double()
        if not self.count:
            self.count, self.mean_x, self.mean_t, self.xx, self.tx = n, mean_x, mean_t, xx, tx
            return
        step_x, step_t = mean_x - self.mean_x, mean_t - self.mean_t
        share = n / (self.count + n)
        self.xx += xx + self.count * share * step_x[..., :, None] * step_x[..., None, :]
        self.tx += tx + self.count * share * step_t[..., :, None] * step_x[..., None, :]
        self.mean_x += step_x * share
        self.mean_t += step_t * share
        self.count += n

    def whole(self) -> None:
        """Takes in what was held out."""
        if self.held is not None:
            self.merge(self.held)
            self.held = None

    def merge(self, other: Moments) -> None:
        """Takes in what another has seen, of the same layer."""
        if not other.count:
            return
        if not self.count:
            self.count, self.mean_x, self.mean_t = other.count, other.mean_x.clone(), other.mean_t.clone()
            self.xx, self.tx = other.xx.clone(), other.tx.clone()
            return
        xx, tx = other.about(self.mean_x, self.mean_t)
        share = other.count / (self.count + other.count)
        step_x, step_t = other.mean_x - self.mean_x, other.mean_t - self.mean_t
        self.count += other.count
        self.xx += xx - self.count * share**2 * step_x[..., :, None] * step_x[..., None, :]
        self.tx += tx - self.count * share**2 * step_t[..., :, None] * step_x[..., None, :]
        self.mean_x = self.mean_x + step_x * share
        self.mean_t = self.mean_t + step_t * share

    def about(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the second moments about another point, sums: ``[groups, p, p]``, ``[groups, q, p]``."""
        step_x, step_t = self.mean_x - x, self.mean_t - t
        return (
            self.xx + self.count * step_x[..., :, None] * step_x[..., None, :],
            self.tx + self.count * step_t[..., :, None] * step_x[..., None, :],
        )

    def add_mean(self, x: Tensor) -> None:
        """Takes in a batch ``x[samples, groups, p]``, for ``mean_x`` alone."""
        mean, total = x.mean(dim=0, dtype=torch.float64), self.count + len(x)
        self.mean_x = mean if not self.count else self.mean_x + (mean - self.mean_x) * (len(x) / total)
        self.count = total

    def raw(self) -> None:
        """Turns centred moments into moments about zero (for a layer whose shift has no home)."""
        self.xx += self.count * self.mean_x[..., :, None] * self.mean_x[..., None, :]
        self.tx += self.count * self.mean_t[..., :, None] * self.mean_x[..., None, :]
        self.mean_x.zero_()
        self.mean_t.zero_()


def ridge_solve(gram: Tensor, right: Tensor, ridge: float) -> Tensor:
    """Returns ``right @ (gram + ridge * mean(diag(gram)) * I)^-1`` for ``gram[p, p]``, ``right[q, p]``.

    Raises:
        CalibrationError: the covariance is not finite.
    """
    size = gram.shape[0]
    if size == 0 or right.shape[0] == 0:
        return right
    if not torch.isfinite(gram).all():
        raise CalibrationError(
            "calibration data: a layer's inputs overflow, or are NaN: their covariance is not finite"
        )
    level = gram.diagonal().mean()
    if not level > 0:
        return torch.zeros_like(right)
    damped = gram + ridge * level * torch.eye(size, dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(damped)
    solution = torch.linalg.lstsq(damped, right.T).solution if int(failed) else torch.cholesky_solve(right.T, factor)
    return solution.T


#: One batch in so many is held out; of fewer batches, the last one in so many parts of each.
_HELD_OUT = 4


def split(samples: int, number: int, batches: int) -> int:
    """Returns how many of a batch's samples are to fit; the others, the last ones, are held out.

    Args:
        samples: of the batch.
        number: of the batch.
        batches: how many there are.
    """
    held = samples // _HELD_OUT if batches < _HELD_OUT else samples * (number % _HELD_OUT == _HELD_OUT - 1)
    return samples - held


T = TypeVar("T")

#: The moments of blocks of columns.
Blocks: TypeAlias = "list[tuple[slice, Moments]]"


def _blocks(consumer: Consumer, covariance: bool, memory_limit: int) -> list[slice]:
    """Cuts the columns into blocks whose covariance fits."""
    groups, columns = consumer.kept.shape
    most = int((memory_limit / 16 / groups) ** 0.5) if covariance else columns
    count = max(1, -(-columns // max(most, 1)))
    width = -(-columns // count)
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


def bytes_of(consumer: Consumer, covariance: bool, memory_limit: int) -> int:
    """Returns what the statistics of one consumer take, in blocks if need be."""
    widths = [block.stop - block.start for block in _blocks(consumer, covariance, memory_limit)]
    return sum(16 * consumer.groups * width**2 for width in widths) if covariance else 8 * consumer.kept.size


def parts_that_fit(items: Iterable[T], sizes: Callable[[T], Mapping[Any, int]], memory_limit: int) -> Iterator[list[T]]:
    """Yields items in parts whose statistics fit into ``memory_limit`` bytes together.

    Args:
        items: in their order.
        sizes: of one item, the bytes of each statistic that it needs; what several need counts once.
        memory_limit: bytes.
    """
    part: list[T] = []
    held: dict[Any, int] = {}
    for item in items:
        own = sizes(item)
        if part and sum({**held, **own}.values()) > memory_limit:
            yield part
            part, held = [], {}
        part.append(item)
        held.update(own)
    if part:
        yield part


def measure(
    dense: Selection,
    part: Sequence[Consumer],
    inputs: Iterable[Sequence[Tensor]],
    *,
    covariance: bool,
    memory_limit: int,
    held: Mapping[Consumer, int] | None = None,
) -> list[Blocks]:
    """Returns the moments of what each consumer reads in the dense model, by blocks of columns that fit, in one pass.

    Args:
        dense: the selection of nothing, of the captured graph.
        part: the consumers.
        inputs: the graph's flat inputs, ``[samples, ...]``, batch by batch.
        covariance: False for the means alone.
        memory_limit: bytes for one block's statistics, and for one batch's samples of one consumer.
        held: of consumers some of whose samples are held out, the number of batches (see `split`).
    """
    held = held or {}
    blocks = [[(b, Moments()) for b in _blocks(consumer, covariance, memory_limit)] for consumer in part]
    run = Run(dense)
    for number, batch in enumerate(inputs):
        waiting = len(part)
        for node, values in run.steps(batch):
            for consumer, own in ((c, b) for c, b in zip(part, blocks, strict=True) if c.node is node):
                columns = consumer.read(values, memory_limit, number)
                cut = split(len(columns), number, held[consumer]) if consumer in held else len(columns)
                for block, moments in own:
                    moments.add(columns[:cut, ..., block]) if covariance else moments.add_mean(columns[..., block])
                    if consumer in held:
                        moments.held = moments.held or Moments()
                        moments.held.add(columns[cut:, ..., block])
                waiting -= 1
            if not waiting:
                break
    return blocks
