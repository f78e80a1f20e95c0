"""Which sizes are free in what is compiled: as many as can be without losing a unit that could go."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from fxprune.capturing.captured import Captured, captures
from fxprune.coupling.interpreter import couple


def freely_captured(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    dynamic_shapes: Any = None,
    batches: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]] = (),
) -> Captured:
    """Returns the model as `capture` does, with no size free at the price of a unit.

    A graph whose sizes are all free is coupled once more as if none was. If that finds more, what is usually free is captured.

    Raises:
        CaptureError: it cannot be captured.
    """
    found = captures(model, args, kwargs, dynamic_shapes=dynamic_shapes, batches=batches)
    first = next(found)
    return next(found, first) if first.all_free and _loses(first) else first


def _loses(captured: Captured) -> bool:
    """Returns whether a graph has fewer units than with the sizes of its example."""
    fixed = replace(captured, info=captured.at_example, batch=(1, 1))
    return _units(captured) < _units(fixed)


def _units(captured: Captured) -> int:
    return sum(len(group.units) for group in couple(captured).groups)
