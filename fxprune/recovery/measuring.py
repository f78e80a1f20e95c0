"""What layers read, measured batch by batch in one pass through the dense model, in parts and blocks that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from torch import Tensor, fx

from fxprune._base.ranks import gathered, own
from fxprune.coupling.selection import Selection
from fxprune.data.holdout import count_of
from fxprune.recovery.consumers import Consumer, Draw
from fxprune.recovery.moments import Moments
from fxprune.twin.interpreter import Run
from fxprune.twin.march import Way

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


class _Reading:
    """What a layer reads, batch by batch, and its moments by blocks of columns.

    Args:
        consumer: the layer.
        covariance: False for the means alone.
        memory_limit: bytes for one block's statistics, and for one batch's samples.
        samples: how many there are, if they may be kept instead of squares.
        apart: some are held out.
    """

    def __init__(
        self, consumer: Consumer, covariance: bool, memory_limit: int, samples: int | None, *, apart: bool
    ) -> None:
        self.consumer, self.covariance, self.memory_limit = consumer, covariance, memory_limit
        self.samples, self.apart = samples, apart
        cuts = _blocks(consumer, covariance, memory_limit, samples)
        self.blocks: Blocks = [(block, Moments(block.stop - block.start if samples else 0)) for block in cuts]
        for _, moments in self.blocks if apart else ():
            moments.held = Moments(moments.most)

    def take(self, values: Mapping[fx.Node, Any], draw: Draw) -> bool:
        """Takes in a batch from the values alive at the layer's node; returns False if there are too many samples for a block."""
        if self._at_once(values, draw):
            return True
        columns, fit = self.consumer.read(values, self.memory_limit, draw), True
        cut = split(len(columns), draw.batch, draw.batches) if self.apart else len(columns)
        for block, moments in self.blocks:
            if not self.covariance:
                moments.add_mean(columns[..., block])
            elif _over(self.consumer, moments, moments.seen + len(columns), self.memory_limit):
                fit = False
            else:
                moments.add(columns[:cut, ..., block])
                if moments.held is not None:
                    moments.held.add(columns[cut:, ..., block])
        return fit

    def _at_once(self, values: Mapping[fx.Node, Any], draw: Draw) -> bool:
        """Squares windows that need not be unfolded, whole images at a time; returns whether that is possible, and pays."""
        (_, moments), *others = self.blocks
        windows, few = self.consumer.windows, self.samples is not None and self.samples <= moments.most
        if windows is None or few or others or not self.covariance:
            return False
        x, shape = values[self.consumer.source], values[self.consumer.node].shape
        rows = self.consumer.choose(shape, self.memory_limit, draw)
        if not windows.pay(x.shape, self.consumer.samples(shape) if rows is None else len(rows)):
            return False
        cut = split(len(x), draw.batch, draw.batches) if self.apart else len(x)
        if self.apart and cut == len(x) and not split(1, draw.batch, draw.batches):
            return False
        x = x if x.dtype.itemsize >= 4 else x.float()
        for images, part in ((x[:cut], moments), (x[cut:], moments.held)):
            if len(images) and part is not None:
                part.take(*windows.squares(images))
        return True


def measure(
    dense: Selection,
    part: Sequence[Consumer],
    inputs: Iterable[Sequence[Tensor]],
    *,
    covariance: bool,
    memory_limit: int,
    held: Collection[Consumer] = (),
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
        held: the consumers some of whose samples are held out (see `split`).
        samples: of consumers whose samples may be kept instead of squares, how many there are.
        ways: each batch's way past the consumers; by default from the inputs on.
    """
    samples = samples or {}
    readings = [
        _Reading(c, covariance, memory_limit, samples.get(c) if covariance else None, apart=c in held) for c in part
    ]
    blocks = [reading.blocks for reading in readings]
    run, over, batches = Run(dense), set[Consumer](), count_of(inputs)
    for number, way in ((n, run.steps(batch)) for n, batch in own(inputs)) if ways is None else ways:
        waiting = len(part)
        for node, values in way:
            for reading in (each for each in readings if each.consumer.node is node):
                if not reading.take(values, Draw(number, batches)):
                    over.add(reading.consumer)
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
