"""The certificate: the emitted module against the masked twin, output by output."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune._base.errors import VerificationError
from fxprune._base.modes import lent
from fxprune.coupling.selection import Selection
from fxprune.data.calls import Call
from fxprune.ops.twin import in_precision
from fxprune.results.certificate import Certificate
from fxprune.twin.interpreter import Run

#: Differences of so many units in the last place of an output's largest value are rounding, whatever the tolerance.
ROUNDING = 16


TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def lifted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns a copy of an emitted module that works in ``dtype`` throughout, explicit casts included."""
    module = copy.deepcopy(module).to(dtype)
    if isinstance(module, fx.GraphModule):
        lift = partial(in_precision, dtype=dtype)
        for node in module.graph.nodes:
            node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), lift)
        module.recompile()
    return module


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
    if certificate.verified is None and not _finite(twin):
        dense = Selection.nothing(selection.coupling, selection.tensors)
        if _finite(Run(dense, dtype)(inputs)):
            note = "the outputs are not finite, unlike the original's"
            return replace(certificate, verified=False, max_error=float("inf"), note=note)
    return certificate


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


def compare(expected: Sequence[Any], got: Sequence[Any], tolerance: float | None = None) -> Certificate:
    """Returns whether flat outputs agree (see `Certificate`)."""
    dtypes = [a.dtype for a in expected if isinstance(a, Tensor) and a.is_floating_point()]
    dtype = dtypes[0] if dtypes else torch.float32
    limit = tolerance if tolerance is not None else TOLERANCE.get(dtype, 1e-4)
    failed = partial(Certificate, False, float("inf"), limit, str(dtype))
    if len(expected) != len(got):
        return failed(f"{len(expected)} outputs expected, {len(got)} came")
    worst, note, proof = 0.0, "", False
    for index, (a, b) in enumerate(zip(expected, got, strict=True)):
        if not isinstance(a, Tensor):
            if isinstance(b, Tensor) or a != b:
                return failed(f"output {index} is another value")
            continue
        if not isinstance(b, Tensor) or (a.shape, a.dtype) != (b.shape, b.dtype):
            return failed(f"output {index} has another shape or dtype")
        if not (a.is_floating_point() or a.is_complex()):
            if not torch.equal(a, b):
                return failed(f"output {index} differs in a whole number")
            proof = proof or bool((a != a[:1]).any() if a.dim() else False)
            continue
        error, problem = _error(a, b, limit)
        if error > limit:
            return Certificate(False, error, limit, str(dtype), "the outputs differ")
        note = note or (f"output {index} {problem}" if problem else "")
        worst, proof = max(worst, error), proof or not problem
    if not proof:
        note = note or "no output varies over the batch"
    return Certificate(None if note else True, worst, limit, str(dtype), note)


def _error(a: Tensor, b: Tensor, limit: float) -> tuple[float, str]:
    """Returns the error of ``b`` as a share of how far ``a`` varies (NaN counts as infinite), and why it proves little."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    spread, problem = _spread(a)
    if problem:
        finite = a[torch.isfinite(a)]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        alike = torch.allclose(a, b, rtol=limit, atol=limit * scale, equal_nan=True)
        return 0.0 if alike else float("inf"), problem
    difference = float((a - b).abs().max())
    if limit * spread < difference <= ROUNDING * torch.finfo(a.dtype).eps * float(a.abs().max()):
        return 0.0, "varies over the batch by little more than rounding"
    return (difference / spread if difference == difference else float("inf")), ""


def _spread(a: Tensor) -> tuple[float, str]:
    """Returns how far an output varies over the batch, and what is wrong with it as evidence, if anything."""
    if not a.numel() or not torch.isfinite(a).all():
        return 0.0, "is not finite" if a.numel() else "is empty"
    mean = a.mean(dim=0, keepdim=True) if a.dim() and a.shape[0] > 1 else a.mean()
    spread = float((a - mean).abs().max())
    if spread <= min(1e3 * torch.finfo(a.dtype).eps, 1e-2) * float(a.abs().max()):
        return spread, "is constant over the batch"
    return spread, ""
