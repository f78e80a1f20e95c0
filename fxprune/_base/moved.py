"""What was pickled up to 0.1 still loads: modules under the names that they had, records with the fields that they had."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from types import ModuleType
from typing import Any

#: old name -> new name, of modules whose classes stand in pickled results
MOVED = {
    "capture": "capturing",  # a package is asked for before what is in it
    "capture.call": "capturing.call",
    "constraints": "budget.constraints",
    "cost": "budget.cost",
    "distribution": "results.scores",
    "errors": "_base.errors",
    "example": "data.example",
    "explain": "compiler.explanation",
    "latency.bench": "latency.benchmark",
    "latency.record": "results.latency",
    "latency.setting": "runtimes.setting",
    "plan": "results.plan",
    "points": "reporting.pareto",
    "report": "results.record",
    "rewrite": "rewriting",
    "rewrite.modules": "ops.layers",
    "rewrite.pruned": "rewriting.pruned",
    "verify": "results.certificate",
}


class _Moved(ModuleType):
    """Looks names up where they are now; imports that when it is first asked."""

    def __init__(self, old: str, new: str) -> None:
        super().__init__(f"fxprune.{old}")
        self.__dict__["_new"] = f"fxprune.{new}"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # who goes through all modules and asks each for its file is to import nothing
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(self.__dict__["_new"]), name)


def keep_old_names() -> None:
    """Makes the old names known to ``pickle``; none of them hides a public name of the package."""
    for old, new in MOVED.items():
        sys.modules.setdefault(f"fxprune.{old}", _Moved(old, new))


def _default(entry: Field[Any]) -> Any:
    if entry.default_factory is not MISSING:
        return entry.default_factory()
    return None if entry.default is MISSING else entry.default


def filled_in(self: Any, state: Sequence[Any]) -> None:
    """Is ``__setstate__`` of a frozen dataclass with slots: fills in what an earlier version, with fewer fields, did not pickle."""
    defaults = [_default(entry) for entry in fields(self)]
    for entry, value in zip(fields(self), [*state, *defaults[len(state) :]], strict=True):
        object.__setattr__(self, entry.name, value)
