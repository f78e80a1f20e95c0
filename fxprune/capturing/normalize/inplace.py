"""In-place operators become functional, so that a node's value never changes after it was computed."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

from torch import Tensor, fx

from fxprune._base.errors import FxpruneWarning, TrainingWarning
from fxprune.capturing.normalize.edit import (
    aten,
    fake,
    first,
    insert,
    is_op,
    named,
    replace,
    same_sizes,
    schema_args,
    storage,
    writes,
)
from fxprune.capturing.normalize.stops import learning
from fxprune.capturing.normalize.writeback import write_back
from fxprune.capturing.regions import GRAD
from fxprune.capturing.sizes import Sizes

_PASS_THROUGH = named("dropout feature_dropout alpha_dropout feature_alpha_dropout")
_LOGICAL = named("eq ne lt le gt ge logical_and logical_or logical_not logical_xor")
_CONSTANTS = named(
    "new_zeros new_ones new_full new_empty zeros ones full empty zeros_like ones_like full_like empty_like arange"
)


def functionalise(graph: fx.Graph, sizes: Sizes, parameters: Set[str] = frozenset()) -> list[str | FxpruneWarning]:
    """Replace in-place operators by functional ones; later uses, of views and bases too, see the new value.

    A constant mask that is filled slice by slice stays as it is, and so does a write to a view that has no
    inverse. The state of the model is never written: an update of a buffer is computed, not stored. Gradients go through a
    change or pass it by, as they do in the model.

    Before: ``r = relu_(x); y = add(x, 1)``. After: ``r = relu(x); y = add(r, 1)``.

    Returns:
        A note for every buffer whose update is not stored, and a warning for every parameter.
    """
    if not any(writes(node) for node in graph.nodes):
        return []
    memory = _Memory(graph, sizes, parameters)
    notes: dict[str, str | FxpruneWarning] = {}
    for node in list(graph.nodes):
        if not writes(node) or not isinstance(node.args[0], fx.Node) or first(node) not in memory.family:
            continue
        owner = memory.family[first(node)][0]
        note = _note(node, owner)
        if note:
            notes[note] = TrainingWarning(note) if owner.target in parameters else note
        if memory.is_self_copy(node):
            replace(node, first(node))
        elif not memory.functionalise(node) and owner.op in ("get_attr", "placeholder"):
            _write_to_a_copy(owner)
    return list(notes.values())


def _note(node: fx.Node, owner: fx.Node) -> str:
    if owner.op == "get_attr" and not is_op(node, aten.detach_, aten.requires_grad_):
        return f"the forward pass writes to {owner.target!r}: the captured graph does not keep the update"
    if owner.op == "placeholder":
        return f"the forward pass changes its input {owner.name!r} in place: the captured graph leaves it alone"
    return ""


class _Memory:
    """Which nodes share memory, and in what order they come.

    Attributes:
        family: For every tensor node all nodes in the same memory, the owner first.
    """

    def __init__(self, graph: fx.Graph, sizes: Sizes, parameters: Set[str]) -> None:
        self._sizes = sizes
        self._parameters = parameters
        self._order = {node: position for position, node in enumerate(graph.nodes)}
        self.family: dict[fx.Node, list[fx.Node]] = {}
        by_storage: dict[int | None, list[fx.Node]] = {}
        for node in graph.nodes:
            if fake(node) is None:
                continue
            through = is_op(node, *_PASS_THROUGH) and node.args[0] in self.family
            members = self.family[first(node)] if through else by_storage.setdefault(storage(node), [])
            members.append(node)
            self.family[node] = members

    def is_self_copy(self, node: fx.Node) -> bool:
        """Say whether a node copies a tensor onto itself, as ``x[1:] += y`` does once it has been added."""
        source = node.args[1] if is_op(node, aten.copy_) else None
        return source in self.family[first(node)] and self._view(source) == self._view(node.args[0])

    def functionalise(self, node: fx.Node) -> bool:
        """Replace one in-place node; False if it has to stay."""
        target = first(node)
        live = self._live(node)
        simple = all(self._view(alias) == self._view(target) for alias in live)
        if not simple and is_op(self.family[target][0], *_CONSTANTS):
            return False
        value = _new_value(node)
        if value is None:
            return False
        if simple:
            new = {old: self._carried(node, old, value) for old in dict.fromkeys([*live, target])}
            new[node] = new[target]
        elif (renewed := self._renew(node, live, value)) is None:
            return False
        else:
            new = renewed
        self._adopt(target, new.values(), self._order[node])
        now = self._order[node]
        for old, replacement in new.items():
            old.replace_all_uses_with(replacement, lambda user: self._order.get(user, now) > now)
        node.graph.erase_node(node)
        return True

    def _carried(self, node: fx.Node, old: fx.Node, value: fx.Node) -> fx.Node:
        """Return what a node has written as ``old`` has it: with the gradient of ``old`` where the change is not recorded."""
        recorded = node.meta.get(GRAD, True) and self._origin(old) is self._origin(first(node))
        if recorded or is_op(node, aten.detach_):
            return value
        if old in learning(node.graph, self._parameters):
            return _passed_by(node, old, value)
        return insert(node, aten.detach.default, (value,), fake(value)) if node.meta.get(GRAD, True) else value

    def _origin(self, node: fx.Node) -> fx.Node:
        """Return where the gradient of a view, or of a changed value, comes from in the same memory."""
        while node.op == "call_function" and node.meta.get(GRAD, True) and not is_op(node, aten.detach):
            if not node.args or node.args[0] not in self.family.get(node, ()):
                break
            node = first(node)
        return node

    def _live(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes in the target's memory that were made before ``node`` and are used after it."""
        now = self._order[node]
        return [
            alias
            for alias in self.family[first(node)]
            if self._order[alias] < now and any(self._order.get(user, now) > now for user in alias.users)
        ]

    def _view(self, node: Any) -> tuple[Any, ...]:
        value: Tensor = node.meta["val"]
        shape, stride = self._sizes.shape(value.shape), self._sizes.shape(value.stride())
        return shape, stride, self._sizes.of(value.storage_offset()), value.dtype

    def _renew(self, node: fx.Node, live: list[fx.Node], value: fx.Node) -> dict[fx.Node, fx.Node] | None:
        """Return every live alias anew: the owner with the value written back, and views of that.

        None if some view cannot be inverted or made anew.
        """
        owner, written = first(node), value
        while owner.args and owner.args[0] in self.family[first(node)]:
            base = write_back(node, owner, written)
            if base is None:
                return None
            owner, written = first(owner), base
        new = {owner: self._carried(node, owner, written)}
        for alias in [*live, first(node)]:
            if not self._remake(node, alias, new):
                return None
        self._adopt(first(node), new.values(), self._order[node])
        return {**{alias: new[alias] for alias in live}, node: new[first(node)]}

    def _remake(self, node: fx.Node, alias: fx.Node, new: dict[fx.Node, fx.Node]) -> bool:
        """Make ``alias`` and the views that it comes from anew, before ``node``; False if that cannot be done."""
        if alias in new:
            return True
        if writes(alias) or alias.op != "call_function" or alias.args[0] not in self.family[first(node)]:
            return False
        if not self._remake(node, first(alias), new):
            return False
        made = insert(node, alias.target, (new[first(alias)], *alias.args[1:]), alias.meta.get("val"))
        made.kwargs = alias.kwargs
        new[alias] = made
        return True

    def _adopt(self, target: fx.Node, nodes: Iterable[fx.Node], position: int) -> None:
        for node in dict.fromkeys(nodes):
            if node not in self.family:
                self.family[target].append(node)
                self.family[node] = self.family[target]
                self._order[node] = position


def _passed_by(at: fx.Node, old: fx.Node, value: fx.Node) -> fx.Node:
    """Return a value, inserted before ``at``, with the gradient of an old one: ``detach(value) + (old - detach(old))``."""
    val = fake(old)
    nothing = insert(at, aten.sub.Tensor, (old, insert(at, aten.detach.default, (old,), val)), val)
    new = insert(at, aten.add.Tensor, (insert(at, aten.detach.default, (value,), val), nothing), val)
    for node in (nothing, new):
        node.meta.pop(GRAD, None)
    return new


def _new_value(node: fx.Node) -> fx.Node | None:
    """Insert the functional form of an in-place node, of the dtype and shape of its target; None if it has none."""
    target, before = first(node), first(node).meta["val"]
    if is_op(node, aten.zero_, aten.fill_.Scalar):
        scalar = 0 if is_op(node, aten.zero_) else node.args[1]
        return insert(node, aten.full_like.default, (target, scalar), before)
    if is_op(node, aten.copy_):
        return _fitted(node, before)
    functional = _functional(node.target)
    if functional is None:
        return None
    new = insert(node, functional, node.args, before)
    new.kwargs = node.kwargs
    operands = [value for arg in schema_args(new).values() if (value := fake(arg)) is not None]
    if all(value.dtype == before.dtype for value in operands) and not is_op(new, *_LOGICAL):
        return new
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    new.meta["val"] = functional(*args, **kwargs)
    if new.meta["val"].dtype == before.dtype:
        return new
    return insert(node, aten.to.dtype, (new, before.dtype), before)  # a write does not promote


def _fitted(node: fx.Node, before: Tensor) -> fx.Node | None:
    """Return what ``copy_`` copies, in the dtype and the shape of where it goes."""
    source, value = node.args[1], fake(node.args[1])
    if value is None or not isinstance(source, fx.Node):
        return None
    if value.dtype != before.dtype:
        source = insert(node, aten.to.dtype, (source, before.dtype), value.to(before.dtype))
    if same_sizes(value.shape, before.shape):
        return insert(node, aten.alias.default, (source,), before)
    return insert(node, aten.expand_as.default, (source, node.args[0]), before)


def _functional(target: Any) -> Any:
    """Return the functional overload of an in-place operator, or None: ``add_.Tensor`` gives ``add.Tensor``."""
    name = target._schema.name.removeprefix("aten::")
    if target.namespace != "aten" or not name.endswith("_"):
        return None
    name = f"__{name[3:]}" if name.startswith("__i") else name[:-1]
    return getattr(getattr(aten, name, None), target._overloadname, None)


def _write_to_a_copy(owner: fx.Node) -> None:
    """Let views of a parameter, buffer or input be written to in a copy of it."""
    if any(is_op(user, aten.clone) and user.meta.get("protects") for user in owner.users):
        return
    with owner.graph.inserting_after(owner):
        copy = owner.graph.call_function(aten.clone.default, (owner,))
    copy.meta = {**owner.meta, "protects": True}
    owner.replace_all_uses_with(copy, lambda user: user is not copy)
