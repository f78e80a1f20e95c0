"""Runs a written file beside the module that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune._base.errors import ExportError, brief, raised_as
from fxprune.data.batch import short
from fxprune.data.calls import Call, tensors_of
from fxprune.ops.registry import is_kind
from fxprune.runtimes.program import Program
from fxprune.runtimes.registry import Loaded
from fxprune.runtimes.sizes import Sizes, other_sizes, resized, sizes_of

#: How sizes are freed that only go together with a number.
FREE_SIZES = 'such as {"x": {0: Dim("batch"), 2: 4 * Dim("height")}} with Dim of torch.export'


def trials(program: Program, *, filled: bool, single: bool) -> list[Call]:
    """Returns the calls that a file has to stand: at the example's sizes, and at others if they are free.

    Args:
        program: what was written.
        filled: whether its call has values to compare with; else they are drawn.
        single: try a batch of one as well, if the batch is free and the module itself takes it.

    Raises:
        ExportError: the module fails at sizes that the program takes.
    """
    symbolic = program.symbolic()
    call = program.call if filled else _drawn(program)
    own = sizes_of(symbolic, tensors_of(call))
    found = [call]
    others = other_sizes(own, program.allows)
    if others != own:
        found.append(resized(call, symbolic, others))
        if (error := _failure(program, found[-1])) is not None:
            raise ExportError(
                f"the exported graph takes {shown(program, found[-1])}, the model fails there ({brief(error)}): "
                f"{_way_out(program, call, others)}"
            ) from error
    one = own | {symbol: 1 for symbol, name in program.names.items() if name == "batch"}
    if single and one != own:
        alone = resized(call, symbolic, one)
        if _failure(program, alone) is None:  # else no file can be compared there
            found.append(alone)
    return found


def _way_out(program: Program, call: Call, others: Sizes) -> str:
    """Returns what helps where the model fails at other sizes."""
    symbolic = program.symbolic()
    batches = {symbol: size for symbol, size in others.items() if program.names.get(symbol) == "batch"}
    another = resized(call, symbolic, sizes_of(symbolic, tensors_of(call)) | batches)
    if batches and _failure(program, another) is not None:
        return "pass dynamic_batch=False to write a file for this batch"
    return f"pass dynamic_shapes= with the sizes that it takes, {FREE_SIZES}"


def _failure(program: Program, call: Call) -> Exception | None:
    """Returns what the module itself fails with at a call; None if it does not."""
    try:
        program.run(call)
    except Exception as error:
        return error
    return None


def worst_difference(program: Program, calls: Sequence[Call], loaded: Loaded, tolerance: float, what: str) -> float:
    """Returns the largest relative difference between a file's outputs and the module's, over all calls.

    Raises:
        ExportError: one is above the tolerance, or the outputs are of other shapes, or prove nothing.
    """
    worst = 0.0
    for call in calls:
        expected = program.run(call)
        with raised_as(ExportError, f"{what} fails for {shown(program, call)}"), torch.no_grad():
            got = tensors_of(loaded(*call[0], **call[1]))
        if len(got) != len(expected):
            raise ExportError(f"{what} gives {len(got)} outputs, the model {len(expected)}")
        for value, want, have in zip(program.outputs, expected, got, strict=True):
            error_of = difference(want, have.to(want.device))
            if not error_of <= tolerance:
                raise ExportError(
                    f"{what} differs from the model: output {value.name!r} of {list(have.shape)} by "
                    f"{error_of:.2e} of its magnitude, tolerance {tolerance:.0e}, for "
                    f"{shown(program, call)}" + _hint(want, have)
                )
            worst = max(worst, error_of)
    return worst


def check_form(program: Program, calls: Sequence[Call], loaded: Loaded, what: str) -> None:
    """Makes sure that a file runs, and gives outputs of the module's shapes and types, whatever their values.

    Raises:
        ExportError: it does not, says for which sizes.
    """
    for call in calls:
        expected = program.run(call)
        with raised_as(ExportError, f"{what} fails for {shown(program, call)}"), torch.no_grad():
            got = tensors_of(loaded(*call[0], **call[1]))
        forms = [[f"{list(x.shape)} {short(x.dtype)}" for x in tensors] for tensors in (expected, got)]
        if forms[0] != forms[1]:
            raise ExportError(
                f"{what} gives {', '.join(forms[1])}, the model {', '.join(forms[0])}, for {shown(program, call)}"
            )


def difference(expected: Tensor, got: Tensor) -> float:
    """Returns max |got - expected| over max |expected| of two tensors, ``[...]``.

    It is infinite where shapes, types, integers or what is not finite differ.
    """
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return float("inf")
    if not expected.numel():
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(expected, got) else float("inf")
    expected, got = (x.detach().to(torch.complex128 if x.is_complex() else torch.float64) for x in (expected, got))
    finite = expected.isfinite()
    if not torch.equal(finite, got.isfinite()) or not torch.equal(
        expected[~finite].nan_to_num(), got[~finite].nan_to_num()
    ):
        return float("inf")
    if not finite.any():
        return float("nan")
    scale = float(expected[finite].abs().max())
    error = float((got[finite] - expected[finite]).abs().max())
    return error / scale if scale else error


def _hint(expected: Tensor, got: Tensor) -> str:
    if expected.shape != got.shape or expected.dtype != got.dtype:
        return f" (expected {list(expected.shape)} {expected.dtype}, got {list(got.shape)} {got.dtype})"
    if not expected.is_floating_point():
        return " (integers and booleans must be equal)" if not expected.is_complex() else ""
    if not expected.isfinite().any():
        return " (the model gives nothing finite here: pass an example= with real values)"
    return ""


def shown(program: Program, call: Call) -> str:
    """Returns a call's inputs and their shapes, for messages."""
    pairs = zip(program.inputs, tensors_of(call), strict=True)
    return ", ".join(f"{value.name} {list(tensor.shape)}" for value, tensor in pairs)


def _drawn(program: Program) -> Call:
    """Returns the program's call with random values: normal numbers, integers within its tables."""
    generator = torch.Generator().manual_seed(0)
    rows = iter(_rows(program.exported, [value.name for value in program.inputs]))

    def draw(like: Tensor) -> Tensor:
        high, image = next(rows), like.dtype is torch.uint8
        if like.is_floating_point() or like.is_complex():
            return torch.randn(like.shape, generator=generator).to(like)
        drawn = torch.randint(0, 256 if image else high, like.shape, generator=generator)
        if like.ndim and high > 1 and not image:
            drawn[..., 0] = 1  # a row of a mask must not be empty
        return drawn.to(like)

    drawn: Call = pytree.tree_map_only(Tensor, draw, program.call)
    return drawn


def _rows(exported: ExportedProgram, names: Sequence[str]) -> list[int]:
    """Returns for each input how many integers it may hold: as many as its tables have rows, or 2."""
    nodes = {node.name: node for node in exported.graph.nodes}
    tables: list[list[Any]] = [[user.args[0] for user in nodes[n].users if is_kind(user, "embedding")] for n in names]
    return [min((int(weight.meta["val"].shape[0]) for weight in found), default=2) for found in tables]
