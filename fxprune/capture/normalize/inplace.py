"""In-place operators become functional, so that a node's value never changes after it was computed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from fxprune.capture.normalize.edit import aten, fake, insert, is_op, schema_args, storage, writes
from fxprune.capture.sizes import Sizes

__all__ = ["functionalise"]

_PASS_THROUGH = (aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout)


def functionalise(graph: fx.Graph, sizes: Sizes) -> list[str]:
    """Replace in-place operators by functional ones; later uses see the new value.

    An operator that writes into a view while the base lives on (a mask filled slice by slice) stays as it is.
    The state of the model is never written: an update of a buffer is computed, not stored.

    Before: ``r = relu_(x); y = add(x, 1)``. After: ``r = relu(x); y = add(r, 1)``.

    Returns:
        A note for every buffer whose update is not stored.
    """
    if not any(writes(node) for node in graph.nodes):
        return []
    order = {node: position for position, node in enumerate(graph.nodes)}
    family = _families(graph)
    notes = []
    for node in list(graph.nodes):
        if not writes(node) or not isinstance(node.args[0], fx.Node):
            continue
        owner = family.get(node.args[0], [node])[0]
        if owner.op == "get_attr":
            notes.append(f"the forward pass writes to {owner.target!r}: the captured graph does not keep the update")
        if _stores_state(node):
            _forget(graph, node)
        elif not _replace(graph, node, family, order, sizes) and owner.op in ("get_attr", "placeholder"):
            _write_to_a_copy(graph, owner)
    return list(dict.fromkeys(notes))


def _families(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """Return for each node all nodes that share its memory, in graph order."""
    by_storage: dict[int | None, list[fx.Node]] = {}
    family: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        value = fake(node)
        if value is None:
            continue
        if is_op(node, *_PASS_THROUGH) and node.args[0] in family:
            members = family[node.args[0]]
        else:
            members = by_storage.setdefault(storage(node), [])
        members.append(node)
        family[node] = members
    return family


def _stores_state(node: fx.Node) -> bool:
    """Say whether the node writes a whole new value back to a parameter, buffer or input."""
    return is_op(node, aten.copy_) and node.args[0].op in ("get_attr", "placeholder") and not node.users


def _forget(graph: fx.Graph, node: fx.Node) -> None:
    graph.erase_node(node)


def _replace(
    graph: fx.Graph,
    node: fx.Node,
    family: dict[fx.Node, list[fx.Node]],
    order: dict[fx.Node, int],
    sizes: Sizes,
) -> bool:
    """Replace one in-place node by its functional form; False if an alias of its target lives on."""
    functional = _functional(node.target)
    target = node.args[0]
    before = fake(target)
    if functional is None or before is None:
        return False
    now = order[node]
    earlier = [n for n in family[target] if order[n] < now]
    live = [n for n in earlier if any(order.get(user, now) > now for user in n.users)]
    if any(not _same_view(alias, before, sizes) for alias in live):
        return False
    new = insert(graph, node, functional, node.args, node.meta.get("val"))
    new.kwargs = node.kwargs
    order[new] = now
    result = _cast(graph, node, new, before)
    order[result] = now
    for alias in [*live, node]:
        alias.replace_all_uses_with(result, lambda user: order.get(user, now) > now)
    family[target].append(result)
    family[result] = family[target]
    graph.erase_node(node)
    return True


def _functional(target: Any) -> Any:
    """Return the functional overload of an in-place operator, or None: ``add_.Tensor`` gives ``add.Tensor``."""
    name = target._schema.name.removeprefix("aten::")
    if target.namespace != "aten" or not name.endswith("_"):
        return None
    name = f"__{name[3:]}" if name.startswith("__i") else name[:-1]
    packet = getattr(aten, name, None)
    overload = target._overloadname
    if packet is None or overload not in packet.overloads():
        return None
    return getattr(packet, overload)


def _same_view(alias: fx.Node, value: Tensor, sizes: Sizes) -> bool:
    other = fake(alias)
    return other is not None and _layout(other, sizes) == _layout(value, sizes)


def _layout(value: Tensor, sizes: Sizes) -> tuple[Any, ...]:
    return sizes.shape(value.shape), sizes.shape(value.stride()), sizes.of(value.storage_offset()), value.dtype


def _cast(graph: fx.Graph, node: fx.Node, new: fx.Node, before: Tensor) -> fx.Node:
    """Keep the target's dtype, which the functional form would promote away."""
    operands = [value for arg in schema_args(new).values() if (value := fake(arg)) is not None]
    if all(value.dtype == before.dtype for value in operands):
        return new
    return insert(graph, node, aten.to.dtype, (new, before.dtype), node.meta.get("val"))


def _write_to_a_copy(graph: fx.Graph, owner: fx.Node) -> None:
    """Let views of a parameter, buffer or input be written to in a copy of it."""
    if any(is_op(user, aten.clone) and user.meta.get("protects") for user in owner.users):
        return
    with graph.inserting_after(owner):
        copy = graph.call_function(aten.clone.default, (owner,))
    copy.meta = {**owner.meta, "protects": True}
    owner.replace_all_uses_with(copy, lambda user: user is not copy)
