"""The one call of `torch.export`, made so that the user's model is afterwards exactly as it was."""

from __future__ import annotations

import functools
import io
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from fxprune._base.modes import untouched
from fxprune.capturing.blame import capture_error, watching
from fxprune.capturing.conditions import Answer, asking
from fxprune.capturing.fakes import unlogged
from fxprune.capturing.functions import Functions, observed
from fxprune.capturing.normalize.edit import aten, fake, is_op, schema_args
from fxprune.capturing.normalize.layout import dims_of
from fxprune.capturing.prepared import Example
from fxprune.capturing.sizes import static


def asked_export(
    model: nn.Module,
    example: Example,
    dynamic_shapes: Any = None,
    functions: Functions | None = None,
    most: int | None = None,
    *,
    marks: bool = True,
    training: bool = False,
) -> tuple[ExportedProgram, list[Answer]]:
    """Export the model, in eval mode unless it is asked for in training mode, and leave it as it was.

    Args:
        model: The model to capture.
        example: The prepared example call.
        dynamic_shapes: As `torch.export.export` takes it; the example's own by default.
        functions: Takes note of the model's own autograd Functions.
        most: Operations in one condition on sizes, beyond which it is given up.
        marks: Whether idle modules are marked.
        training: The mode.

    Returns:
        The program, and what the model asked of the sizes of its inputs.

    Raises:
        CaptureError: If the model cannot be exported; names the module and the line.
    """
    shapes = example.dynamic_shapes if dynamic_shapes is None else dynamic_shapes
    args, kwargs = example.bound.args, example.bound.kwargs
    collector = next((p.name for p in example.signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    extra = example.bound.arguments.get(collector, {}) if collector else {}
    if isinstance(shapes, dict):  # what the user does not name, and what capture adds (use_cache), is static
        every = [example.none_free().dynamic_shapes, shapes]
        if collector and extra:  # as parameters of their own
            every = [{k: v for k, v in one.items() if k != collector} | one.get(collector, {}) for one in every]
        shapes = every[0] | every[1]
    with (
        untouched(model, training=training),
        without_fast_path(),
        _with_gradients(),
        watching(model, marks=marks) as watch,
        observed(functions, watch),
        warnings.catch_warnings(),
    ):
        # what a module assigns to itself is undone afterwards: the warning says otherwise
        warnings.filterwarnings("ignore", message="The tensor attributes?", category=UserWarning)
        if extra:
            vars(model)["forward"] = _spelled_out(model.forward, example.signature, extra)
        said = io.StringIO()
        try:
            with redirect_stderr(said), unlogged(), asking(most) as asked:  # a failure prints the whole graph so far
                program = _export(model, args, kwargs, shapes)
        except Exception as error:
            raise capture_error(model, watch, error) from error
        sys.stderr.write(said.getvalue())
        _name_what_is_dropped(program)
        return program, asked


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any) -> ExportedProgram:
    try:
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
    except RuntimeError as error:
        if "out=" not in str(error):
            raise
    with torch.no_grad():  # what writes to out= runs without gradients or not at all
        return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)


def _name_what_is_dropped(program: ExportedProgram) -> None:
    """Makes every ``squeeze`` drop what it drops at the example, at every size: a graph has one number of dimensions.

    Before: ``squeeze(x)`` of [s, 64, 1, 1].  After: ``squeeze(x, [2, 3])``, unlike the model where s is 1.
    """
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            before = fake(node.args[0]) if is_op(node, aten.squeeze, aten.squeeze_) else None
            if before is None:
                continue
            named = dims_of(schema_args(node).get("dim"), before.ndim)
            dropped = [dim for dim in sorted(named) if static(before.shape[dim]) == 1]
            in_place = is_op(node, aten.squeeze_) and dropped
            node.target = aten.squeeze_.dims if in_place else aten.squeeze.dims if dropped else aten.alias.default
            node.args, node.kwargs = (node.args[0], dropped) if dropped else node.args[:1], {}


def _spelled_out(forward: Callable[..., Any], signature: Signature, extra: Iterable[str]) -> Callable[..., Any]:
    """Return ``forward`` with a parameter for each argument that its ``**kwargs`` got: torch 2.11 needs it so."""
    fixed = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    added = [Parameter(name, Parameter.KEYWORD_ONLY) for name in extra]

    @functools.wraps(forward)
    def spelled_out(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    vars(spelled_out)["__signature__"] = signature.replace(parameters=[*fixed, *added])
    return spelled_out


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Keep `nn.TransformerEncoderLayer` from collapsing into one opaque fused operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _with_gradients() -> Iterator[None]:
    """Record gradients, whatever the caller does; where the model is in inference mode, it is under ``no_grad``."""
    enter = torch.inference_mode.__enter__
    with torch.inference_mode(False), torch.enable_grad():
        torch.inference_mode.__enter__ = _enter_no_grad  # type: ignore[method-assign]
        try:
            yield
        finally:
            torch.inference_mode.__enter__ = enter  # type: ignore[method-assign]


def _enter_no_grad(self: torch.inference_mode) -> None:
    self._inference_mode_context = torch.no_grad() if self.mode else torch.enable_grad()  # type: ignore[assignment]
    self._inference_mode_context.__enter__()
