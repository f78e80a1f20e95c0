"""The coupling interpreter's context: what a rule may ask and what it may say."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune._base.errors import RuleError
from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes, Axis, Factor
from fxprune.algebra.channels import Channels, Ids
from fxprune.capturing.captured import Captured, TensorInfo
from fxprune.ops.registry import bind, rule_at, rule_of

#: Dtypes that hold every position of an axis as it is.
_EXACT = {torch.int32, torch.int64, torch.float32, torch.float64}


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
        self.edges: dict[tuple[fx.Node, fx.Node], Axes] = {}  # what a reader takes of a value that is not bound
        self.notes: dict[fx.Node, dict[str, Axis]] = {}
        self.contractions: list[Contraction] = []
        self.statistics: set[fx.Node] = set()
        self.least: list[tuple[Axis, int]] = []  # axes of which more than one coordinate must stay
        self.made: list[Ids] = []  # labels that a linear layer's outputs have
        self.stacked: list[Ids] = []  # labels of weights of layers side by side
        self.routed: list[Ids] = []  # labels of outputs that were normalised or chosen among
        self._pointed: dict[fx.Node, Axis] = {}  # values that hold positions of an axis

    # -- what a rule may ask ------------------------------------------------------------------------------------

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Returns the node's shape, of the first result of several; dynamic sizes stand as large primes."""
        info = self.captured.info[node]
        first: TensorInfo = info[0] if isinstance(info, (list, tuple)) else info
        return first.shape

    def parts(self, node: fx.Node) -> list[TensorInfo]:
        """Returns what is known of each result of an op that has several."""
        parts: list[TensorInfo] = self.captured.info[node]
        return parts

    def example(self, node: fx.Node) -> tuple[int, ...]:
        """Returns the node's shape at the example's sizes."""
        info: TensorInfo = self.captured.info[node]
        return info.example

    def shown(self, size: int) -> int:
        """Returns a size, at the example's sizes where it holds dynamic ones; for messages."""
        for info in self.captured.info.values():
            for prime, example in zip(info.shape, info.example, strict=True) if isinstance(info, TensorInfo) else ():
                if prime > example and size % prime == 0:
                    size = size // prime * example
        return size

    def dynamic(self, node: fx.Node, dim: int) -> bool:
        """Returns whether a dimension's size is known only at run time."""
        return self.shape(node)[dim] != self.example(node)[dim]

    def where(self, node: fx.Node) -> str:
        """Returns how reasons name a node."""
        module = node.meta.get("module")
        given = [source.name for source in node.all_input_nodes if source.op == "placeholder"]
        place, operands = f" in {module}" if module else "", f" on the input {', '.join(given)}" if given else ""
        return f"{node.target}{place}{operands}"

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
            parts = ((dim, tuple(map(self._instance, axis))) for dim, axis in enumerate(axes))
            self.edges[key] = tuple(
                axis if self._told_apart(node, dim, axis) else ax.fixed(ax.size_of(axis)) for dim, axis in parts
            )
        return self.edges[key]

    def _told_apart(self, node: fx.Node, dim: int, axis: Axis) -> bool:
        """Returns whether at most one part of an axis, beside those that may shrink, has a size known only at run time."""
        if not ax.is_labelled(axis) or not self.dynamic(node, dim):
            return True
        whole = [ax.size_of(part) for part in ax.in_parts(axis) if not ax.is_labelled(part)]
        return self.example(node)[dim] % (ax.size_of(axis) // max(whole, default=1)) == 0

    def _instance(self, factor: Factor) -> Factor:
        if not factor.free:
            return factor
        return Factor(factor.size, self.channels.fresh(factor.size).reshape(-1, 1))

    def new_axis(self, reader: fx.Node, size: int, dynamic: bool) -> Axis:
        """Returns an axis that the op itself makes (expand, repeat, padding): its extent may be edited."""
        if dynamic or size == 1:
            return ax.fixed(size)
        return ax.labelled(self.channels.fresh(size)) if reader in self.bound else ax.free(size)

    def weight(self, value: Any) -> fx.Node | None:
        """Returns the parameter or buffer that an operand is, moved about at most."""
        while (rule := rule_at(value)) is not None and rule.carries:
            value = value.args[0]
        return value if isinstance(value, fx.Node) and value.op == "get_attr" and value in self.bound else None

    def within(self, axis: Axis, known: Sequence[Ids]) -> bool:
        """Returns whether something may go from an axis, and all of it is in these labels, ``[n, k]`` (`made`, ...)."""
        live = self._live(ax.labels_of(axis)) if known else np.zeros(0, np.int64)
        return bool(live.size) and bool(np.isin(live, self._live(known)).all())

    def pointed(self, value: Any) -> Axis | None:
        """Returns the axis whose positions a value holds, if it may shrink."""
        return self._pointed.get(value) if isinstance(value, fx.Node) else None

    def _live(self, labels: Iterable[Ids]) -> Ids:
        found = [self.channels.resolve(part).reshape(-1) for part in labels]
        ids: Ids = np.unique(np.concatenate([np.zeros(0, np.int64), *found]))
        return ids[ids > 0]

    # -- what a rule may say ------------------------------------------------------------------------------------

    def relate(self, node: fx.Node, a: Axis, b: Axis) -> Axis:
        """Unites two axes of the same size and returns the one that is described more finely."""
        return ax.broadcast(self.channels, (a, b), self.where(node))

    def broadcast(self, node: fx.Node, *operands: Sequence[Axis]) -> Axes:
        """Unites the axes of elementwise operands, which are aligned at the last, and returns those of the result."""
        rank = max(map(len, operands), default=0)
        columns = zip(*[((),) * (rank - len(axes)) + tuple(axes) for axes in operands], strict=True)
        return tuple(ax.broadcast(self.channels, column, self.where(node)) for column in columns)

    def freeze(self, node: fx.Node, axis: Axis, what: str) -> Axis:
        """Fixes an axis for good, and returns it."""
        ax.freeze(self.channels, axis, f"{what} of {self.where(node)}")
        return axis

    def fix(self, node: fx.Node, axes: Sequence[Axis], dims: Iterable[int], what: str) -> Axes:
        """Fixes some of an operand's axes for good; returns all, those at the sizes that the result has there."""
        result = list(axes)
        for dim in dims:
            self.freeze(node, axes[dim], what)
            result[dim] = ax.fixed(self.shape(node)[dim % len(axes)])
        return tuple(result)

    def reshape(self, node: fx.Node, axes: Sequence[Axis], sizes: Sequence[int]) -> Axes:
        """Returns the axes after a row-major reshape."""
        return ax.reshape(self.channels, axes, sizes, f"reshape of {self.where(node)}")

    def note(self, node: fx.Node, **axes: Axis) -> None:
        """Keeps axes under a name for the op's slice and twin rules.

        Raises:
            RuleError: the op's declaration has neither.
        """
        rule = rule_of(node.target)
        if rule is None or (rule.slice is None and rule.twin is None):
            raise RuleError(f"{node.target}: it notes {', '.join(axes)}, but declares no slice= or twin= to read that")
        self.notes.setdefault(node, {}).update(axes)

    def contract(
        self,
        node: fx.Node,
        at: tuple[fx.Node, int],
        axis: Axis,
        loops: Sequence[Axis],
        macs: int,
        weight: Any = None,
        weight_dim: int = 1,
        other: tuple[fx.Node, int] | None = None,
    ) -> None:
        """Records a contraction over ``axis``, which ``at`` has: (operand, dim); ``macs`` is of the example."""
        prime, example = self.captured.batch
        if math.prod(self.shape(node)) % prime == 0:
            macs //= example
        parameter = weight if isinstance(weight, fx.Node) and weight.op == "get_attr" else None
        labelled = tuple(loop for loop in loops if ax.is_labelled(loop))
        self.contractions.append(Contraction(node, *at, axis, labelled, macs, parameter, weight_dim, other))

    def statistic(self, node: fx.Node) -> None:
        """Records that an op takes a statistic over an axis that may shrink.

        Raises:
            RuleError: the op's declaration does not say so.
        """
        rule = rule_of(node.target)
        if rule is None or not rule.statistic:
            raise RuleError(f"{node.target}: it takes a statistic, but does not declare statistic=True and twin=")
        self.statistics.add(node)
        for operand in filter(self.is_tensor, node.all_input_nodes):
            for dim, axis in enumerate(self.values[operand] or ()):
                if not self._told_apart(operand, dim, axis):
                    self.freeze(node, axis, "an axis of several parts known only at run time")

    def keep_least(self, axis: Axis, least: int) -> None:
        """Records that an op is undefined with fewer coordinates of an axis than ``least``."""
        if least > 1:
            self.least.append((axis, least))

    def point(self, node: fx.Node, axis: Axis, result: int | None = None) -> None:
        """Records that a value (``result`` names it among several) holds positions of an axis that may shrink.

        They follow whatever carries them on; a reader that does not know what they are fixes the axis.
        """
        if result is not None:
            for user in node.users:
                if user.target is operator.getitem and user.args[1] == result:
                    self.point(user, axis)
            return
        self._pointed[node] = axis
        for user in node.users:
            rule = rule_at(user)
            a = vars(bind(user)) if rule is not None else {}
            where = {name for name, value in a.items() if _holds(value, node)}
            info = self.captured.info.get(user)
            exact = isinstance(info, TensorInfo) and info.dtype in _EXACT
            if rule is not None and rule.carries and exact and where == {next(iter(a))}:
                self.point(user, axis)
            elif rule is None or rule.carries or not where or not where <= set(rule.positions):
                self.freeze(user, axis, "the positions read")

    def follow(self, node: fx.Node, axis: Axis, positions: Any, what: str) -> Axis:
        """Makes an axis shrink as the one whose positions are looked up in it; fixes both where they do not match."""
        pointed = self.pointed(positions)
        if pointed is not None and ax.size_of(axis) == ax.size_of(pointed):
            return self.relate(node, axis, pointed)
        self.freeze(node, pointed or (), what)
        return self.freeze(node, axis, what)

    def route(self, axis: Axis) -> None:
        """Records that an axis was normalised or chosen among."""
        self.routed += ax.labels_of(axis)

    def experts(self, axis: Axis) -> None:
        """Names the channels of an axis that are layers side by side, and were chosen among or weighed: experts."""
        if self.within(axis, self.routed) and self.within(axis, self.stacked):
            ax.mark(self.channels, axis, "expert")


def _holds(value: Any, node: fx.Node) -> bool:
    """Whether an argument is a node, or a list with it."""
    return value is node or (isinstance(value, (list, tuple)) and any(item is node for item in value))
