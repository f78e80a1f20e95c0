"""Dotted names: read what stands at one below a module, or put something there."""

from __future__ import annotations

import operator
from typing import Any

from torch import nn

from fxprune._base.pages import touched


def layer_of(tensor: str) -> str:
    """Returns the name of the module that owns a tensor; empty for the model itself."""
    return tensor.rpartition(".")[0]


def fetch(module: nn.Module, name: str) -> Any:
    """Returns what stands at a dotted name: a tensor, which is about to be read, or a module."""
    value = operator.attrgetter(name)(module)
    touched(value)
    return value


def place(root: nn.Module, name: str, value: Any, *, persistent: bool = False) -> None:
    """Puts a module, parameter or tensor (as a buffer) at a dotted name, with plain containers on the way."""
    *path, leaf = name.split(".")
    for part in path:
        child = root._modules.get(part)
        if child is None:
            root.add_module(part, child := nn.Module())
        root = child
    if isinstance(value, nn.Module):
        root.add_module(leaf, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(leaf, value)
    else:
        root.register_buffer(leaf, value, persistent=persistent)
