"""The graph follows its model to another dtype, as the model's own ``x.to(y.dtype)`` would."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from enum import Enum

import torch
from torch import Tensor, fx, nn

from fxprune.capturing.extremes import CAST
from fxprune.capturing.flatten import Flat
from fxprune.capturing.normalize.edit import aten, fake, insert, is_op, writes

ANCHOR = "_model_dtype"


class _Kind(Enum):
    """What happens to a floating-point value when its module is moved to another dtype."""

    MOVES = "a buffer: it moves, but decides nothing"
    FOLLOWS = "it depends on parameters or inputs: it is of the model's dtype, whatever that is"
    FIXED = "it is made of literals: it stays in the dtype that was captured"


def follow_dtype(flat: Flat) -> None:
    """Cast what is made of literals to the model's dtype where it meets what depends on parameters.

    Export leaves only literal dtypes behind: rotary tables and masks would stay in the captured dtype when the
    module is moved to half precision. The model's dtype at run time is that of an empty buffer, `ANCHOR`.

    Before: ``mul(q, cos)``. After: ``mul(q, to(cos, getattr(anchor, "dtype")))``.

    A buffer that meets what is made of literals is cast to the dtype of these, as the model must do if it works once it is moved:
    ``self.inv_freq.float() @ positions.float()``, of which export leaves the second cast alone.
    """
    dtype = main_dtype(tensor for tensor in flat.tensors.values() if isinstance(tensor, nn.Parameter))
    if dtype is None:
        return
    kinds: dict[fx.Node, _Kind] = {}
    casts: dict[fx.Node, fx.Node] = {}
    current = functools.cache(functools.partial(_make_anchor, flat, dtype))
    for node in list(flat.graph.nodes):
        if _casts_back(node, dtype, kinds):
            node.args = (node.args[0], current())
            kinds[node] = _Kind.FOLLOWS
            continue
        operands = {kinds[source] for source in node.all_input_nodes if source in kinds}
        if operands >= {_Kind.FOLLOWS, _Kind.FIXED} and node.op == "call_function" and not writes(node):
            for source in node.all_input_nodes:
                if kinds.get(source) is _Kind.FIXED and _is_of(source, dtype):
                    if source not in casts:
                        casts[source] = insert(node, aten.to.dtype, (source, current()), fake(source))
                    node.replace_input_with(source, casts[source])
        if operands == {_Kind.MOVES, _Kind.FIXED} and node.op == "call_function" and not writes(node):
            operands = {_Kind.FIXED}
            for source in [x for x in node.all_input_nodes if kinds.get(x) is _Kind.MOVES and _is_of(x, dtype)]:
                node.replace_input_with(source, insert(node, aten.to.dtype, (source, dtype), fake(source)))
        kind = _kind(node, operands, dtype, flat)
        if kind is not None:
            kinds[node] = kind
    _mark_cast(list(casts), kinds)


def _mark_cast(sources: list[fx.Node], kinds: dict[fx.Node, _Kind]) -> None:
    """Mark what is made of literals and reaches a cast: its literals are to be within the model's dtype."""
    while sources:
        node = sources.pop()
        if not node.meta.get(CAST):
            node.meta[CAST] = True
            sources += [source for source in node.all_input_nodes if kinds.get(source) is _Kind.FIXED]


def main_dtype(parameters: Iterable[Tensor]) -> torch.dtype | None:
    """Return the floating dtype of most of the parameters, ``[...]`` each, None if there is none."""
    sizes: Counter[torch.dtype] = Counter()
    for parameter in parameters:
        if parameter.is_floating_point():
            sizes[parameter.dtype] += parameter.numel()
    return max(sizes, key=sizes.__getitem__) if sizes else None


def renew_anchor(module: nn.Module) -> None:
    """Give a module's anchor the dtype of its parameters, after these were given new values."""
    anchor, dtype = module._buffers.get(ANCHOR), main_dtype(module.parameters())
    if anchor is not None and dtype is not None:
        module._buffers[ANCHOR] = anchor.to(dtype)


def _make_anchor(flat: Flat, dtype: torch.dtype) -> fx.Node:
    """Put ``getattr(anchor, "dtype")`` at the head of the graph."""
    device = next(iter(flat.tensors.values())).device
    flat.tensors[ANCHOR] = torch.empty(0, dtype=dtype, device=device)
    with flat.graph.inserting_before(next(iter(flat.graph.nodes))):
        holder = flat.graph.create_node("get_attr", ANCHOR, name=ANCHOR)
        node = flat.graph.call_function(getattr, (holder, "dtype"))
    holder.meta["module"] = node.meta["module"] = ""
    return node


def _casts_back(node: fx.Node, dtype: torch.dtype, kinds: dict[fx.Node, _Kind]) -> bool:
    """Say whether a node casts to the model's dtype what was computed in another one."""
    if not is_op(node, aten.to.dtype) or node.args[1] is not dtype:
        return False
    value = fake(node.args[0])
    return value is not None and value.is_floating_point() and node.args[0] in kinds


def _kind(node: fx.Node, operands: set[_Kind], dtype: torch.dtype, flat: Flat) -> _Kind | None:
    if "val" not in node.meta and len(operands) == 1:
        return next(iter(operands))  # a layout operator that a pass put in
    values = node.meta.get("val")
    first = next((v for v in values if isinstance(v, Tensor)), None) if isinstance(values, (list, tuple)) else values
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return None
    if node.op == "placeholder" or (
        node.op == "get_attr" and isinstance(flat.tensors.get(str(node.target)), nn.Parameter)
    ):
        return _Kind.FOLLOWS if first.dtype == dtype else _Kind.FIXED
    if node.op == "get_attr":
        return _Kind.MOVES
    if any(isinstance(a, torch.dtype) and a.is_floating_point for a in (*node.args, *node.kwargs.values())):
        return _Kind.FIXED
    if _Kind.FOLLOWS in operands and first.dtype == dtype:
        return _Kind.FOLLOWS
    return _Kind.MOVES if operands == {_Kind.MOVES} else _Kind.FIXED


def _is_of(node: fx.Node, dtype: torch.dtype) -> bool:
    """Say whether a value is of the given dtype; scalars do not count, since they decide no result's dtype."""
    value = fake(node)
    return value is not None and value.dtype == dtype and value.ndim > 0
