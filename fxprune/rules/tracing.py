"""The coupling interpreter's context: what a rule may ask and what it may say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxprune import axes as ax
from fxprune.axes import Axes, Axis, Factor
from fxprune.capture import Captured, TensorInfo
from fxprune.channels import Channels


@dataclass(frozen=True, slots=True, eq=False)
class Contraction:
    """A sum over an axis that loses coordinates with it: conv, linear, matmul, attention.

    Attributes:
        node: the op.
        source: the operand whose removed coordinates the masked twin sets to zero.
        dim: the contracted dimension of ``source``.
        axis: its axis.
        loops: the labelled axes among those whose sizes multiply to the op's MACs.
        macs: the MACs of the whole op, one sample at the example's sizes.
        weight: the get_attr node of the weight, where the other operand is a parameter as it stands.
        weight_dim: the weight's contracted dimension.
        other: the other operand and its contracted dimension, where it is no parameter.
    """

    node: fx.Node
    source: fx.Node
    dim: int
    axis: Axis
    loops: Axes
    macs: int
    weight: fx.Node | None = None
    weight_dim: int = 1
    other: tuple[fx.Node, int] | None = None


class Tracer:
    """Holds the axes of every value while the rules run through the graph, front to back."""

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.channels = Channels()
        self.values: dict[fx.Node, Any] = {}
        self.bound: set[fx.Node] = set()  # values that depend on a parameter or a persistent buffer
        self.edges: dict[
            tuple[fx.Node, fx.Node], Axes
        ] = {}  # what a reader takes of a value that is not bound
        self.notes: dict[fx.Node, dict[str, Axis]] = {}
        self.contractions: list[Contraction] = []
        self.statistics: set[fx.Node] = set()
        self.least: list[tuple[Axis, int]] = []  # axes of which more than one coordinate must stay

    # -- what a rule may ask ------------------------------------------------------------------------------------

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Returns the node's shape; dynamic sizes stand as large primes."""
        info: TensorInfo = self.captured.info[node]
        return info.shape

    def example(self, node: fx.Node) -> tuple[int, ...]:
        """Returns the node's shape at the example's sizes."""
        info: TensorInfo = self.captured.info[node]
        return info.example

    def dynamic(self, node: fx.Node, dim: int) -> bool:
        """Returns whether a dimension's size is known only at run time."""
        info: TensorInfo = self.captured.info[node]
        return info.shape[dim] != info.example[dim]

    def where(self, node: fx.Node) -> str:
        """Returns how reasons name a node."""
        module = node.meta.get("module")
        return f"{node.target} in {module}" if module else f"{node.target}"

    def is_tensor(self, value: Any) -> bool:
        """Returns whether an argument is a node that carries a tensor."""
        return isinstance(value, fx.Node) and isinstance(self.captured.info.get(value), TensorInfo)

    def axes(self, node: fx.Node, reader: fx.Node) -> Axes:
        """Returns the axes of an operand as ``reader`` sees it.

        A free axis gets ids of its own at each reader that works on parameters: that reader may take a part.
        """
        axes: Axes = self.values[node]
        if reader not in self.bound or node in self.bound:
            return axes
        key = (reader, node)
        if key not in self.edges:
            self.edges[key] = tuple(tuple(map(self._instance, axis)) for axis in axes)
        return self.edges[key]

    def _instance(self, factor: Factor) -> Factor:
        if not factor.free:
            return factor
        return Factor(factor.size, self.channels.fresh(factor.size).reshape(-1, 1))

    def new_axis(self, reader: fx.Node, size: int, dynamic: bool) -> Axis:
        """Returns an axis that the op itself makes (expand, repeat, padding): its extent may be edited."""
        if dynamic or size == 1:
            return ax.fixed(size)
        return ax.labelled(self.channels.fresh(size)) if reader in self.bound else ax.free(size)

    # -- what a rule may say ------------------------------------------------------------------------------------

    def relate(self, node: fx.Node, a: Axis, b: Axis) -> Axis:
        """Unites two axes of the same size and returns the one that is described more finely."""
        return ax.broadcast(self.channels, (a, b), self.where(node))

    def freeze(self, node: fx.Node, axis: Axis, what: str) -> Axis:
        """Fixes an axis for good, and returns it."""
        ax.freeze(self.channels, axis, f"{what} of {self.where(node)}")
        return axis

    def reshape(self, node: fx.Node, axes: Sequence[Axis], sizes: Sequence[int]) -> Axes:
        """Returns the axes after a row-major reshape."""
        return ax.reshape(self.channels, axes, sizes, f"reshape of {self.where(node)}")

    def note(self, node: fx.Node, **axes: Axis) -> None:
        """Keeps axes under a name for the op's slice and twin rules."""
        self.notes.setdefault(node, {}).update(axes)

    def contract(
        self, node: fx.Node, source: fx.Node, dim: int, axis: Axis, loops: Sequence[Axis], macs: int,
        weight: Any = None, weight_dim: int = 1, other: tuple[fx.Node, int] | None = None,
    ) -> None:  # fmt: skip
        """Records a contraction over ``axis``, which is dimension ``dim`` of ``source``; ``macs`` is of the example."""
        prime, example = self.captured.batch
        info = self.captured.info[node]
        result: TensorInfo = info[0] if isinstance(info, (list, tuple)) else info
        if math.prod(result.shape) % prime == 0:
            macs //= example
        parameter = weight if isinstance(weight, fx.Node) and weight.op == "get_attr" else None
        labelled = tuple(loop for loop in loops if ax.is_labelled(loop))
        self.contractions.append(
            Contraction(node, source, dim, axis, labelled, macs, parameter, weight_dim, other)
        )

    def statistic(self, node: fx.Node) -> None:
        """Records that an op takes a statistic over an axis that may shrink."""
        self.statistics.add(node)

    def keep_least(self, axis: Axis, least: int) -> None:
        """Records that an op is undefined with fewer coordinates of an axis than ``least``."""
        if least > 1:
            self.least.append((axis, least))
