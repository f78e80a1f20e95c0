"""The interpreter: the captured graph node by node, dense or as the masked twin.

The twin is the original graph at full size with zeros where a removed channel enters a sum or a mean, and other statistics
over what is kept. It must give what the emitted module gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune._base.graphs import by_first_use, last_uses
from fxprune._base.names import fetch
from fxprune._base.pages import touched
from fxprune.capturing.regions import mode_of
from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, blamed, rule_of
from fxprune.ops.tracer import Contraction
from fxprune.ops.twin import Twin, in_precision


class Run:
    """One pass through the captured graph, node by node, values dropped after their last use.

    Of a selection that removes nothing it is the dense model, else the masked twin. The selection's tensors replace
    parameters and buffers by name, and are used as they are: gradients reach those that require them.

    Args:
        selection: what goes, and what replaces tensors; its mapping of tensors is read anew at each node.
        dtype: lifts all floating values to this precision, explicit casts included.
    """

    def __init__(self, selection: Selection, dtype: torch.dtype | None = None) -> None:
        self.selection, self.dtype = selection, dtype
        self._lift = partial(in_precision, dtype=dtype)
        self.graph = selection.coupling.captured.module.graph
        self.slicer = selection.slicer if selection.removed.any() else None
        self.masked: dict[fx.Node, list[Contraction]] = {}
        self.stored: frozenset[fx.Node] = frozenset()
        if self.slicer is not None:
            for contraction in selection.coupling.contractions:
                if self.slicer.changed(contraction.axis):
                    self.masked.setdefault(contraction.node, []).append(contraction)
            self.stored = frozenset(selection.collapse.frontier) if dtype is not None else self.stored
        self.order = by_first_use(list(self.graph.nodes))
        self.last = last_uses(self.order)
        self.statistics = {
            source
            for node in self.graph.nodes
            if node.op == "call_function" and _keeps_statistics(node.target)
            for source in (bind(node).running_mean, bind(node).running_var)
        }

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        """Returns the flat outputs for flat inputs, ``[...]`` as the model has them."""
        result: tuple[Any, ...] = ()
        for node, values in self.steps(inputs):
            if node.op == "output":
                result = values[node]
        return result

    def steps(self, inputs: Sequence[Tensor]) -> Iterator[tuple[fx.Node, dict[fx.Node, Any]]]:
        """Yields every node, front to back, with the values that are alive: its own and its operands' among them.

        The caller may replace values; the nodes that follow read what it put there. ``inputs`` are flat, ``[...]`` as
        the model takes them.
        """
        yield from self.along(self.order, {}, iter(inputs))

    def along(
        self, way: Sequence[fx.Node], values: dict[fx.Node, Any], feed: Iterator[Tensor]
    ) -> Iterator[tuple[fx.Node, dict[fx.Node, Any]]]:
        """Yields the nodes of a part of the way, as `steps` does.

        Args:
            way: some of ``order``, side by side.
            values: those that are alive before it; changed.
            feed: yields the next input, ``[...]``.
        """
        for node in way:
            values[node] = self.step(node, values, feed)
            if node in self.stored:  # the pruned model holds what a collapsed branch leaves in its own precision
                values[node] = values[node].to(self.selection.coupling.captured.info[node].dtype).to(values[node].dtype)
            yield node, values
            for source in self.last.get(node, ()):
                del values[source]

    def step(self, node: fx.Node, values: Mapping[fx.Node, Any], feed: Iterator[Tensor]) -> Any:
        """Returns the value of one node from those of its operands; ``feed`` yields the next input, ``[...]``."""
        with mode_of(node, self.dtype):
            return self._step(node, values, feed)

    def _step(self, node: fx.Node, values: Mapping[fx.Node, Any], feed: Iterator[Tensor]) -> Any:
        if node.op == "placeholder":
            return self._lift(next(feed).detach())
        if node.op == "get_attr":
            name = str(node.target)
            standing = self.selection.standing(name)
            value = fetch(self.selection.coupling.captured.module, name) if standing is None else standing
            touched(standing)
            if node in self.statistics:  # of the batch, they are written to the model's buffers
                value = value.clone()
            held = isinstance(value, Tensor) and standing is None
            return self._lift(value.detach() if held else value)
        if node.op == "output":
            return fx.node.map_arg(node.args[0], values.__getitem__)
        if self.slicer is not None and node in self.selection.coupling.statistics:
            rule = rule_of(node.target)
            assert rule is not None and rule.twin is not None, f"{node.target} takes a statistic but has no twin"
            arguments = SimpleNamespace(**self._lifted(vars(bind(node))))
            with blamed(node, "twin", arguments):
                return rule.twin(Twin(**vars(self.slicer), read=values.__getitem__), node, arguments)
        masked = {c.source: self._masked(node, c.source, values) for c in self.masked.get(node, ())}
        sums = Counter(c.source for c in self.masked.get(node, ()))

        def value_of(source: fx.Node) -> Any:
            sums[source] -= 1  # an operand given twice is masked as often as it is summed over
            return masked[source] if sums[source] >= 0 else values[source]

        args, kwargs = fx.node.map_arg(self._lifted((node.args, node.kwargs)), value_of)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _lifted(self, arguments: Any) -> Any:
        return arguments if self.dtype is None else fx.node.map_aggregate(arguments, self._lift)

    def _masked(self, node: fx.Node, source: fx.Node, values: Mapping[fx.Node, Any]) -> Tensor:
        value: Tensor = values[source]
        for contraction in self.masked[node]:
            mask = self.slicer.mask(contraction.axis) if self.slicer is not None else None
            if contraction.source is source and mask is not None:
                gone = torch.from_numpy(np.flatnonzero(~mask)).to(value.device)
                value = value.index_fill(contraction.dim, gone, 0)
        return value


@cache
def _keeps_statistics(target: Any) -> bool:
    return any(a.name == "running_mean" for a in getattr(getattr(target, "_schema", None), "arguments", ()))
