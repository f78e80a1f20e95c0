"""Masked forward passes that start where a mask starts to matter: exact, and fast.

What a mask cannot change is computed once for each batch; the part of the graph behind the mask (its *cone*) runs again
for every mask, several masks side by side where the batch is the outermost factor of every value. In the cone, batch norms in
evaluation mode are folded into the convolution before them, and activations work in place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional

from fxprune._base.names import fetch
from fxprune.algebra.channels import Ids, Mask
from fxprune.capturing.captured import TensorInfo
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, is_kind, may_alias, rule_of
from fxprune.ops.rule import in_place_form
from fxprune.ops.tracer import Contraction
from fxprune.twin.certificate import TOLERANCE
from fxprune.twin.interpreter import Run, last_uses

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
        self._macs: dict[fx.Node, int] = {}
        for contraction in coupling.contractions:
            self._macs[contraction.node] = self._macs.get(contraction.node, 0) + contraction.macs
        self._folded = _fold(coupling)
        self._apart: dict[Cone, bool] = {}

    def cone(self, channels: Ids) -> Cone:
        """Returns the part of the graph that masking some of these channels may change."""
        removed = np.zeros(len(self.coupling.channels), bool)
        removed[channels] = True
        slicer = self.coupling.slicer(removed)
        hit = tuple(c for c in self.coupling.contractions if slicer.changed(c.axis))
        starts = {c.node for c in hit}
        statistics = False
        for node in self.coupling.statistics:
            axes = [self.coupling.values.get(source) for source in node.all_input_nodes]
            if any(slicer.changed(axis) for group in axes if isinstance(group, tuple) for axis in group):
                starts.add(node)
                statistics = True
        inside: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node in starts or any(source in inside for source in node.all_input_nodes):
                inside.add(node)
        alive = _needed(self.graph, inside)
        nodes = tuple(node for node in self.graph.nodes if node in alive)
        frontier = tuple(
            dict.fromkeys(source for node in nodes for source in node.all_input_nodes if source not in alive)
        )
        apart = all(self._batch_dim(node) is not None for node in (*nodes[:-1], *frontier))
        apart &= all(self._batch_dim(node) == 0 for node in nodes[-1].all_input_nodes if node in alive)
        weight = sum(self._macs.get(node, 0) for node in nodes)
        return Cone(hit, nodes, frontier, apart and not statistics, weight)

    def dense(self, flat: Sequence[Tensor], wanted: Iterable[fx.Node]) -> Values:
        """Returns the values of the wanted nodes and of the output, in one pass over one batch."""
        keep = set(wanted)
        found: Values = {}
        for node, values in Run(Selection.nothing(self.coupling)).steps(flat):
            if node in keep or node.op == "output":
                found[node] = values[node]
        return found

    def possible(self, mask: Mask) -> bool:
        """Returns whether the outputs are defined under a mask: statistics keep a coordinate, choices as many as they take."""
        slicer = self.coupling.slicer(mask)
        axes = (
            axis
            for node in self.coupling.statistics
            for source in node.all_input_nodes
            if isinstance(self.coupling.values.get(source), tuple)
            for axis in slicer.axes(source, node)
        )
        enough = all(slicer.count(axis) >= least for axis, least in self.coupling.least)
        return enough and all(slicer.count(axis) for axis in axes if slicer.changed(axis))

    def masked(self, cone: Cone, masks: Sequence[Mask], dense: Values, samples: int) -> Iterable[Any]:
        """Yields the flat outputs under each mask, in order.

        Args:
            cone: of all channels in the masks.
            masks: a flag for each channel id.
            dense: the values at the cone's frontier.
            samples: the batch size.
        """
        together = max(1, self.rows // max(samples, 1)) if cone.stackable else 1
        start = 0
        while start < len(masks):
            part = masks[start : start + together]
            outputs = self._run(cone, part, dense)
            if len(part) == 1:
                yield outputs
            elif self._keeps_apart(cone, part, outputs, dense):
                yield from ([_part(x, i, len(part)) for x in outputs] for i in range(len(part)))
            else:
                together = 1
                continue
            start += len(part)

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
        total = 0
        for node in nodes:
            info = self.coupling.captured.info.get(node)
            if isinstance(info, TensorInfo) and node.op != "get_attr":
                total += int(np.prod(info.example)) * info.dtype.itemsize
        return total // max(self.coupling.captured.batch[1], 1)

    # -- one pass -----------------------------------------------------------------------------------------------

    def _run(self, cone: Cone, masks: Sequence[Mask], dense: Values) -> Any:
        if not cone.stackable:
            return self._twin(cone, masks[0], dense)
        count = len(masks)
        values: Values = {node: self._repeated(node, dense[node], count) for node in cone.frontier}
        keeps = self._keeps(cone, masks)
        last = last_uses(cone.nodes)
        own = set(cone.nodes)
        for node in cone.nodes:
            if node.op == "output":
                return fx.node.map_arg(node.args[0], values.__getitem__)
            values[node] = self._step(node, values, keeps.get(node, ()), own)
            for source in last.get(node, ()):
                values.pop(source, None)
        raise AssertionError("a cone ends with the output")

    def _step(
        self, node: fx.Node, values: Values, keeps: Sequence[tuple[fx.Node, int, Tensor]], own: set[fx.Node]
    ) -> Any:
        operands: Values = values
        if keeps:
            operands = dict(values)
            for source, dim, keep in keeps:
                operands[source] = _masked(operands[source], self._batch_dim(source), dim, keep)
        folded = self._folded.get(node)
        if folded is not None:
            return folded(operands)
        args = fx.node.map_arg(node.args, operands.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, operands.__getitem__)
        rule = rule_of(node.target)
        if rule is not None and rule.in_place and not keeps and self._is_own(node, own):
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

    def _twin(self, cone: Cone, mask: Mask, dense: Values) -> Any:
        run = Run(Selection(self.coupling, mask))
        values: Values = {node: dense[node] for node in cone.frontier}
        last = last_uses(cone.nodes)
        for node in cone.nodes:
            values[node] = run.step(node, values, iter(()))
            for source in last.get(node, ()):
                values.pop(source, None)
        return values[cone.nodes[-1]]

    def _keeps(self, cone: Cone, masks: Sequence[Mask]) -> dict[fx.Node, list[tuple[fx.Node, int, Tensor]]]:
        """Returns for each contraction node its (operand, dimension, kept coordinates ``[masks, size]``)."""
        slicers = [self.coupling.slicer(mask) for mask in masks]
        found: dict[fx.Node, list[tuple[fx.Node, int, Tensor]]] = {}
        for contraction in cone.contractions:
            size = int(np.prod([factor.size for factor in contraction.axis]))
            rows = [slicer.mask(contraction.axis) for slicer in slicers]
            keep = np.stack([np.ones(size, bool) if row is None else row for row in rows])
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


def _needed(graph: fx.Graph, inside: set[fx.Node]) -> set[fx.Node]:
    """Returns those of some nodes that the output needs."""
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    waiting, needed = [output], {output}
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source in inside and source not in needed:
                needed.add(source)
                waiting.append(source)
    return needed


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
    result: Tensor = parts.masked_fill(order.reshape(shape), 0).flatten(batch, batch + 1)
    return result


def _part(value: Any, index: int, count: int) -> Any:
    if not isinstance(value, Tensor) or not value.dim():
        return value
    size = value.shape[0] // count
    return value[index * size : (index + 1) * size]


def _fold(coupling: Coupling) -> dict[fx.Node, Callable[[Values], Any]]:
    """Returns how to run convolutions with the batch norm behind them folded in, and those batch norms."""
    folded: dict[fx.Node, Callable[[Values], Any]] = {}
    for norm in coupling.captured.module.graph.nodes:
        if not is_kind(norm, "batch_norm") or bind(norm).training:
            continue
        conv = norm.args[0]
        if not is_kind(conv, "conv") or len(conv.users) != 1:
            continue
        tensors = [
            bind(conv).weight,
            *(getattr(bind(norm), n) for n in ("weight", "bias", "running_mean", "running_var")),
        ]
        if bind(conv).bias is not None:
            tensors.append(bind(conv).bias)
        if any(t is not None and t.op != "get_attr" for t in tensors):
            continue
        folded[conv] = _folded_conv(coupling, conv, norm)
        folded[norm] = _pass_on(conv)
    return folded


def _pass_on(conv: fx.Node) -> Callable[[Values], Any]:
    return lambda values: values[conv]


def _folded_conv(coupling: Coupling, conv: fx.Node, norm: fx.Node) -> Callable[[Values], Any]:
    a, b = bind(conv), bind(norm)

    def get(node: fx.Node | None) -> Tensor | None:
        return None if node is None else fetch(coupling.captured.module, str(node.target)).detach().double()

    weight, mean, var = get(a.weight), get(b.running_mean), get(b.running_var)
    assert weight is not None and mean is not None and var is not None
    dtype = coupling.captured.info[conv].dtype
    scale = torch.rsqrt(var + b.eps)
    gamma, beta, bias = get(b.weight), get(b.bias), get(a.bias)
    scale = scale if gamma is None else scale * gamma
    shift = (beta if beta is not None else 0.0) - mean * scale
    shift = shift if bias is None else shift + bias * scale
    kernel = (weight * scale.reshape(-1, *[1] * (weight.dim() - 1))).to(dtype)
    if kernel.dim() == 4:
        kernel = kernel.contiguous(memory_format=torch.channels_last)
    offset = shift.to(dtype)
    source: fx.Node = a.input
    run = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[kernel.dim()]

    def convolve(values: Mapping[fx.Node, Any]) -> Tensor:
        result: Tensor = run(values[source], kernel, offset, a.stride, a.padding, a.dilation, a.groups)
        return result

    return convolve
