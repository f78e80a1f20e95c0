"""The report of a pruned model, attached to the module that it is about."""

from __future__ import annotations

from types import NoneType
from typing import Any, TypeVar

from torch import nn

from fxprune._base.errors import FxpruneError
from fxprune.results.certificate import Certificate
from fxprune.results.plan import Plan
from fxprune.results.record import Report

M = TypeVar("M", bound=nn.Module)

#: Where a module holds its report: a name that no model has for something of its own.
_KEY = "_fxprune_report"
_KEYS_OF_0_1 = ("_record", "record")


def attach(pruned: M, found: Report) -> M:
    """Returns the model, its report noted where `report` finds it.

    It is also there as ``report``, ``plan`` and ``certificate``, unless the model has something of that name.
    """
    own = {*pruned._parameters, *pruned._buffers, *pruned._modules, *dir(type(pruned))}
    own |= {
        name for name, value in vars(pruned).items() if not isinstance(value, (Report, Plan, Certificate, NoneType))
    }
    for name, value in (("report", found), ("plan", found.plan), ("certificate", found.certificate)):
        if name not in own:
            pruned.__dict__[name] = value
    pruned.__dict__[_KEY] = found
    return pruned


def detach(pruned: M) -> M:
    """Returns a pruned model in its own class, itself, without its report: its pickle is then read where fxprune is not installed.

    What needs the report, such as ``fxprune.save``, comes before.

    Raises:
        FxpruneError: fxprune did not make this model, or it is a graph, whose class is fxprune's own.
    """
    found = report(pruned)
    if found.form != "module":
        raise FxpruneError(f"detach: expected a model in its own class, got a graph ({type(pruned).__name__})")
    for name in (_KEY, "report", "plan", "certificate"):
        if isinstance(pruned.__dict__.get(name), (Report, Plan, Certificate, NoneType)):
            pruned.__dict__.pop(name, None)
    return pruned


def report(pruned: nn.Module) -> Report:
    """Returns the report of a pruned model.

    Raises:
        FxpruneError: fxprune did not make this model.
    """
    found = report_if_any(pruned)
    if found is None:
        raise FxpruneError(
            f"expected a model that fxprune.compile or fxprune.load returned, got {type(pruned).__name__}"
        )
    return found


def report_if_any(model: Any) -> Report | None:
    """Returns the report of a model, None if fxprune did not make it."""
    attributes = getattr(model, "__dict__", {})
    found = (attributes.get(name) for name in (_KEY, *_KEYS_OF_0_1))
    return next((value for value in found if isinstance(value, Report)), None)
