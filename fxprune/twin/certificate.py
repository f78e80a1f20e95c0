"""The certificate: the emitted module against the masked twin, output by output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune._base.copies import copied
from fxprune._base.errors import VerificationError
from fxprune._base.modes import lent
from fxprune._base.names import fetch
from fxprune._base.pages import room
from fxprune.capturing.extremes import as_captured
from fxprune.capturing.regions import without_autocast
from fxprune.coupling.selection import Selection
from fxprune.data.calls import Call
from fxprune.ops.twin import in_precision
from fxprune.results.certificate import Certificate
from fxprune.twin.comparison import compare
from fxprune.twin.interpreter import Run


def lifted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns a copy of an emitted module, or of another, that works in ``dtype`` throughout, explicit casts included.

    Where tensors are mapped from files, a layer's own are lifted as it is called, and dropped again.
    """
    module = copied(module).to(dtype) if room() is None else _lifted_in_turn(module, dtype)
    if isinstance(module, fx.GraphModule):
        lift = partial(in_precision, dtype=dtype)
        for node in module.graph.nodes:
            node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), lift)
        without_autocast(module.graph)
        as_captured(module.graph)
        module.recompile()
    return module


def _lifted_in_turn(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns a copy over the same tensors, which has each layer's in ``dtype`` while that runs."""
    held = [*module.parameters(), *module.buffers()]
    module = copied(module, {id(tensor): tensor for tensor in held})
    graph = module.graph if isinstance(module, fx.GraphModule) else None
    called = (
        [module] if graph is None else map(module.get_submodule, {n.target for n in graph.find_nodes(op="call_module")})
    )
    for layer in {id(each): each for part in called for each in part.modules()}.values():
        if layer._parameters or layer._buffers:
            _lift_meanwhile(layer, dtype)
    for node in [] if graph is None else list(graph.find_nodes(op="get_attr")):
        with node.graph.inserting_after(node):
            raised = node.graph.call_function(in_precision, (node, dtype))
        node.replace_all_uses_with(raised, lambda user, raised=raised: user is not raised)
    return module


def _lift_meanwhile(layer: nn.Module, dtype: torch.dtype) -> None:
    """Has a layer's own tensors be in ``dtype`` while it is called."""
    before: list[dict[str, Any]] = []

    def enter(_: nn.Module, __: Any) -> None:
        before.append({**layer._parameters, **layer._buffers})
        for held in (layer._parameters, layer._buffers):
            held.update({name: in_precision(tensor, dtype) for name, tensor in held.items()})

    def leave(*_: Any) -> None:
        tensors = before.pop()
        for held in (layer._parameters, layer._buffers):
            held.update({name: tensors[name] for name in held})

    layer.register_forward_pre_hook(enter)
    layer.register_forward_hook(leave, always_call=True)


@torch.no_grad()
def certify(
    selection: Selection,
    pruned: nn.Module,
    batch: Call,
    *,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
) -> Certificate:
    """Compares the emitted module with the masked twin on one batch.

    Args:
        selection: what went of the original graph, and the recovered tensors.
        pruned: the emitted module.
        batch: (args, kwargs) as the model takes them.
        dtype: compare in this precision instead of the model's own.
        tolerance: instead of 1e-9 in float64, 1e-4 in float32.
    """
    args, kwargs = batch
    inputs = selection.coupling.captured.call.flatten(args, kwargs)
    twin = Run(selection, dtype)(inputs)
    if dtype is not None:
        pruned = lifted(pruned, dtype)
        args, kwargs = pytree.tree_map_only(Tensor, partial(in_precision, dtype=dtype), (args, kwargs))
    with lent(pruned, args, kwargs):
        result = pytree.tree_leaves(pruned(*args, **kwargs))
    expected = [value for value in twin if value is not None]
    certificate = compare(expected, [value for value in result if value is not None], tolerance)
    if certificate.verified is False:
        again = [value for value in Run(selection, dtype)(inputs) if value is not None]
        if compare(expected, again, tolerance).verified is False:
            return replace(certificate, verified=None, note="the model draws random numbers in evaluation mode")
        found = [value for value in result if value is not None]
        # in less precision float64 tells rounding from a fault; of float64 itself there is nothing finer to ask
        if certificate.dtype == str(torch.float64) and len(expected) == len(found):
            runs = [Run(_shaken(selection, seed), dtype)(inputs) for seed in range(_DRAWS)]
            shaken = zip(*([value for value in run if value is not None] for run in runs), strict=True)
            amplified = all(map(partial(_rounded, tolerance), expected, found, shaken))
        else:
            amplified = False
        if amplified:
            note = f"the model amplifies rounding: {certificate.note} by no more than its weights' last places make it"
            return replace(certificate, verified=None, note=note)
    own = Run(Selection.nothing(selection.coupling), dtype)
    if certificate.verified is not False and not _finite(twin) and _finite(own(inputs)):
        note = "the outputs are not finite, unlike the original's"
        return replace(certificate, verified=False, max_error=float("inf"), note=note)
    return certificate


#: A difference of so many times what a unit in the last place of the weights makes is rounding: a sum has many places.
_PLACES = 64


#: So many times the weights are moved: a value that is rounded itself need not notice each time.
_DRAWS = 4


def _shaken(selection: Selection, seed: int) -> Selection:
    """Returns a selection whose floating tensors, in float64, are all moved by a unit in their last place, up or down."""
    module, draw, moved = selection.coupling.captured.module, torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for name in {str(node.target) for node in module.graph.find_nodes(op="get_attr")}:
        standing = selection.standing(name)
        value = fetch(module, name) if standing is None else standing
        if isinstance(value, Tensor) and value.is_floating_point():
            value = value.detach().double()
            signs = (torch.rand(value.shape, generator=draw) < 0.5).to(value) * 2 - 1
            moved[name] = value * (1 + torch.finfo(torch.float64).eps * signs)
    return selection.with_tensors({**selection.tensors, **moved})


def _rounded(tolerance: float | None, expected: Any, got: Any, shaken: Sequence[Any]) -> bool:
    """Returns whether an output is right, or as far off as rounding takes it."""
    one = compare([expected], [got], tolerance)
    if one.verified is not False:
        return True
    moved = max(compare([expected], [each], float("inf")).max_error for each in shaken)
    return one.max_error <= _PLACES * moved


def settled(check: Callable[[torch.dtype | None], Certificate], dtype: torch.dtype | None = None) -> Certificate:
    """Returns what a comparison found, in float64 where the model's own precision leaves doubt.

    Args:
        check: compares in a precision; None for the model's own.
        dtype: the one precision to compare in; None to settle doubt.

    Raises:
        VerificationError: the module does not compute what the twin computes.
    """
    certificate = check(dtype)
    if certificate.verified is not True and dtype is None:
        with suppress(RuntimeError):  # a model may make tensors of another precision as it runs
            certificate = check(torch.float64)  # rounding, or a fault?
    if certificate.verified is False:
        raise VerificationError(
            f"the pruned model failed verification: error {certificate.max_error:.2e} in "
            f"{certificate.dtype}, tolerance {certificate.tolerance:.0e}: {certificate.note}. If it does not "
            "say why, this is a bug of fxprune: please report the model."
        )
    return certificate


def _finite(values: Sequence[Any]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in values if isinstance(value, Tensor))
