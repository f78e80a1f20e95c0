"""Who owns what in the original model: modules and tensors by identity, whatever paths lead to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from fxprune._base.names import layer_of
from fxprune.ops.modules import Layer, Site
from fxprune.ops.registry import rule_of


@dataclass(frozen=True, slots=True)
class Owners:
    """The original model's modules and tensors under all their names.

    Attributes:
        modules: every path -> the module there; a shared module has several.
        paths: id of a module -> its first path.
        aliases: name of a parameter or buffer -> all names of that tensor, first come first.
    """

    modules: Mapping[str, nn.Module]
    paths: Mapping[int, str]
    aliases: Mapping[str, tuple[str, ...]]

    @classmethod
    def of(cls, model: nn.Module) -> Owners:
        """Reads the owners off ``model``, which stays as it is."""
        modules = dict(model.named_modules(remove_duplicate=False))
        paths = {id(module): path for path, module in reversed(modules.items())}  # the first path stays
        names: dict[int, list[str]] = {}
        for path, module in modules.items():
            for attribute, tensor in _own_tensors(module):
                names.setdefault(id(tensor), []).append(join(path, attribute))
        aliases = {name: tuple(group) for group in names.values() for name in group}
        return cls(modules, paths, aliases)

    def names(self, name: str) -> tuple[str, ...]:
        """Returns all names of the tensor called ``name``; a tensor that is not the model's has that one."""
        return self.aliases.get(name, (name,))

    def home(self, path: str | None) -> str | None:
        """Returns the first path of the module at ``path``, or None if there is no such module."""
        module = self.modules.get(path) if path is not None else None
        return None if module is None else self.paths[id(module)]


@dataclass(frozen=True, slots=True)
class Call:
    """A call that becomes a module call.

    Attributes:
        path: where the module goes, a path of the original model.
        module: the module, its tensors on the meta device still.
        inputs: positional arguments of the module's forward.
        key: equal for two calls of one module, which has one set of hyper-parameters and of tensors.
    """

    path: str
    module: nn.Module
    inputs: tuple[Any, ...]
    key: Any


def join(path: str, name: str) -> str:
    """Returns the dotted name of ``name`` under ``path``."""
    return f"{path}.{name}" if path else name


def arguments(node: fx.Node) -> dict[str, Any]:
    """Returns all arguments of an op call by their schema names and in the schema's order, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((arg.name for arg in schema), node.args, strict=False)) | node.kwargs
    return {arg.name: given.get(arg.name, arg.default_value) for arg in schema}


def find_call(
    node: fx.Node, owners: Owners, tensors: Mapping[str, Tensor], used: Set[str], rank: int | None
) -> Call | None:
    """Returns the module call that ``node`` stands for, or None if it must stay an op.

    Before/after: ``conv2d(x, layer1.0.conv1.weight, None, [2, 2], [1, 1])`` is a call of ``layer1.0.conv1``.

    Args:
        node: a node of the sliced graph.
        owners: the original model.
        tensors: every tensor that the graph reads, ``[...]``, by its name there.
        used: all names of all those tensors.
        rank: number of dimensions of the result, if known.
    """
    rule = rule_of(node.target) if node.op == "call_function" else None
    layer = rule.module if rule is not None else None
    if not isinstance(layer, Layer):
        return None
    values = arguments(node)
    innermost = owners.modules.get(node.meta.get("module", "\0"))
    paths = [path for path in _candidates(layer, values, owners) if _fits(path, layer, values, owners, used)]
    if not paths:
        return None
    owner = min((owners.modules[path] for path in paths), key=lambda owner: owner is not innermost)
    held = {attr: str(operand.target) for attr, operand in _operands(layer, values, owner) if operand is not None}
    module = layer.build(Site(owner, values, {attr: tensors[name] for attr, name in held.items()}, rank))
    borrowed = innermost is not None and innermost is not owner
    if module is None or (borrowed and not _agrees(module, owner, layer)):
        return None
    literals = {name: value for name, value in values.items() if name not in {*layer.inputs, *layer.roles}}
    inputs = tuple(values[name] for name in layer.inputs)
    return Call(owners.paths[id(owner)], module, inputs, (node.target, literals, held))


def _candidates(layer: Layer, values: Mapping[str, Any], owners: Owners) -> list[str]:
    """Returns each path that owns the first tensor operand, under any of its names."""
    given = [values[argument] for argument in layer.roles]
    operands = [value[0] if isinstance(value, Sequence) else value for value in given]
    first = next((operand for operand in operands if operand is not None), None)
    names = owners.names(str(first.target)) if isinstance(first, fx.Node) and first.op == "get_attr" else ()
    paths = [layer_of(name) for name in names]
    return [path for path in paths if isinstance(owners.modules.get(path), layer.owners)]


def _operands(layer: Layer, values: Mapping[str, Any], owner: nn.Module) -> list[tuple[str, Any]]:
    """Returns the owner's attributes that the call stands for, each with its operand (a node or None)."""
    pairs: list[tuple[str, Any]] = []
    for argument, attribute in layer.roles.items():
        value = values[argument]
        if isinstance(value, Sequence):
            pairs += zip(getattr(owner, attribute), value, strict=True)
        else:
            pairs.append((attribute, value))
    return pairs


def _fits(path: str, layer: Layer, values: Mapping[str, Any], owners: Owners, used: Set[str]) -> bool:
    """Says whether every operand is the owner's own attribute, and what the call lacks nobody else reads."""
    for attribute, operand in _operands(layer, values, owners.modules[path]):
        name = join(path, attribute)
        if operand is None and name in used:
            return False
        if operand is not None and (operand.op != "get_attr" or name not in owners.names(str(operand.target))):
            return False
    return True


def _agrees(module: nn.Module, owner: nn.Module, layer: Layer) -> bool:
    """Says whether a call outside the owner's forward has the owner's hyper-parameters."""
    return layer.borrow and all(getattr(module, name, None) == getattr(owner, name, None) for name in layer.agree)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for held in (module._parameters, module._buffers):
        yield from ((name, tensor) for name, tensor in held.items() if tensor is not None)
