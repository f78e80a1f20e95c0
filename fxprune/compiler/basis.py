"""Basis: an equal model, given in the basis in which what goes matters least, takes the place of the one to be compiled."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune._base.copies import copied
from fxprune._base.errors import RotationError, TrainingWarning, outside
from fxprune._base.modes import untouched
from fxprune._base.names import fetch, layer_of
from fxprune.budget.constraints import free_groups
from fxprune.capturing.source import unwrapped
from fxprune.compiler.options import MODULE
from fxprune.compiler.state import State
from fxprune.coupling.coupling import Coupling
from fxprune.data.batch import Batch
from fxprune.results.tables import few
from fxprune.rotation.rotating import Rotated, rotated


def turn(state: State, coupling: Coupling) -> State:
    """Returns the state with an equal model, to be captured anew, whose streams are in the bases of their principal components.

    Args:
        state: captured.
        coupling: of the graph.

    Raises:
        RotationError: no basis may change; says why.
        TypeError: the model is a program, which has no tensors of its own that could change.
    """
    if isinstance(state.source, ExportedProgram):
        raise TypeError("basis: an exported program is given as it is: expected the torch.nn.Module that was exported")
    model = unwrapped(state.module)
    if any(x.is_meta for x in (*model.parameters(), *model.buffers())):
        raise RotationError("basis: the model is tried, and has tensors on the meta device: give it values first")
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)} | model.state_dict(keep_vars=True).keys()
    found = rotated(coupling, free_groups(coupling, state.constraints), state.inputs, own)
    if not found.streams:
        why = "; ".join(f"{name}: {reason}" for name, reason in list(found.refused.items())[:3])
        raise RotationError(
            f"basis={state.options.basis!r}: no channels can be given in another basis ({why or 'none are free to go'})"
        )
    other = copied(model)
    untied = put(other, found.tensors, coupling.captured.ties)
    _check_same(model, other, state.first)
    told = [*_of_norms(found), *(_of_unread(coupling, found) if state.options.form == MODULE else ())]
    for text in told:
        warnings.warn(TrainingWarning(text), stacklevel=outside())
    return replace(
        state,
        source=other,
        module=other,
        options=replace(state.options, basis=None),
        captured=None,
        basis=state.options.basis,
        before=state.before or (coupling if untied else None),
        notes=(*state.notes, *_notes(found, untied), *told),
    )


@torch.no_grad()
def _check_same(model: nn.Module, other: nn.Module, batch: Batch) -> None:
    """Makes sure that a model with new tensors gives what the model gives, to its own precision.

    Raises:
        RotationError: it does not.
    """
    with untouched(model, training=False), untouched(other, training=False):
        results = [pytree.tree_leaves(each(*batch.args, **batch.kwargs)) for each in (model, other)]
    for x, y in zip(*results, strict=True):
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel():
            room = max(3 * torch.finfo(x.dtype).eps ** 0.5, 1e-4) * x.nan_to_num(0.0, 0.0, 0.0).abs().max()
            if not torch.allclose(x, y, rtol=0.0, atol=float(room), equal_nan=True):
                raise RotationError(
                    "basis: the model with the new tensors gives other outputs: a tensor may be used where the captured graph does not "
                    "show it"
                )


@torch.no_grad()
def put(model: nn.Module, tensors: Mapping[str, Tensor], ties: Mapping[str, str]) -> list[str]:
    """Gives a model tensors, ``[...]`` by name; returns the names of those that are tied no longer.

    Args:
        model: changes in place.
        tensors: one that is to be untied comes under several names.
        ties: the other names of tied tensors, and the one that they share.
    """
    shared: dict[str, list[str]] = {}
    for name in tensors:
        shared.setdefault(ties.get(name, name), []).append(name)
    # the tensor itself goes on with the name that the graph uses, if that is among them
    untied = [name for whole, names in shared.items() for name in sorted(names, key=lambda n: n != whole)[1:]]
    for name in untied:
        old = fetch(model, name)
        new = nn.Parameter(old.detach().clone(), old.requires_grad)
        setattr(model.get_submodule(layer_of(name)), name.rpartition(".")[2], new)
    for name, value in tensors.items():
        fetch(model, name).copy_(value)
    for module in model.modules() if untied else ():
        config: Any = getattr(module, "config", None)
        if getattr(config, "tie_word_embeddings", False) is True:
            config.tie_word_embeddings = False  # or a checkpoint of it would be read as tied
    return untied


def _notes(found: Rotated, untied: list[str]) -> list[str]:
    notes = [
        f"basis: {few(found.streams, 3)} in principal components; the model is the same to {found.error:.1g} in float64, and its norms, "
        "whose gains went into the layers beside them, train as such"
    ]
    if untied:
        notes.append(f"basis: {few(untied, 3)} is tied no longer, since what it shared is read in two bases")
    return notes


def _of_norms(found: Rotated) -> list[str]:
    """Returns what is to be known of batch norms whose statistics are of channels that are no more."""
    if not found.batch_norms:
        return []
    return [
        f"basis: what {few(found.batch_norms, 3)} learned is in the layers before: in training it would normalise directions by the batch, "
        "and the model be another one; fine-tune with these norms in evaluation mode"
    ]


def _of_unread(coupling: Coupling, found: Rotated) -> list[str]:
    """Returns what is to be known of parameters that may be of a stream, and are read in another pass than the one that was captured."""
    model, sizes = coupling.captured.model, {len(g.units) for g in coupling.groups if g.name in found.streams}
    unread = [name for name in sorted(coupling.captured.unused) if not sizes.isdisjoint(fetch(model, name).shape)]
    if not unread:
        return []
    return [
        f"basis: {few(unread, 3)} takes no part in the forward pass that was captured, and stays: a pass that reads it, in training or by "
        "another argument, would read a stream in another basis"
    ]
