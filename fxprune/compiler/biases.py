"""Biases: an equal model, whose layers have room for what removed channels gave on average."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.modules.conv import _ConvNd

from fxprune._base.copies import copied
from fxprune._base.names import layer_of
from fxprune.capturing.source import unwrapped
from fxprune.compiler.state import State
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.recovery.consumers import find_consumers
from fxprune.results.tables import few


def give_biases(state: State, coupling: Coupling) -> State | None:
    """Returns the state with an equal model, to be captured anew, in which layers that read units have biases of zero; None if all have some.

    Args:
        state: captured.
        coupling: of the graph.

    Raises:
        TypeError: the model is a program, whose layers are what they are.
    """
    if isinstance(state.source, ExportedProgram):
        raise TypeError(
            "allow_bias: the layers of an exported program are fixed: expected the torch.nn.Module that was exported"
        )
    everything = Selection(coupling, coupling.removed_mask(range(len(coupling.units))))
    model, options = copied(unwrapped(state.module)), replace(state.options, allow_bias=False)
    given = [
        layer_of(c.weight) for c in find_consumers(everything)[0] if c.home is None and _give(model, layer_of(c.weight))
    ]
    if not given:
        return None
    notes = (*state.notes, f"biases were added to {few(given, 3)}")
    return replace(
        state, source=model, module=model, options=options, captured=None, before=state.before or coupling, notes=notes
    )


def _give(model: nn.Module, name: str) -> bool:
    """Gives a layer a bias of zero, in place, and returns whether it has none and can have one."""
    layer = model.get_submodule(name)
    if not isinstance(layer, (nn.Linear, _ConvNd)) or layer.bias is not None:
        return False
    layer.bias = nn.Parameter(torch.zeros_like(layer.weight.detach().flatten(1)[:, 0]), layer.weight.requires_grad)
    return True
