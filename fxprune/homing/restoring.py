"""The way home: a copy of the original's class with what is left of its tensors and sizes, and the proof."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune._base.errors import RestoreError, brief
from fxprune._base.modes import lent, random_states_kept
from fxprune.capturing.captured import example_call
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.data.calls import Call, tensors_of
from fxprune.homing.counting import Dimensions
from fxprune.homing.matching import values_of, varied
from fxprune.homing.places import changed
from fxprune.homing.reading import Readings, read_sizes
from fxprune.homing.solving import Solved, equations, solve
from fxprune.homing.statistics import made_up, statistics_of, uncounted
from fxprune.homing.tensors import with_tensors

#: The largest relative difference between module and graph.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_COARSE = 2e-2


def sizes_read(coupling: Coupling) -> Readings:
    """Returns what the original's forward says of its sizes, on the example."""
    captured, dimensions = coupling.captured, Dimensions(coupling)
    model = copy.deepcopy(captured.model)
    varied(model)
    cut = dimensions.cut()
    values = values_of(captured, model, cut.keys())
    sizes = read_sizes(model, example_call(captured), values, dimensions)
    whole, shared = list(uncounted(coupling)), []
    for name, dims in cut.items():
        for dim, axes in dims.items():
            if dim in values.even.get(name, ()):
                shared.append(tuple(axes))
            else:
                whole += axes
    return Readings(tuple(sizes), tuple(whole), tuple(shared))


def restored(selection: Selection, pruned: nn.Module, readings: Readings, calls: Sequence[Call]) -> nn.Module:
    """Returns a copy of the original of its own class, pruned as the graph is, and proven equal to it.

    Args:
        selection: what went.
        pruned: the emitted graph, its values whatever has become of them since.
        readings: what the original's forward says of its sizes.
        calls: on which both are compared, ``(args, kwargs)`` each; but for the first, where original and graph take them.

    Raises:
        RestoreError: the class cannot say it, or computes something else.
    """
    captured, slicer = selection.coupling.captured, selection.slicer
    home = with_tensors(captured.model, pruned, captured, Dimensions(selection.coupling).of_buffers(slicer))
    solved = solve(list(equations(readings.sizes, slicer)), slicer)
    changed(home, solved.values)
    made_up(home, statistics_of(selection))
    further = [call for call in calls[1:] if _takes(captured.model, call) and _takes(pruned, call)]
    for call in (*calls[:1], *further):
        if (told := difference(home, pruned, call)) is not None:
            raise RestoreError(_explained(told, solved))
    return home


def difference(home: nn.Module, pruned: nn.Module, call: Call) -> str | None:
    """Returns in what a restored model differs from its graph on a call, None if they are equal."""
    call = pytree.tree_map_only(Tensor, torch.clone, call)
    with random_states_kept(), lent(pruned, call):
        want = tensors_of(pruned(*call[0], **call[1]))
    with random_states_kept(), lent(home, call):
        try:
            got = tensors_of(home(*call[0], **call[1]))
        except Exception as error:  # whatever its forward raises
            return f"it raises {brief(error)}"
    if [x.shape for x in got] != [x.shape for x in want]:
        return f"it gives {[tuple(x.shape) for x in got]}, the graph {[tuple(x.shape) for x in want]}"
    worst = max((_apart(x, y) for x, y in zip(got, want, strict=True)), default=0.0)
    return f"its outputs differ from the graph's by {worst:.2g} of their size" if worst > 1 else None


def _takes(model: nn.Module, call: Call) -> bool:
    try:
        with random_states_kept(), lent(model, call):
            model(*call[0], **call[1])
    except Exception:  # whatever a model raises at sizes that it does not take
        return False
    return True


def _apart(got: Tensor, want: Tensor) -> float:
    """Returns how far apart two outputs, ``[...]``, are, in tolerances."""
    if not (want.is_floating_point() or want.is_complex()):
        return 0.0 if torch.equal(got, want) else float("inf")
    allowed = TOLERANCE.get(want.dtype, _COARSE) * float(want.nan_to_num(0, 0, 0).abs().max() if want.numel() else 0)
    same = torch.isclose(got, want, rtol=0.0, atol=allowed, equal_nan=True)
    if bool(same.all()):
        return 0.0
    return float((got - want).abs().nan_to_num(float("inf")).max()) / max(allowed, 1e-300)


def _explained(told: str, solved: Solved) -> str:
    text = f"the original's class cannot hold what is left: {told}"
    lines = []
    for wrong, right in solved.conflicts[:3]:
        line = f"{wrong.reading.line}: {wrong.reading.call} needs {wrong.wanted}"
        if right is not None:
            line += f" where {right.reading.line}: {right.reading.call} needs {right.wanted}"
        lines.append(line)
    return ". ".join([text, *lines, "Compile with form='module', or keep the graph form"])
