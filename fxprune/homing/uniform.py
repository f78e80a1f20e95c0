"""One width for all layers that a class makes of one setting: what its forward names of sizes, said in terms of the settings."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import nn

from fxprune.algebra.axes import Axis, fixed
from fxprune.coupling.coupling import Coupling
from fxprune.homing.constructing import Construction
from fxprune.homing.reading import Line, Reading, Readings
from fxprune.homing.terms import Computed, Term, rewritten


def in_settings(readings: Readings, made: Construction, coupling: Coupling) -> Readings:
    """Returns readings over the settings that a class is made of: what its forward names, what its layers are made with, what it checks.

    Args:
        readings: of the forward, over the integers of modules.
        made: what the class makes of its settings.
        coupling: of the captured graph.
    """
    said = [replace(reading, term=rewritten(reading.term, made.integers)) for reading in readings.sizes]
    more = (*_of_layers(made, coupling), *_checked(made, coupling.captured.model))
    return replace(readings, sizes=tuple(dict.fromkeys([*said, *more])), made=made.integers)


def _of_layers(made: Construction, coupling: Coupling) -> Iterator[Reading]:
    captured = coupling.captured
    axes: dict[str, Any] = {str(node.target): found for node, found in coupling.values.items() if node.op == "get_attr"}
    saved = captured.model.state_dict(keep_vars=True)
    for name, terms in made.shapes.items():
        if name not in saved or len(terms) != saved[name].dim():
            continue
        known = axes.get(captured.ties.get(name, name))
        for dim, term in enumerate(terms):
            size = saved[name].shape[dim]
            axis: Axis = fixed(size) if known is None else known[dim]
            yield Reading(term, "size", axis, size, _line(captured.model, name), name)


def _checked(made: Construction, model: nn.Module) -> Iterator[Reading]:
    for a, b in made.equal:
        divides = isinstance(a, Computed) and a.function is operator.mod and b == 0
        term: Term = a if divides else Computed(operator.sub, (a, b))
        yield Reading(term, "divides" if divides else "equal", (), 0, _line(model, ""), "==")


def _line(model: nn.Module, name: str) -> Line:
    path = name.rpartition(".")[0]
    kind = type(model.get_submodule(path))
    try:
        file, number = inspect.getsourcefile(kind) or "", inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):  # its source is not there
        file, number = "", 0
    return Line(path, kind.__name__, "__init__", file, number)
