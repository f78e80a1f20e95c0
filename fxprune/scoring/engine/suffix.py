"""Masked forward passes that start where a mask starts to matter: exact, and fast.

What a mask cannot change is computed once for each batch; the part of the graph behind the mask (its *cone*) runs again
for every mask, several masks side by side where the batch is the outermost factor of every value. In the cone, batch norms in
evaluation mode are folded into the convolution before them, and activations work in place.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fxprune._base.graphs import last_uses
from fxprune._base.names import fetch
from fxprune.algebra.axes import Axis, size_of
from fxprune.algebra.channels import Ids, Mask
from fxprune.capturing.captured import TensorInfo
from fxprune.capturing.regions import mode_of
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, is_kind, may_alias, rule_of
from fxprune.ops.rule import in_place_form
from fxprune.ops.slicer import Slicer
from fxprune.ops.tracer import Contraction
from fxprune.scoring.engine.columns import flags_of
from fxprune.twin.comparison import TOLERANCE
from fxprune.twin.interpreter import Run

Values = dict[fx.Node, Any]

#: Kinds of op whose result is theirs alone, to be overwritten by the activation behind.
_FRESH = ("conv", "linear", "addition", "batch_norm", "elementwise")


@dataclass(frozen=True, slots=True, eq=False)
class Cone:
    """What a set of masks makes different.

    Attributes:
        contractions: the contractions whose operand loses coordinates.
        nodes: the nodes that may change, front to back, output included.
        frontier: the values that they read and that stay as they are.
        stackable: whether several masks may share one pass.
        weight: MACs of one sample in the cone.
    """

    contractions: tuple[Contraction, ...]
    nodes: tuple[fx.Node, ...]
    frontier: tuple[fx.Node, ...]
    stackable: bool
    weight: int


class Suffix:
    """The captured graph, ready to run behind any mask.

    Args:
        coupling: of the captured graph, whose tensors are read now and not again.
        rows: samples that share a pass where masks are small; more masks than fit are passed one after another.
    """

    def __init__(self, coupling: Coupling, rows: int = 512) -> None:
        self.coupling, self.rows = coupling, rows
        self.graph = coupling.captured.module.graph
        self.prime = coupling.captured.batch[0]
        self.device = next((p.device for p in coupling.captured.module.parameters()), torch.device("cpu"))
        self._macs = Counter[fx.Node]()
        for contraction in coupling.contractions:
            self._macs[contraction.node] += contraction.macs
        self._folded = _fold(coupling)
        self._apart: dict[Cone, bool] = {}

    def cone(self, channels: Ids) -> Cone:
        """Returns the part of the graph that masking some of these channels, ``[n]``, may change."""
        slicer = self.coupling.slicer(flags_of(self.coupling, channels))
        hit = tuple(c for c in self.coupling.contractions if slicer.changed(c.axis))
        statistics = {node for node, axis in self._statistics(slicer) if slicer.changed(axis)}
        inside = statistics | {c.node for c in hit}
        for node in self.graph.nodes:
            if not inside.isdisjoint(node.all_input_nodes):
                inside.add(node)
        alive: set[fx.Node] = set()
        for node in reversed(self.graph.nodes):
            if node.op == "output" or (node in inside and not alive.isdisjoint(node.users)):
                alive.add(node)
        nodes = tuple(node for node in self.graph.nodes if node in alive)
        sources = [source for node in nodes for source in node.all_input_nodes if source not in alive]
        frontier = tuple(dict.fromkeys(sources))
        apart = all(self._batch_dim(node) is not None for node in (*nodes[:-1], *frontier))
        apart &= all(self._batch_dim(node) == 0 for node in nodes[-1].all_input_nodes if node in alive)
        return Cone(hit, nodes, frontier, apart and not statistics, sum(self._macs[node] for node in nodes))

    def _statistics(self, slicer: Slicer) -> Iterator[tuple[fx.Node, Axis]]:
        """Yields the nodes that take statistics, with each axis of what they read."""
        for node in self.coupling.statistics:
            for source in node.all_input_nodes:
                if isinstance(self.coupling.values.get(source), tuple):
                    yield from ((node, axis) for axis in slicer.axes(source, node))

    def dense(self, flat: Sequence[Tensor], wanted: Iterable[fx.Node]) -> Values:
        """Returns the values of the wanted nodes and of the output, ``[samples, ...]``, in one pass over one batch."""
        keep, steps = set(wanted), Run(Selection.nothing(self.coupling)).steps(flat)
        return {node: values[node] for node, values in steps if node in keep or node.op == "output"}

    def possible(self, mask: Mask) -> bool:
        """Returns whether the outputs are defined under a mask of channels, ``[channels]``.

        They are if statistics keep a coordinate, and choices as many as they take.
        """
        slicer = self.coupling.slicer(mask)
        enough = all(slicer.count(axis) >= least for axis, least in self.coupling.least)
        return enough and all(slicer.count(axis) for _, axis in self._statistics(slicer) if slicer.changed(axis))

    def masked(self, cone: Cone, masks: Sequence[Mask], dense: Values, samples: int) -> Iterable[Any]:
        """Yields the flat outputs under each mask, in order.

        Args:
            cone: of all channels in the masks.
            masks: a flag for each channel id, ``[channels]``.
            dense: the values at the cone's frontier.
            samples: the batch size.
        """
        together = max(1, self.rows // max(samples, 1)) if cone.stackable else 1
        while masks:
            part = masks[:together]
            outputs = self._run(cone, part, dense)
            if len(part) == 1:
                yield outputs
            elif self._keeps_apart(cone, part, outputs, dense):
                yield from ([_part(x, i, len(part)) for x in outputs] for i in range(len(part)))
            else:
                together = 1
                continue
            masks = masks[len(part) :]

    def _keeps_apart(self, cone: Cone, masks: Sequence[Mask], outputs: Sequence[Any], dense: Values) -> bool:
        """Returns whether masks that share a pass leave each other alone, tried once for each cone.

        Shapes do not tell: samples may see each other (a sum over the batch), or be found by their number.
        """
        if cone not in self._apart:
            shared = [_part(x, len(masks) - 1, len(masks)) for x in outputs]
            alone = self._run(cone, masks[-1:], dense)
            self._apart[cone] = all(_agree(a, b) for a, b in zip(shared, alone, strict=True))
        return self._apart[cone]

    def bytes(self, nodes: Iterable[fx.Node]) -> int:
        """Returns what the values of these nodes take for one sample at the example's sizes."""
        infos = [self.coupling.captured.info.get(node) for node in nodes if node.op != "get_attr"]
        total = sum(math.prod(i.example) * i.dtype.itemsize for i in infos if isinstance(i, TensorInfo))
        return total // max(self.coupling.captured.batch[1], 1)

    # -- one pass -----------------------------------------------------------------------------------------------

    def _run(self, cone: Cone, masks: Sequence[Mask], dense: Values) -> Any:
        twin = None if cone.stackable else Run(Selection(self.coupling, masks[0]))
        values: Values = {node: self._repeated(node, dense[node], len(masks)) for node in cone.frontier}
        keeps, last, own = self._keeps(cone, masks), last_uses(cone.nodes), set(cone.nodes)
        for node in cone.nodes:
            if twin is not None:
                values[node] = twin.step(node, values, iter(()))
            else:
                values[node] = self._step(node, values, keeps.get(node, ()), own)
            for source in last.get(node, ()):
                values.pop(source, None)
        return values[cone.nodes[-1]]

    def _step(
        self, node: fx.Node, values: Values, keeps: Sequence[tuple[fx.Node, int, Tensor]], own: set[fx.Node]
    ) -> Any:
        operands = dict(values) if keeps else values
        for source, dim, keep in keeps:
            operands[source] = _masked(operands[source], self._batch_dim(source), dim, keep)
        with mode_of(node):
            return self._value(node, operands, alone=not keeps, own=own)

    def _value(self, node: fx.Node, operands: Values, alone: bool, own: set[fx.Node]) -> Any:
        if node in self._folded:
            return self._folded[node](operands)
        if node.op == "output":
            return fx.node.map_arg(node.args[0], operands.__getitem__)
        args = fx.node.map_arg(node.args, operands.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, operands.__getitem__)
        rule = rule_of(node.target)
        if rule is not None and rule.in_place and alone and self._is_own(node, own):
            return in_place_form(node.target)(*args, **kwargs)
        target: Any = node.target
        return target(*args, **kwargs)

    def _is_own(self, node: fx.Node, own: set[fx.Node]) -> bool:
        """Whether the first operand's memory belongs to this pass and nobody else reads it."""
        source = node.args[0]
        while isinstance(source, fx.Node) and source in own and len(source.users) == 1:
            if source in self._folded and is_kind(source, "batch_norm"):
                source = source.args[0]  # folded away: the convolution's own result
                continue
            return is_kind(source, *_FRESH) and not may_alias(source.target)
        return False

    def _keeps(self, cone: Cone, masks: Sequence[Mask]) -> dict[fx.Node, list[tuple[fx.Node, int, Tensor]]]:
        """Returns for each contraction node its (operand, dimension, kept coordinates ``[masks, size]``)."""
        slicers = [self.coupling.slicer(mask) for mask in masks]
        found: dict[fx.Node, list[tuple[fx.Node, int, Tensor]]] = {}
        for contraction in cone.contractions:
            every = np.ones(size_of(contraction.axis), bool)
            rows = [slicer.mask(contraction.axis) for slicer in slicers]
            keep = np.stack([every if row is None else row for row in rows])
            entry = (contraction.source, contraction.dim, torch.from_numpy(keep))
            found.setdefault(contraction.node, []).append(entry)
        return found

    def _repeated(self, node: fx.Node, value: Any, count: int) -> Any:
        if count == 1:
            return value
        info = self.coupling.captured.info.get(node)
        if isinstance(info, int) and info % self.prime == 0 and self.prime > 1:
            return value * count
        dim = self._batch_dim(node)
        if isinstance(value, Tensor) and dim is not None and dim >= 0:
            return torch.cat([value] * count, dim)
        return value

    def _batch_dim(self, node: fx.Node) -> int | None:
        """Returns the dimension that begins with the batch, -1 if there is none, None if it cannot be told."""
        info = self.coupling.captured.info.get(node)
        if isinstance(info, list):  # a split's parts: alike but for the dimension that is split
            shapes = [part.shape if isinstance(part, TensorInfo) else () for part in info]
            parts = {d for shape in shapes for d, size in enumerate(shape) if size % self.prime == 0}
            return parts.pop() if len(parts) == 1 and self.prime > 1 else None
        if not isinstance(info, TensorInfo) or self.prime == 1:
            return -1 if info is None or isinstance(info, int) else None
        dims = [d for d, size in enumerate(info.shape) if size % self.prime == 0 and size]
        if not dims:
            return -1
        if len(dims) > 1:
            return None
        (dim,) = dims
        axes = self.coupling.values.get(node)
        outer = axes[dim][0].size if isinstance(axes, tuple) and axes[dim] else info.shape[dim]
        return dim if self.prime in (info.shape[dim], outer) else None


def _agree(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not a.is_floating_point():
        return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)
    limit = TOLERANCE.get(a.dtype, 1e-4)
    scale = float(a.nan_to_num(0.0, 0.0, 0.0).abs().max()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=limit, atol=limit * scale, equal_nan=True)


def _masked(value: Tensor, batch: int | None, dim: int, keep: Tensor) -> Tensor:
    """Returns a value with zeros where a coordinate is not kept; ``keep`` is ``[masks, size]``."""
    gone = ~keep.to(value.device)
    if len(keep) == 1 or batch is None or batch < 0:
        return value.index_fill(dim, gone[0].nonzero().reshape(-1), 0)
    parts = value.unflatten(batch, (len(keep), -1))
    place = dim + 1 if dim > batch else dim
    shape = [1] * parts.dim()
    shape[batch], shape[place] = len(keep), keep.shape[1]
    order = gone if batch < place else gone.T
    return torch.flatten(parts.masked_fill(order.reshape(shape), 0), batch, batch + 1)


def _part(value: Any, index: int, count: int) -> Any:
    return value.tensor_split(count)[index] if isinstance(value, Tensor) and value.dim() else value


def _fold(coupling: Coupling) -> dict[fx.Node, Callable[[Values], Any]]:
    """Returns how to run convolutions with the batch norm behind them folded in, and those batch norms."""
    folded: dict[fx.Node, Callable[[Values], Any]] = {}
    for norm in coupling.captured.module.graph.nodes:
        conv: Any = norm.args[0] if is_kind(norm, "batch_norm") and not bind(norm).training else None
        if not is_kind(conv, "conv") or len(conv.users) != 1:
            continue
        a, b = bind(conv), bind(norm)
        nodes = (a.weight, a.bias, b.running_mean, b.running_var, b.weight, b.bias)
        windows = {a.input, a.weight, a.bias}.issuperset(conv.all_input_nodes)  # and no sizes known at run time alone
        if windows and all(node is None or node.op == "get_attr" for node in nodes):
            folded[conv], folded[norm] = _folded_conv(coupling, conv, nodes, b.eps), itemgetter(conv)
    return folded


def _folded_conv(
    coupling: Coupling, conv: fx.Node, nodes: Iterable[fx.Node | None], eps: float
) -> Callable[[Values], Any]:
    """Returns the convolution with other weights; of the nodes two are its own, four the batch norm's."""
    module, a = coupling.captured.module, bind(conv)
    weight, bias, mean, var, gamma, beta = (
        None if node is None else fetch(module, str(node.target)).detach().double() for node in nodes
    )
    fused = fuse_conv_bn_weights(weight, bias, mean, var, eps, gamma, beta)  # type: ignore[arg-type]
    kernel, offset = (x.detach().to(coupling.captured.info[conv].dtype) for x in fused)
    if kernel.dim() == 4:
        kernel = kernel.contiguous(memory_format=torch.channels_last)
    run: Any = conv.target
    return lambda values: run(values[a.input], kernel, offset, a.stride, a.padding, a.dilation, a.groups)
