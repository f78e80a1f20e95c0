"""What is captured: a module to be exported, or a program that somebody exported already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, TensorArgument

from fxprune._base.errors import CaptureError
from fxprune._base.sharded import gathered
from fxprune.capturing.call import CallSpec
from fxprune.capturing.conditions import Answer, read_limits
from fxprune.capturing.exported import asked_export
from fxprune.capturing.functions import Functions
from fxprune.capturing.prepared import Example, of_program, prepare
from fxprune.capturing.probing import holding_at, least_sizes
from fxprune.capturing.state import hang
from fxprune.data.checks import check_plain

#: Operations in one condition on sizes: windows that are padded and rolled have some thousands, others at most a dozen.
_INVOLVED = 40


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """An exported program with the model and the example call that it came from.

    Attributes:
        program: The exported program.
        model: The module that owns the tensors.
        example: The example call.
        call: The calling convention.
        tensors: The example's tensor leaves, one for each placeholder.
        batched: For each placeholder, whether its dimension 0 is the batch.
        exported: Whether the program was given, so that ``model`` cannot be run.
        functions: The model's own autograd Functions.
        free: Whether every size is free that the model leaves free.
    """

    program: ExportedProgram
    model: nn.Module
    example: Example
    call: CallSpec
    tensors: tuple[Tensor, ...]
    batched: tuple[bool, ...]
    exported: bool
    functions: Functions
    free: bool = False


def open_sources(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    dynamic_shapes: Any,
    batches: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]],
) -> Iterator[Source]:
    """Export a module, or take a program as it is; the more is free in it, the sooner it comes: at last nothing is.

    Yields:
        What to capture, and what to capture if that will not do.

    Raises:
        CaptureError: If the module cannot be exported, or is of TorchScript.
        CalibrationError: If its weights are not initialised, or quantised.
    """
    check_is_python(model)
    if isinstance(model, ExportedProgram):
        yield _source(model, _owner(model), of_program(model), None, Functions())
        return
    owner = gathered(unwrapped(model))
    check_plain(owner)
    example = prepare(owner, args, kwargs, batches)
    if dynamic_shapes is not None:
        yield _exported(owner, example, dynamic_shapes)
        return
    free: Source | None = None
    with suppress(CaptureError):  # the sizes are too involved, or the model needs to know one
        free = replace(_remembering_nothing(_exported(owner, example.all_free(), most=_INVOLVED)), free=True)
    if free is not None:
        yield free
    yield _remembering_nothing(_exported(owner, example))
    yield _exported(owner, example, {})


def open_training(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Source:
    """Export a module in training mode, at the sizes of one call.

    Raises:
        CaptureError: If it cannot be exported.
    """
    example, functions = prepare(model, args, kwargs), Functions()
    program, _ = asked_export(model, example, {}, functions, training=True)
    return _source(program, model, example, None, functions)


def _exported(owner: nn.Module, example: Example, dynamic_shapes: Any = None, most: int | None = None) -> Source:
    functions = Functions()
    program, asked = asked_export(owner, example, dynamic_shapes, functions, most)
    if functions.seen and functions.keep_opaque():
        program, asked = asked_export(owner, example, dynamic_shapes, functions, most)
    return _source(program, owner, example, asked, functions)


def _source(
    program: ExportedProgram, owner: nn.Module, example: Example, asked: list[Answer] | None, functions: Functions
) -> Source:
    names, out_spec = _placeholder_names(program, example), program.call_spec.out_spec
    assert out_spec is not None
    given = [name is not None for name in names]
    tensors, batched = tuple(compress(example.leaves, given)), tuple(compress(example.batch, given))
    limits = read_limits(program, tuple(compress(example.names, given)), tensors, asked or ())
    if asked is not None:
        limits = least_sizes(owner, example, program, limits)
    call = CallSpec(
        signature=example.signature,
        in_spec=example.spec,
        out_spec=out_spec,
        placeholders=tuple(names),
        literals=tuple(leaf if name is None else None for name, leaf in zip(names, example.leaves, strict=True)),
        limits=limits,
        assumed=example.assumed,
    )
    return Source(program, owner, example, call, tensors, batched, asked is None, functions)


def check_is_python(model: nn.Module | ExportedProgram) -> None:
    """Refuse a model of TorchScript, in which there is nothing left to trace.

    Raises:
        CaptureError: It is one; says what to pass instead.
    """
    if isinstance(model, nn.Module) and isinstance(unwrapped(model), torch.jit.ScriptModule):
        raise CaptureError(
            "expected a module of Python, got one of TorchScript (torch.jit.script, trace or load), which torch.export "
            "cannot trace: pass the module that it was made of; of a saved one, build the original class and load "
            "scripted.state_dict() into it"
        )


def _remembering_nothing(source: Source) -> Source:
    """Return a source with a free batch, if it is fixed only since the model remembers the last one.

    A detector keeps the anchors of the last feature maps, and makes them anew at another size. Export sees the comparison
    turn out one way and takes the size for fixed; with one sample more in the batch it turns out the other way.
    """
    if not _is_batch_fixed(source):
        return source
    try:
        other = _exported(source.model, source.example.grown(), most=_INVOLVED)
    except CaptureError:
        return source
    limits = other.call.limits
    if _is_batch_fixed(other) or limits is None:
        return source
    limits = holding_at(source.model, source.example, other.program, limits, source.tensors)
    if limits is None:
        return source
    return replace(other, example=source.example, tensors=source.tensors, call=replace(other.call, limits=limits))


def _is_batch_fixed(source: Source) -> bool:
    shapes = () if source.call.limits is None else source.call.limits.shapes
    return any(flag and isinstance(shape[0], int) for flag, shape in zip(source.batched, shapes, strict=True))


def runnable(model: nn.Module | ExportedProgram) -> nn.Module:
    """Return a module that computes what a program does; a module as it is."""
    if not isinstance(model, ExportedProgram):
        return model
    module: nn.Module = model.module()
    return module


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside `torch.compile`, DataParallel or DistributedDataParallel."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif isinstance(original := getattr(model, "_orig_mod", None), nn.Module):
            model = original
        else:
            return model


def _owner(program: ExportedProgram) -> nn.Module:
    """Return a module that holds a program's parameters and buffers under their names."""
    tensors = dict(program.state_dict)
    fleeting = {name: program.constants[name] for name in program.graph_signature.non_persistent_buffers}
    return hang({**tensors, **fleeting}.items(), frozenset(tensors))


def _placeholder_names(program: ExportedProgram, example: Example) -> list[str | None]:
    """Return for each leaf of the call its placeholder, or None if it is a constant."""
    specs = [spec for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]
    assert len(specs) == len(example.leaves), "export flattens the call as pytree does"
    return [spec.arg.name if isinstance(spec.arg, TensorArgument) else None for spec in specs]
