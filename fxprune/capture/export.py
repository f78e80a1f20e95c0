"""The one call of `torch.export`, made so that the user's model is afterwards exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from fxprune.capture.blame import capture_error, watching
from fxprune.capture.example import Example

__all__ = ["export", "untouched"]


def export(model: nn.Module, example: Example, dynamic_shapes: Any = None) -> ExportedProgram:
    """Export the model in eval mode, its idle modules marked, and leave it as it was.

    Args:
        model: The model to capture.
        example: The prepared example call.
        dynamic_shapes: As `torch.export.export` takes it; the example's own by default.

    Raises:
        CaptureError: If the model cannot be exported; names the module and the line.
    """
    shapes = example.dynamic_shapes if dynamic_shapes is None else dynamic_shapes
    args, kwargs = example.bound.args, example.bound.kwargs
    with untouched(model, training=False), _no_fast_path(), watching(model) as watch:
        try:
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise capture_error(model, watch, error) from error


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


def _snapshot(module: nn.Module) -> dict[str, Any]:
    """Return a module's attributes, its containers copied one level deep."""
    return {
        name: (value, dict(value) if isinstance(value, dict) else None)
        for name, value in vars(module).items()
    }


def _restore(module: nn.Module, state: Mapping[str, Any]) -> None:
    attributes = vars(module)
    for name in attributes.keys() - state.keys():
        del attributes[name]
    for name, (value, content) in state.items():
        if attributes.get(name) is not value:
            attributes[name] = value
        if content is not None and not _same_items(value, content):
            value.clear()
            value.update(content)


def _same_items(a: Mapping[Any, Any], b: Mapping[Any, Any]) -> bool:
    return len(a) == len(b) and all(key in a and a[key] is item for key, item in b.items())


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Keep `nn.TransformerEncoderLayer` from collapsing into one opaque fused operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
