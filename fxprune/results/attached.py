"""The report of a pruned model, attached to the module that it is about."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from fxprune._base.errors import FxpruneError
from fxprune.results.record import Report

M = TypeVar("M", bound=nn.Module)


def attach(pruned: M, found: Report) -> M:
    """Returns the model, its report noted where `report` finds it.

    It is also there as ``report``, ``plan`` and ``certificate``, unless the model has something of that name.
    """
    pruned.__dict__["_record"] = found
    for name, value in (("report", found), ("plan", found.plan), ("certificate", found.certificate)):
        own = *pruned._parameters, *pruned._buffers, *pruned._modules
        if name not in own and not hasattr(type(pruned), name):
            pruned.__dict__[name] = value
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
    found = attributes.get("_record", attributes.get("record"))  # the latter of models in parts up to 0.1
    return found if isinstance(found, Report) else None
