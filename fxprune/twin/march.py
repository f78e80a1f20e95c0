"""All batches on their way through the graph together: from one stop to the next, none of them twice.

Where tensors are mapped from files, and not all of them can be in memory, no more is gone at a time than can: they are read once for
all batches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, fx

from fxprune._base.pages import room
from fxprune._base.ranks import own
from fxprune.capturing.shapes import TensorInfo
from fxprune.twin.interpreter import Run
from fxprune.twin.waiting import Waiting, waiting

#: A batch's number, and the nodes of its way, each with the values that are alive; parts of the way come one after the other.
Way: TypeAlias = "tuple[int, Iterator[tuple[fx.Node, dict[fx.Node, Any]]]]"


class March:
    """Batches, this process's share of them, that wait behind the last stop.

    Args:
        run: the model.
        inputs: its flat inputs, ``[...]``, batch by batch; gone through once.
        held: where they wait.
    """

    def __init__(self, run: Run, inputs: Iterable[Sequence[Tensor]], held: Waiting) -> None:
        self._run, self._inputs, self._held = run, inputs, held
        self._place = {node: i for i, node in enumerate(run.order)}
        self._final = {source: self._place[node] for node, sources in run.last.items() for source in sources}
        self._at, self._numbers = 0, list[int]()

    def reaches(self, node: fx.Node) -> bool:
        """Returns whether a node is still ahead."""
        return self._place[node] >= self._at

    def to(self, stop: fx.Node, *, last: bool = False) -> Iterator[Way]:
        """Yields for each batch in turn its way from the last stop up to another one, which is gone to its end whatever is read of it.

        Args:
            stop: the node.
            last: no batch goes on from there.
        """
        end = self._place[stop] + 1
        while self._at < end:
            begin, self._at = self._at, self._next(end)
            over = last and self._at == end
            way = self._run.order[begin : self._at]
            for number, values, rest in self._waiting(begin):
                feed = iter(rest)
                steps = self._run.along(way, values, feed)
                yield number, steps
                for _ in () if over else steps:
                    pass
                if not over:
                    self._held.put(number, (_without_attributes(values), list(feed)))

    def _next(self, end: int) -> int:
        """Returns how far batches go before the tensors that they read are more than can be in memory."""
        left = room()
        if left is None:
            return end
        for place in range(self._at, end):
            size = self._bytes(self._run.order[place])
            if size > left and place > self._at:
                return place
            left -= size
        return end

    def _bytes(self, node: fx.Node) -> int:
        """Returns what a tensor of the model takes; any other node reads none."""
        info = self._run.selection.coupling.captured.info[node]
        held = node.op == "get_attr" and isinstance(info, TensorInfo)
        return math.prod(info.example) * info.dtype.itemsize if held else 0

    def _waiting(self, begin: int) -> Iterator[tuple[int, dict[fx.Node, Any], Sequence[Tensor]]]:
        """Yields each batch's number, what it holds, and the inputs that it has not read yet."""
        if begin == 0:
            for number, batch in own(self._inputs):
                self._numbers.append(number)
                yield number, {}, batch
            return
        attributes = [n for n in self._run.order[:begin] if n.op == "get_attr" and self._final.get(n, -1) >= begin]
        for number in self._numbers:
            values, rest = self._held.take(number)
            yield number, {**values, **{node: self._run.step(node, {}, iter(())) for node in attributes}}, rest


def _without_attributes(values: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
    return {node: value for node, value in values.items() if node.op != "get_attr"}


def ways(run: Run, inputs: Iterable[Sequence[Tensor]], limit: int) -> Iterator[Way]:
    """Yields the way of each of this process's batches through all of the graph.

    Args:
        run: the model.
        inputs: its flat inputs, ``[...]``, batch by batch.
        limit: bytes of values that may wait in memory, where batches have to wait for each other.
    """
    if room() is None:
        yield from ((number, run.steps(batch)) for number, batch in own(inputs))
        return
    with marching(run, inputs, limit) as march:
        yield from march.to(run.order[-1], last=True)


@contextmanager
def marching(run: Run, inputs: Iterable[Sequence[Tensor]], limit: int) -> Iterator[March]:
    """Yields all batches at the beginning of their way.

    Args:
        run: the model.
        inputs: its flat inputs, ``[...]``, batch by batch.
        limit: bytes of values that may wait in memory; what is beyond waits in files.
    """
    with waiting(limit) as held:
        yield March(run, inputs, held)
