"""Means and (cross-)covariances of what layers read, streamed: centred in each batch, merged in float64, in parts that fit.

Fewer samples than columns say all that they can themselves: then they are kept, and no square of the columns is formed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from fxprune._base.ranks import gathered, own, summed, world
from fxprune.coupling.selection import Selection
from fxprune.recovery.consumers import Consumer
from fxprune.twin.interpreter import Run
from fxprune.twin.march import Way


class Moments:
    """The count, means and centred second moments of ``x[samples, groups, p]`` with ``t[samples, groups, q]``.

    Args:
        most: as many samples are kept as they are; ``xx`` and ``tx`` are formed of more, or when they are asked for.

    Attributes:
        held: those of samples that were held out, to judge by; None if none were.
        rows: the samples ``(x, t)`` that are kept, batch by batch; None once squares are formed.
    """

    def __init__(self, most: int = 0) -> None:
        self.held: Moments | None = None
        self.most, self.count = most, 0
        self.mean_x, self.mean_t = torch.zeros(2, 0, dtype=torch.float64)
        self._xx: Tensor = torch.zeros(0, dtype=torch.float64)
        self._tx: Tensor = torch.zeros(0, dtype=torch.float64)
        self.rows: list[tuple[Tensor, Tensor]] | None = []

    def add(self, x: Tensor, t: Tensor | None = None) -> None:
        """Takes in a batch ``x[samples, groups, p]`` (Chan et al. 1983, parallel update); ``t`` has the same samples."""
        n = len(x)
        if n == 0:
            return
        t = x[..., :0] if t is None else t
        if x.dtype.itemsize < 4:  # a sum of squares leaves the range of float16
            x, t = x.float(), t.float()
        mean_x, mean_t = (part.mean(dim=0, dtype=torch.float64) for part in (x, t))
        if self.rows is not None and self.count + n > self.most:
            self.square()
        if self.rows is not None:
            self.rows.append((x, t))
        else:
            centred = (x - mean_x.to(x.dtype)).transpose(0, 1)  # [groups, samples, p]
            xx = (centred.transpose(1, 2) @ centred).double()
            tx = ((t - mean_t.to(t.dtype)).permute(1, 2, 0) @ centred).double()
            self._grow(n, mean_x, mean_t, xx, tx)
        self._move(n, mean_x, mean_t)

    def _grow(self, n: int, mean_x: Tensor, mean_t: Tensor, xx: Tensor, tx: Tensor) -> None:
        """Adds the centred squares ``[groups, p, p]``, ``[groups, q, p]`` of ``n`` samples with means of their own, ``[groups, ...]``."""
        if not self.count:
            self._xx, self._tx = xx, tx
            return
        step_x, step_t = mean_x - self.mean_x, mean_t - self.mean_t
        each = self.count * n / (self.count + n)
        self._xx += xx + each * step_x[..., :, None] * step_x[..., None, :]
        self._tx += tx + each * step_t[..., :, None] * step_x[..., None, :]

    def _move(self, n: int, mean_x: Tensor, mean_t: Tensor) -> None:
        """Takes ``n`` samples' means, ``[groups, p]`` and ``[groups, q]``, into those of all."""
        share = n / (self.count + n)
        if not self.count:
            self.mean_x, self.mean_t = mean_x, mean_t
        else:
            self.mean_x = self.mean_x + (mean_x - self.mean_x) * share
            self.mean_t = self.mean_t + (mean_t - self.mean_t) * share
        self.count += n

    def square(self) -> None:
        """Forms the squares of samples that were kept, about the means as they stand."""
        rows, self.rows = self.rows, None
        for x, t in rows or ():
            centred = (x.double() - self.mean_x).transpose(0, 1)
            xx, tx = centred.transpose(1, 2) @ centred, (t.double() - self.mean_t).permute(1, 2, 0) @ centred
            self._xx, self._tx = (self._xx + xx, self._tx + tx) if self._xx.numel() else (xx, tx)

    @property
    def xx(self) -> Tensor:
        """Of the columns with themselves, sums, ``[groups, p, p]``."""
        self.square()
        return self._xx

    @xx.setter
    def xx(self, value: Tensor) -> None:
        """Takes others, ``[groups, p, p]``."""
        self.square()
        self._xx = value

    @property
    def tx(self) -> Tensor:
        """Of the targets with the columns, sums, ``[groups, q, p]``."""
        self.square()
        return self._tx

    @tx.setter
    def tx(self, value: Tensor) -> None:
        """Takes others, ``[groups, q, p]``."""
        self.square()
        self._tx = value

    @property
    def seen(self) -> int:
        """How many samples there were, those held out among them."""
        return self.count + (0 if self.held is None else self.held.count)

    def whole(self) -> None:
        """Takes in what was held out."""
        if self.held is not None:
            self.merge(self.held)
            self.held = None

    def merge(self, other: Moments) -> None:
        """Takes in what another has seen, of the same layer."""
        if not other.count:
            return
        if self.rows is not None and other.rows is not None and self.count + other.count <= self.most:
            self.rows += other.rows
        else:
            self.square()
            # what the first one brings is added to later: it is not to be the other's own
            squares = (other.xx, other.tx) if self.count else (other.xx.clone(), other.tx.clone())
            self._grow(other.count, other.mean_x, other.mean_t, *squares)
        self._move(other.count, other.mean_x, other.mean_t)

    def about(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the second moments about another point, sums: ``[groups, p, p]``, ``[groups, q, p]``."""
        step_x, step_t = self.mean_x - x, self.mean_t - t
        return (
            self.xx + self.count * step_x[..., :, None] * step_x[..., None, :],
            self.tx + self.count * step_t[..., :, None] * step_x[..., None, :],
        )

    def aim(self, weight: Tensor, kept: Tensor, covariance: bool) -> None:
        """Makes what the removed columns give to the outputs the target; of ``tx`` the kept columns are filled in.

        Args:
            weight: ``[groups, outputs, p]``, float64.
            kept: which columns stay, ``[groups, p]``.
            covariance: False for the targets' means alone.
        """
        lost = weight.masked_fill(kept[:, None], 0.0)
        self.mean_t = (lost @ self.mean_x[..., None])[..., 0]
        if not covariance:
            return
        if self.rows is not None:
            self.rows = [(x, torch.einsum("ngp,gqp->ngq", x.double(), lost)) for x, _ in self.rows]
            return
        self._tx = torch.zeros_like(weight)
        for g, stays in enumerate(kept):
            self._tx[g][:, stays] = weight[g][:, ~stays] @ self._xx[g][~stays][:, stays]

    def samples(self, g: int, kept: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the samples that are kept of one group's columns, about a point: ``[samples, kept]``, ``[samples, q]``.

        Args:
            g: the group.
            kept: flags, ``[p]``.
            x: the point, ``[groups, p]``.
            t: of the targets, ``[groups, q]``.
        """
        rows = self.rows or ()
        own, target = torch.cat([a[:, g][:, kept] for a, _ in rows]), torch.cat([b[:, g] for _, b in rows])
        return own.double() - x[g][kept], target.double() - t[g]

    def share(self, covariance: bool) -> None:
        """Takes in what other processes have seen of the same layer, as they do; of means alone without ``covariance``."""
        if world() == 1:
            return
        mine = self.count, self.rows is None, self.held is not None, self.mean_x.shape, self.mean_t.shape
        every = gathered(mine)
        if any(held for *_, held, _, _ in every):
            self.held = self.held or Moments(self.most)
            self.held.share(covariance)
        seen = [(shape_x, shape_t) for count, *_, shape_x, shape_t in every if count]
        if not seen:
            return
        if not self.count:
            self.mean_x, self.mean_t = (torch.zeros(shape, dtype=torch.float64) for shape in seen[0])
        total = sum(count for count, *_ in every)
        sums = summed(self.count * self.mean_x, self.count * self.mean_t)
        mean_x, mean_t = (each / total for each in sums)
        if covariance and total <= self.most and not any(squared for _, squared, *_ in every):
            self.rows = [pair for rows in gathered(self.rows) for pair in rows or ()]
        elif covariance:
            self.square()
            if not self.count:
                (p, columns), (_, q) = mean_x.shape, mean_t.shape
                self._xx, self._tx = mean_x.new_zeros(p, columns, columns), mean_x.new_zeros(p, q, columns)
            self._xx, self._tx = summed(*self.about(mean_x, mean_t))
        self.count, self.mean_x, self.mean_t = total, mean_x, mean_t

    def add_mean(self, x: Tensor) -> None:
        """Takes in a batch ``x[samples, groups, p]``, for ``mean_x`` alone."""
        mean, total = x.mean(dim=0, dtype=torch.float64), self.count + len(x)
        self.mean_x = mean if not self.count else self.mean_x + (mean - self.mean_x) * (len(x) / total)
        self.count = total

    def raw(self) -> None:
        """Turns centred moments into moments about zero (for a layer whose shift has no home)."""
        if self.rows is None:
            self._xx += self.count * self.mean_x[..., :, None] * self.mean_x[..., None, :]
            self._tx += self.count * self.mean_t[..., :, None] * self.mean_x[..., None, :]
        self.mean_x, self.mean_t = torch.zeros_like(self.mean_x), torch.zeros_like(self.mean_t)


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


def _side(consumer: Consumer, memory_limit: int) -> int:
    """Returns the most columns whose squares fit."""
    return int((memory_limit / 16 / consumer.groups) ** 0.5)


def _blocks(consumer: Consumer, covariance: bool, memory_limit: int, samples: int | None = None) -> list[slice]:
    """Cuts the columns into blocks whose covariance fits, or whose samples do."""
    columns = consumer.kept.shape[1]
    most = max(_side(consumer, memory_limit), int(memory_limit / 16 / consumer.groups / samples) if samples else 0)
    most = most if covariance else columns
    count = max(1, -(-columns // max(most, 1)))
    width = -(-columns // count)
    return [slice(start, min(start + width, columns)) for start in range(0, columns, width)]


def bytes_of(consumer: Consumer, covariance: bool, memory_limit: int, samples: int | None = None) -> int:
    """Returns what the statistics of one consumer take, in blocks if need be.

    Args:
        consumer: the layer.
        covariance: False for the means alone.
        memory_limit: bytes for one block.
        samples: how many there are; None if squares are needed in any case.
    """
    if not covariance:
        return 8 * consumer.kept.size
    widths = [block.stop - block.start for block in _blocks(consumer, covariance, memory_limit, samples)]
    return sum(16 * consumer.groups * width * min(width, width if samples is None else samples) for width in widths)


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


def _over(consumer: Consumer, moments: Moments, samples: int, memory_limit: int) -> bool:
    """Returns whether so many samples are too many to keep, of columns whose squares do not fit."""
    return moments.rows is not None and samples > moments.most > _side(consumer, memory_limit)


def measure(
    dense: Selection,
    part: Sequence[Consumer],
    inputs: Iterable[Sequence[Tensor]],
    *,
    covariance: bool,
    memory_limit: int,
    held: Mapping[Consumer, int] | None = None,
    samples: Mapping[Consumer, int] | None = None,
    ways: Iterable[Way] | None = None,
) -> list[Blocks]:
    """Returns the moments of what each consumer reads in the dense model, by blocks of columns that fit, in one pass.

    Args:
        dense: the selection of nothing, of the captured graph.
        part: the consumers.
        inputs: the graph's flat inputs, ``[samples, ...]``, batch by batch.
        covariance: False for the means alone.
        memory_limit: bytes for one block's statistics, and for one batch's samples of one consumer.
        held: of consumers some of whose samples are held out, the number of batches (see `split`).
        samples: of consumers whose samples may be kept instead of squares, how many there are.
        ways: each batch's way past the consumers; by default from the inputs on.
    """
    held, samples = held or {}, samples or {}
    counts = [samples.get(consumer) if covariance else None for consumer in part]
    cuts = [_blocks(c, covariance, memory_limit, count) for c, count in zip(part, counts, strict=True)]
    blocks = [
        [(b, Moments(b.stop - b.start if count else 0)) for b in cut] for cut, count in zip(cuts, counts, strict=True)
    ]
    run, over = Run(dense), set[Consumer]()
    for number, way in ((n, run.steps(batch)) for n, batch in own(inputs)) if ways is None else ways:
        waiting = len(part)
        for node, values in way:
            for consumer, its in ((c, b) for c, b in zip(part, blocks, strict=True) if c.node is node):
                columns = consumer.read(values, memory_limit, number)
                cut = split(len(columns), number, held[consumer]) if consumer in held else len(columns)
                for block, moments in its:
                    if _over(consumer, moments, moments.seen + len(columns), memory_limit):
                        over.add(consumer)
                        continue
                    moments.add(columns[:cut, ..., block]) if covariance else moments.add_mean(columns[..., block])
                    if consumer in held:
                        moments.held = moments.held or Moments(moments.most)
                        moments.held.add(columns[cut:, ..., block])
                waiting -= 1
            if not waiting:
                break
    for consumer, its in zip(part, blocks, strict=True):
        for _, moments in its:
            every = gathered((consumer in over, moments.seen))
            if any(one for one, _ in every) or _over(consumer, moments, sum(n for _, n in every), memory_limit):
                # batches are larger than what was counted by: squares of blocks are needed after all
                fewer = {c: n for c, n in samples.items() if c.kept.shape[1] <= _side(c, memory_limit)}
                limit = memory_limit
                return measure(dense, part, inputs, covariance=covariance, memory_limit=limit, held=held, samples=fewer)
            moments.share(covariance)
    return blocks
