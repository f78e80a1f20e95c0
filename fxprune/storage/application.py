"""Plans applied: to a model in memory, or from files to files."""

from __future__ import annotations

from os import PathLike
from typing import Any, overload

from torch import nn
from torch.export import ExportedProgram

from fxprune.compiler.application import apply_to_model
from fxprune.results.plan import Plan
from fxprune.rewriting.pruned import PrunedModule
from fxprune.storage.shards import Shards, apply_to_files


@overload
def apply(model: nn.Module | ExportedProgram, plan: Plan) -> PrunedModule: ...


@overload
def apply(model: Plan, plan: str | PathLike[str], out: str | PathLike[str]) -> Shards: ...


def apply(model: Any, plan: Any, out: Any = None) -> Any:
    """Applies a plan to another instance of the architecture that it was made for; weights are sliced, not recovered.

    ``apply(model, plan)`` returns the pruned model. ``apply(plan, "in/*.safetensors", "out/")`` slices the weights from
    files to files without ever holding the model (see `fxprune.storage.shards.apply_to_files`).

    Raises:
        PlanError: the plan does not fit this model, or these files.
        TypeError: an output directory without files, or files without one.
    """
    if isinstance(model, Plan) != (out is not None):
        raise TypeError("apply: expected (model, plan), or (plan, files, out) with a directory to write to")
    return apply_to_model(model, plan) if out is None else apply_to_files(model, plan, out)
