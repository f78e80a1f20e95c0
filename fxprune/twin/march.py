"""All batches on their way through the graph together: from one stop to the next, none of them twice.

What lies between two stops is read once for all batches, so that tensors that are mapped from files need not be in memory for longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, fx

from fxprune.twin.interpreter import Run
from fxprune.twin.waiting import Waiting, waiting

#: The nodes of one batch's way, each with the values that are alive.
Steps: TypeAlias = "Iterator[tuple[fx.Node, dict[fx.Node, Any]]]"


class March:
    """Batches that wait behind the last stop.

    Args:
        run: the model.
        inputs: its flat inputs, ``[...]``, batch by batch; gone through once.
        held: where they wait.
    """

    def __init__(self, run: Run, inputs: Iterable[Sequence[Tensor]], held: Waiting) -> None:
        self._run, self._inputs, self._held = run, inputs, held
        self._place = {node: i for i, node in enumerate(run.order)}
        self._final = {source: self._place[node] for node, sources in run.last.items() for source in sources}
        self._at, self._count = 0, 0

    def reaches(self, node: fx.Node) -> bool:
        """Returns whether a node is still ahead."""
        return self._place[node] >= self._at

    def to(self, stop: fx.Node, *, last: bool = False) -> Iterator[Steps]:
        """Yields for each batch in turn its way from the last stop up to another one, which is gone to its end whatever is read of it.

        Args:
            stop: the node.
            last: no batch goes on from there.
        """
        begin, self._at = self._at, self._place[stop] + 1
        way = self._run.order[begin : self._at]
        for number, (values, rest) in enumerate(self._waiting(begin)):
            feed = iter(rest)
            steps = self._run.along(way, values, feed)
            yield steps
            for _ in () if last else steps:
                pass
            if not last:
                self._held.put(number, (_without_attributes(values), list(feed)))

    def _waiting(self, begin: int) -> Iterator[tuple[dict[fx.Node, Any], Sequence[Tensor]]]:
        """Yields what each batch holds, and the inputs that it has not read yet."""
        if begin == 0:
            for batch in self._inputs:
                self._count += 1
                yield {}, batch
            return
        attributes = [n for n in self._run.order[:begin] if n.op == "get_attr" and self._final.get(n, -1) >= begin]
        for number in range(self._count):
            values, rest = self._held.take(number)
            yield {**values, **{node: self._run.step(node, {}, iter(())) for node in attributes}}, rest


def _without_attributes(values: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
    return {node: value for node, value in values.items() if node.op != "get_attr"}


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
