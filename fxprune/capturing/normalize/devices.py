"""No literal devices: what the graph makes, it makes where its input is."""

from __future__ import annotations

import torch
from torch import fx

from fxprune.capturing.normalize.edit import aten, fake, insert, is_op, named, rewrite
from fxprune.capturing.regions import AUTOCAST

_PRODUCTS = named(
    "linear matmul mm bmm mv dot addmm addmv addbmm baddbmm einsum bilinear scaled_dot_product_attention conv1d conv2d conv3d "
    "convolution conv_transpose1d conv_transpose2d conv_transpose3d lstm gru rnn_tanh rnn_relu lstm_cell gru_cell "
    "rnn_tanh_cell rnn_relu_cell"
)
_DEFAULTS = {"pin_memory": (None, False), "layout": (None, torch.strided)}


def take_device_from_input(graph: fx.Graph) -> None:
    """Turn device moves into dtype casts, and literal devices of factories into the device of an input.

    Before: ``arange(n, device=cpu)``. After: ``d = getattr(x, "device"); arange(n, device=d)``.
    """
    late = _behind_the_last_product(graph)
    rewrite(graph, lambda node: _cast(node, node in late))
    device: fx.Node | None = None
    for node in list(graph.nodes):
        if "device" in node.kwargs or "pin_memory" in node.kwargs or _is_factory(node):
            kwargs = {k: v for k, v in node.kwargs.items() if v not in _DEFAULTS.get(k, ())}
            given = kwargs.pop("device", "default" if _is_factory(node) else None)
            if given is not None:
                device = device or _device_node(graph)
                kwargs["device"] = device or given
            node.kwargs = kwargs


def _is_factory(node: fx.Node) -> bool:
    """Whether an op makes a tensor from literals alone: without a device it would use the default one."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    arguments = node.target._schema.arguments
    return any(a.name == "device" for a in arguments) and not any("Tensor" in str(a.type) for a in arguments)


def _behind_the_last_product(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose dtype is the result's under autocast: what they give enters no op that autocast casts for."""
    late: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if all(user in late and not is_op(user, *_PRODUCTS) for user in node.users):
            late.add(node)
    return late


def _cast(node: fx.Node, late: bool) -> fx.Node | None:
    """Return what stands for a conversion: ``to.dtype``, or its operand if the dtype stays, in autocast as well."""
    if not is_op(node, aten.to, aten._to_copy, aten.type_as):
        return None
    source, before, after = node.args[0], fake(node.args[0]), fake(node)
    if before is None or after is None or not isinstance(source, fx.Node):
        return None
    told = late and node.target in (aten.to.dtype, aten.to.other, aten.type_as.default)
    differs = (told or AUTOCAST in node.meta) and after.is_floating_point()  # under an autocast around it
    if before.dtype == after.dtype and not differs:
        return source
    if node.target is aten.to.dtype and len(node.args) <= 2:
        return None
    return insert(node, aten.to.dtype, (source, after.dtype), after)


def _device_node(graph: fx.Graph) -> fx.Node | None:
    """Put ``getattr(input, "device")`` after the placeholders; None if the graph holds no tensor at all."""
    heads = graph.find_nodes(op="placeholder")
    sources = heads or [node for node in graph.find_nodes(op="get_attr") if fake(node) is not None]
    if not sources:
        return None
    last = max([*heads, sources[0]], key=list(graph.nodes).index)
    with graph.inserting_after(last):
        node = graph.call_function(getattr, (sources[0], "device"))
    node.meta["module"] = ""
    return node
