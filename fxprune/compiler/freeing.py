"""Which sizes are free in what is compiled: as many as can be without losing a unit that could go, or the model's numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from fxprune._base.errors import CaptureError, CaptureWarning
from fxprune._base.graphs import Reading
from fxprune._base.modes import lent, random_states_kept
from fxprune.capturing.captured import Captured, captures, example_call
from fxprune.capturing.exported import without_fast_path
from fxprune.capturing.limits import near, of_other_length
from fxprune.capturing.regions import AUTOCAST
from fxprune.compiler.secondly import other_call
from fxprune.coupling.interpreter import couple
from fxprune.data.calls import Call, tensors_of

#: Differences of such a share of an output's largest value are rounding, of so few operators in so other an order.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}


def freely_captured(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    dynamic_shapes: Any = None,
    batches: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]] = (),
) -> Captured:
    """Returns the model as `capture` does, with no size free at the price of a unit, or of the model's numbers.

    A graph whose sizes are all free is coupled once more as if none was. If that finds more, what is usually free is captured.
    A graph is run beside the model at a second size. If they differ, Python made something of a size that export does not
    see, such as a text: less is captured as free, at last nothing.

    Raises:
        CaptureError: it cannot be captured, or a size of ``dynamic_shapes`` cannot be free.
    """
    found = captures(model, args, kwargs, dynamic_shapes=dynamic_shapes, batches=batches)
    wrong = ""
    for captured in found:
        if captured.all_free and _loses(captured):
            continue
        if isinstance(model, ExportedProgram) or not _can_be_compared(captured):
            return captured
        wrong, strange = _wrong_at(captured)
        if not wrong:
            return _told(captured) if strange else captured
    raise CaptureError(
        f"at {wrong} the model computes something else than the graph that was captured of it: Python makes something of a size "
        "that torch.export does not see, such as a text or a key. What helps: leave that size out of dynamic_shapes="
    )


def _loses(captured: Captured) -> bool:
    """Returns whether a graph has fewer units than with the sizes of its example."""
    fixed = replace(captured, info=captured.at_example, batch=(1, 1))
    return _units(captured) < _units(fixed)


def _units(captured: Captured) -> int:
    return sum(len(group.units) for group in couple(captured).groups)


def _can_be_compared(captured: Captured) -> bool:
    """Returns whether a graph runs as it stands: on values, and without an autocast around some of its nodes."""
    tensors = (*captured.model.parameters(), *captured.example)
    casts = any(AUTOCAST in node.meta for node in captured.module.graph.nodes)
    return bool(captured.example) and not casts and not any(tensor.is_meta for tensor in tensors)


def _wrong_at(captured: Captured) -> tuple[str, bool]:
    """Returns other sizes at which a graph is not the model, though it is at those of its example; empty if there are none.

    And whether it is another one at its example. Sizes of another number of digits tell a text apart. A model may not take
    them: then those nearby are tried.
    """
    device = str(captured.example[0].device)
    for candidates in (of_other_length, near):
        call, where = other_call(captured, device, candidates=candidates)
        alike = _alike(captured, call) if where else None
        if alike:
            return "", False
        if alike is False and _alike(captured, example_call(captured)):
            return where, False
        if alike is False:
            break
    return "", _is_strange(captured)


def _is_strange(captured: Captured) -> bool:
    """Returns whether a graph gives something else than the model at its example, where the model always gives the same."""
    args, kwargs = call = example_call(captured)
    if _alike(captured, call) is not False:
        return False
    with random_states_kept(), without_fast_path(), lent(captured.model, args, kwargs):
        once, again = (_outcome(lambda: captured.model(*args, **kwargs)) for _ in range(2))
    return once is not None and again is not None and len(once) == len(again) and all(map(torch.equal, once, again))


def _told(captured: Captured) -> Captured:
    text = (
        "on the example the model gives something else than the graph that was captured of it, of which the result is made: it "
        "may ask whether it is being exported (torch.compiler.is_exporting()), or act on what torch.export does not see"
    )
    warned = (*captured.warned, CaptureWarning(text))
    return replace(captured, notes=(*captured.notes, text), warned=warned)


def _alike(captured: Captured, call: Call) -> bool | None:
    """Returns whether model and graph give the same, None where neither takes a call."""
    args, kwargs = call
    with random_states_kept(), without_fast_path():
        with lent(captured.model, args, kwargs):
            expected = _outcome(lambda: captured.model(*args, **kwargs))
        with lent(captured.module, args, kwargs):
            got = _outcome(lambda: Reading(captured.module).run(*captured.call.flatten(args, kwargs)))
    if expected is None or got is None:
        return None if expected is got else False
    return len(expected) == len(got) and all(map(_close, expected, got))


def _outcome(run: Callable[[], Any]) -> Sequence[Tensor] | None:
    """Returns the tensors that a call gives, None where it fails."""
    try:
        return tensors_of(run())
    except Exception:  # whatever a model raises at sizes that it does not take
        return None


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()) or not a.numel():
        return bool(torch.equal(a, b))
    share = _ROUNDING.get(a.dtype, 5e-2)
    return torch.allclose(a, b, rtol=share, atol=share * float(a.nan_to_num(0, 0, 0).abs().max()), equal_nan=True)
