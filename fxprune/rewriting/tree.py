"""The module tree of an emitted model: the original's shape and order, with tensors of its own."""

from __future__ import annotations

import copy
from collections.abc import Container, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from fxprune._base.names import place
from fxprune.rewriting.owners import Owners, join


def build_tree(
    model: nn.Module,
    owners: Owners,
    layers: Mapping[str, nn.Module],
    tensors: Mapping[str, Any],
    folded: Mapping[str, Sequence[str]] = MappingProxyType({}),
    alone: Container[str] = (),
) -> nn.Module:
    """Returns a tree like ``model``'s that holds a copy of each of ``tensors``, and nothing without tensors.

    Paths, the order of parameters, ties, shared modules, ``requires_grad`` and the persistence of buffers are the
    original's. What is no name of the original (an index, a lifted constant) becomes a buffer that is not saved.

    Args:
        model: the original; read only.
        owners: its modules and tensors.
        layers: path -> module on the meta device that takes the tensors of that path; others go to plain containers.
        tensors: the tensors by name in the graph, at their new sizes; a graph module is allowed as well.
        folded: tensors that stand for others now, and the names of those.
        alone: names of tensors that are nobody else's, and are taken as they are.
    """
    own = model.named_parameters(remove_duplicate=False)
    flags = {name: tensor.requires_grad for name, tensor in own if name not in folded}
    gone = {name for sources in folded.values() for name in sources}
    copies: dict[str, Any] = {}
    for name, tensor in tensors.items():
        new = _copy(tensor, flags.get(name), name in alone)
        copies.update((alias, new) for alias in owners.names(name))
    root = _Builder(layers, copies, gone).build(model, "")
    for name in tensors:
        if name not in owners.aliases:
            place(root, name, copies[name])
    return root


def _copy(tensor: Any, requires_grad: bool | None, alone: bool) -> Any:
    """Returns a tensor with storage of its own; a parameter if it is one, or was one before it was sliced."""
    if isinstance(tensor, nn.Module):
        return copy.deepcopy(tensor)
    new = tensor.detach() if alone else tensor.detach().clone()
    if requires_grad is None and not isinstance(tensor, nn.Parameter):
        return new
    return nn.Parameter(new, tensor.requires_grad if requires_grad is None else requires_grad)


class _Builder:
    """Walks the original's tree once; ``built`` maps the id of an original module to its counterpart."""

    def __init__(self, layers: Mapping[str, nn.Module], copies: Mapping[str, Any], gone: Set[str]) -> None:
        self.layers = layers
        self.copies = copies
        self.gone = gone
        self.built: dict[int, nn.Module] = {}

    def build(self, module: nn.Module, path: str) -> nn.Module:
        """Returns the counterpart of ``module``, whose first path is ``path``."""
        if id(module) in self.built:
            return self.built[id(module)]
        new = self.built[id(module)] = self.layers.get(path) or nn.Module()
        for name in {**new._parameters, **module._parameters}:
            value = self.copies.get(join(path, name))
            if value is not None or name in new._parameters:
                new.register_parameter(name, value)
        self._fill_buffers(new, module, path)
        for name, child in module._modules.items():
            counterpart = None if child is None else self.build(child, join(path, name))
            if counterpart is not None and _holds_something(counterpart):
                new.add_module(name, counterpart)
        return new

    def _fill_buffers(self, new: nn.Module, module: nn.Module, path: str) -> None:
        """Fills in the buffers; what is saved but never computed with (``num_batches_tracked``) goes with the rest."""
        survives = any(join(path, name) in self.copies for name in {**module._parameters, **module._buffers})
        for name in {**new._buffers, **module._buffers}:
            value: Tensor | None = self.copies.get(join(path, name))
            persistent = name not in module._non_persistent_buffers_set
            original = module._buffers.get(name)
            refused = (
                name in new._buffers and new._buffers[name] is None
            )  # a norm without statistics has no place for them
            lost = value is None and survives and join(path, name) not in self.gone and not refused
            if lost and persistent and original is not None:
                value = original.detach().clone()
            if value is not None or name in new._buffers:
                new.register_buffer(name, value, persistent=persistent)


def _holds_something(module: nn.Module) -> bool:
    return bool(module._parameters or module._buffers or module._modules)
