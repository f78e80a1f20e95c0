"""A model lent for a while: in evaluation or training mode, and afterwards exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Set all training flags to ``training`` and restore every module's attributes on leaving.

    The flags are set one by one, since a model's own ``train()`` may do more than that.
    """
    modules = list(model.modules())
    before = [_snapshot(module) for module in modules]
    try:
        for module in modules:
            module.__dict__["training"] = training
        yield
    finally:
        for module, state in zip(modules, before, strict=True):
            _restore(module, state)


def _snapshot(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return a module's attributes, each with a copy of its content if it is a dict or a list."""
    return {
        name: (value, copy(value) if isinstance(value, (dict, list)) else None) for name, value in vars(module).items()
    }


def _restore(module: nn.Module, state: Mapping[str, tuple[Any, Any]]) -> None:
    attributes = vars(module)
    for name in attributes.keys() - state.keys():
        del attributes[name]
    for name, (value, content) in state.items():
        if attributes.get(name) is not value:
            attributes[name] = value
        if isinstance(value, dict) and not _same(list(value.items()), list(content.items())):
            value.clear()
            value.update(content)
        elif isinstance(value, list) and not _same(list(enumerate(value)), list(enumerate(content))):
            value[:] = content


def _same(a: list[tuple[Any, Any]], b: list[tuple[Any, Any]]) -> bool:
    """Say whether two lists of items have the same keys and the very same values, in order."""
    return len(a) == len(b) and all(k == other and v is w for (k, v), (other, w) in zip(a, b, strict=True))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Has a model run in evaluation mode, without gradients; whatever it writes, it is as it was on leaving.

    Its buffers are copies meanwhile, flags and attributes are restored.
    """
    with untouched(model, training=False), torch.no_grad():
        copies = {id(buffer): buffer.clone() for buffer in model.buffers()}
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = copies[id(buffer)]
        yield
