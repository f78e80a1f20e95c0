"""Slice: the captured graph with fewer channels, every size told by a label."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune._base.errors import RuleError
from fxprune._base.names import fetch, place
from fxprune._base.pages import touched
from fxprune._base.shelf import Shelf
from fxprune.algebra.axes import Axes, Axis, in_parts, size_of
from fxprune.algebra.channels import Ids
from fxprune.capturing.captured import TensorInfo
from fxprune.coupling.branches import host_of
from fxprune.coupling.constants import ConstantValues
from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, blamed, is_kind, rule_of
from fxprune.ops.slicer import Edit, Scaled, sizes_of_parts


def slice_graph(selection: Selection, shelf: Shelf | None = None) -> fx.GraphModule:
    """Returns the captured graph without what is selected; the captured one stays as it is.

    Args:
        selection: what goes.
        shelf: where the tensors of the state go, if not into memory; those that are there are taken from there.
    """
    graph = _Writer(selection, shelf).run()
    if shelf is not None:
        shelf.flush()
    return graph


def keep_indices(selection: Selection) -> dict[str, dict[int, Ids]]:
    """Returns, for each parameter or persistent buffer that shrinks, the kept indices, ``[kept]``, of each axis that does."""
    coupling, slicer = selection.coupling, selection.slicer
    kept: dict[str, dict[int, Ids]] = {}
    for node, axes in coupling.values.items():
        if node.op == "get_attr" and node.target in coupling.captured.persistent:
            kept[str(node.target)] = {
                d: slicer.index(axis) for d, axis in enumerate(axes or ()) if slicer.changed(axis)
            }
    return {name: axes for name, axes in kept.items() if axes}


def at_full_size(selection: Selection, pruned: nn.Module) -> dict[str, Tensor]:
    """Returns a pruned model's parameters and buffers at their places in tensors of the original's size, ``[...]``."""
    values, coupling, kept, found = pruned.state_dict(), selection.coupling, keep_indices(selection), {}
    for node in coupling.values:
        name = str(node.target)
        if node.op == "get_attr" and name in values:
            whole = fetch(coupling.captured.module, name).detach().clone()
            index = [torch.arange(size) for size in whole.shape]
            for axis, positions in kept.get(name, {}).items():
                index[axis] = torch.from_numpy(positions)
            whole[torch.meshgrid(*index, indexing="ij")] = values[name]
            found[name] = whole
    return found


def _check_stay_sizes(node: fx.Node, a: SimpleNamespace, edit: Edit) -> None:
    """Makes sure that no edit puts a number, which holds at the sizes of the analysis alone, for a size known only at run time.

    Raises:
        RuleError: one does; names the op and the argument.
    """
    for name, new in edit.arguments.items():
        old = getattr(a, name)
        pairs = zip(old, new, strict=False) if isinstance(old, (list, tuple)) and new is not None else [(old, new)]
        if any(isinstance(before, fx.Node) and isinstance(after, int) for before, after in pairs):
            raise RuleError(
                f"{node.target}: slice: {name} holds a size known only at run time, expected it to stay, got {new}"
            )


class _Writer:
    def __init__(self, selection: Selection, shelf: Shelf | None = None) -> None:
        self.coupling, self.slicer, self.collapse = selection.coupling, selection.slicer, selection.collapse
        if not self.collapse.legal:
            raise ValueError(
                "removed: a group whose layers are on the only path has lost all its channels; leave it one"
            )
        self.tensors = {**selection.gains, **selection.tensors}
        self.source = self.coupling.captured.module
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.nodes: dict[fx.Node, fx.Node] = {}
        self.parts: dict[tuple[fx.Node, int, bytes], fx.Node] = {}
        self.constants = 0
        self.shelf = shelf

    def run(self) -> fx.GraphModule:
        for node in self.source.graph.nodes:
            if node in self.collapse.frontier:
                self._freeze_constant(node)
            elif node in self.collapse.live or node.op == "placeholder":
                self.nodes[node] = self._scaled_up(node, self._node(node))
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)

    def _freeze_constant(self, node: fx.Node) -> None:
        """A branch that has collapsed leaves a constant for each channel, at home in the branch's last bias."""
        dim = self.collapse.constant[node]
        value = ConstantValues(self.coupling, self.slicer, self.collapse.constant, self.tensors).of(node)
        value = self._kept(value.to(self.coupling.captured.info[node].dtype), dim, self.coupling.values[node][dim])
        host = host_of(self.coupling, self.collapse, node)
        if host is None:
            if value.any():
                self.nodes[node] = self._constant(value)
            return
        original = fetch(self.source, host)
        flat: Tensor = value.reshape(-1)
        if isinstance(original, nn.Parameter):
            flat = nn.Parameter(flat, requires_grad=original.requires_grad)
        place(self.root, host, flat, persistent=True)
        home = self.graph.get_attr(host)
        self.nodes[node] = self.graph.call_function(torch.ops.aten.reshape.default, (home, list(value.shape)))

    def _node(self, node: fx.Node) -> fx.Node:
        if node.op == "get_attr":
            return self._attribute(node)
        if is_kind(node, "addition") and (left := self._zero_operand(node)) is not None:
            return self._operand(left, node)
        rule = rule_of(node.target) if node.op == "call_function" else None
        if rule is None or rule.slice is None:
            return self._copy(node, node.target, self._map(node, node.args), self._map(node, node.kwargs))
        arguments = bind(node)
        with blamed(node, "slice", arguments):
            edit = rule.slice(self.slicer, node, arguments)
        if not isinstance(edit, Edit):
            raise RuleError(f"{node.target}: slice: expected a fxprune.ops.slicer.Edit, got {type(edit).__name__}")
        if edit.target is not None:
            return self._copy(node, edit.target, (), self._map(node, dict(edit.arguments)))
        if strange := [name for name in edit.arguments if name not in rule.literals]:
            expected = ", ".join(rule.literals)
            raise RuleError(f"{node.target}: slice: expected edits of {expected}, got {strange[0]}")
        _check_stay_sizes(node, arguments, edit)
        args, kwargs = list(node.args), dict(node.kwargs)
        for name, value in edit.arguments.items():
            position = list(vars(arguments)).index(name)
            if position < len(args):
                args[position] = value
            elif name in kwargs or value != getattr(arguments, name):
                kwargs[name] = value
        return self._copy(node, node.target, self._map(node, tuple(args)), self._map(node, kwargs))

    def _scaled_up(self, node: fx.Node, new: fx.Node) -> fx.Node:
        """Multiplies a statistic over what stays, where it counts all."""
        rule = rule_of(node.target) if node in self.coupling.statistics else None
        factor = rule.factor(self.slicer, node, bind(node)) if rule is not None and rule.factor is not None else 1.0
        if factor == 1.0:
            return new
        scaled = self.graph.call_function(torch.ops.aten.mul.Tensor, (new, factor))
        scaled.meta["module"] = node.meta.get("module")
        return scaled

    def _zero_operand(self, node: fx.Node) -> fx.Node | None:
        """Returns what is left of an addition whose other operand was a branch that collapsed to zero."""
        operands = node.args[:2]
        gone = [x in self.collapse.frontier and x not in self.nodes for x in operands]
        left = operands[0] if gone[1] else operands[1] if gone[0] else None
        return left if isinstance(left, fx.Node) else None

    def _copy(self, node: fx.Node, target: Any, args: Any, kwargs: Any) -> fx.Node:
        copy = self.graph.create_node(node.op, target, args, kwargs, name=node.name)
        copy.meta = {key: value for key, value in node.meta.items() if key != "val"}
        return copy

    def _map(self, reader: fx.Node, value: Any) -> Any:
        """Rewrites an argument: nodes, run-time sizes that scale, index arrays."""
        return fx.node.map_aggregate(value, lambda part: self._changed(reader, part))

    def _changed(self, reader: fx.Node, part: Any) -> Any:
        if isinstance(part, fx.Node):
            return self._operand(part, reader)
        if isinstance(part, Scaled):
            return self._scaled(part)
        return self._constant(torch.from_numpy(part)) if isinstance(part, np.ndarray) else part

    def _scaled(self, size: Scaled) -> fx.Node:
        node, up, down = size.node, size.numerator, size.denominator
        if node.target is operator.mul and isinstance(node.args[1], int) and node.args[1] * up % down == 0:
            base, factor = node.args[0], node.args[1] * up // down
            assert isinstance(base, fx.Node)
            return self.graph.call_function(operator.mul, (self.nodes[base], factor))
        grown = self.graph.call_function(operator.mul, (self.nodes[node], up))
        return self.graph.call_function(operator.floordiv, (grown, down))

    def _operand(self, value: fx.Node, reader: fx.Node) -> fx.Node:
        """Returns a value as its reader needs it: a part, where the value itself depends on no parameter."""
        result = self.nodes[value]
        for dim, axis in enumerate(self.coupling.edges.get((reader, value), ())):
            if self.slicer.changed(axis):
                result = self._part(result, value, dim, axis)
        rule = rule_of(reader.target) if reader in self.coupling.statistics else None
        if rule is None or rule.zeros is None or value is not reader.args[0]:
            return result
        for dim, axis in rule.zeros(self.slicer, reader, bind(reader)):
            if self.slicer.changed(axis):
                result = self._filled(result, value, dim, axis)
        return result

    def _filled(self, node: fx.Node, value: fx.Node, dim: int, axis: Axis) -> fx.Node:
        """Puts zeros behind what stays of an axis, as many as go; part by part where its size is known only at run time."""
        info: TensorInfo = self.coupling.captured.info[value]
        if info.shape[dim] == info.example[dim]:
            return self._padded(node, value, dim, axis)
        parts = in_parts(axis)
        node = self.graph.call_function(
            torch.ops.aten.unflatten.int, (node, dim, sizes_of_parts(axis, self.slicer.count))
        )
        for at, part in enumerate(parts, dim):
            node = self._padded(node, value, at, part, len(parts) - 1)
        return self._flat(node, value, dim, len(parts))

    def _padded(self, node: fx.Node, value: fx.Node, dim: int, axis: Axis, more: int = 0) -> fx.Node:
        """Puts zeros behind one dimension of a value that has some dimensions more by now."""
        if not self.slicer.changed(axis):
            return node
        behind = len(self.coupling.captured.info[value].shape) + more - 1 - dim
        pads = [0, 0] * behind + [0, size_of(axis) - self.slicer.count(axis)]
        filled = self.graph.call_function(torch.ops.aten.constant_pad_nd.default, (node, pads))
        filled.meta["module"] = value.meta.get("module")
        return filled

    def _flat(self, node: fx.Node, value: fx.Node, dim: int, parts: int) -> fx.Node:
        flat = self.graph.call_function(torch.ops.aten.flatten.using_ints, (node, dim, dim + parts - 1))
        flat.meta["module"] = value.meta.get("module")
        return flat

    def _part(self, node: fx.Node, value: fx.Node, dim: int, axis: Axis) -> fx.Node:
        """Before: x[b * h], b known only at run time.  After: x.unflatten(0, (-1, h)), a part of h, flat again."""
        info: TensorInfo = self.coupling.captured.info[value]
        if info.shape[dim] == info.example[dim]:
            return self._static_part(node, value, dim, axis)
        parts = in_parts(axis)
        part = self.graph.call_function(torch.ops.aten.unflatten.int, (node, dim, sizes_of_parts(axis, size_of)))
        for at, one in enumerate(parts, dim):
            if self.slicer.changed(one):
                part = self._static_part(part, value, at, one)
        return self._flat(part, value, dim, len(parts))

    def _static_part(self, node: fx.Node, value: fx.Node, dim: int, axis: Axis) -> fx.Node:
        index = self.slicer.index(axis)
        key = (node, dim, index.tobytes())
        if key not in self.parts:
            if node.op == "get_attr" and isinstance(constant := fetch(self.root, str(node.target)), Tensor):
                part = self._constant(self._kept(constant, dim, axis))
            elif len(index) and index[-1] - index[0] + 1 == len(index):
                ends = (int(index[0]), int(index[-1]) + 1)
                part = self.graph.call_function(torch.ops.aten.slice.Tensor, (node, dim, *ends))
            else:
                where = self._constant(torch.from_numpy(index))
                part = self.graph.call_function(torch.ops.aten.index_select.default, (node, dim, where))
            part.meta["module"] = value.meta.get("module")
            self.parts[key] = part
        return self.parts[key]

    def _constant(self, tensor: Tensor) -> fx.Node:
        name = f"_constant_{self.constants}"
        self.constants += 1
        device = next((p.device for p in self.source.parameters()), torch.device("cpu"))
        self.root.register_buffer(name, tensor.to(device), persistent=False)
        return self.graph.get_attr(name)

    def _kept(self, value: Tensor, dim: int, axis: Axis) -> Tensor:
        if not self.slicer.changed(axis):
            return value
        return value.index_select(dim, torch.from_numpy(self.slicer.index(axis)).to(value.device))

    def _attribute(self, node: fx.Node) -> fx.Node:
        name = str(node.target)
        value = fetch(self.source, name)
        if isinstance(value, Tensor):
            value = self._sliced(node, name, value)
        place(self.root, name, value, persistent=name in self.coupling.captured.persistent)
        return self._copy(node, name, (), {})

    def _sliced(self, node: fx.Node, name: str, value: Tensor) -> Tensor:
        plain = isinstance(self.coupling.captured.info[node], TensorInfo)
        axes: Axes = (self.coupling.values[node] if plain else None) or ()
        there = self.shelf is not None and name in self.shelf
        result = self.shelf[name] if self.shelf is not None and there else self.tensors.get(name, value).detach()
        touched(result)
        for dim, axis in enumerate(() if there else axes):
            result = self._kept(result, dim, axis)
        if isinstance(value, nn.Parameter):
            result = nn.Parameter(result, requires_grad=value.requires_grad)
        if self.shelf is not None and not there and name in self.coupling.captured.persistent:
            self.shelf.take(name, result)
        return result
