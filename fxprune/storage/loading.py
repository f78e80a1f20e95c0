"""Loads what was saved: every file is checked before anything is made of it, and nothing in it is executed."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune._base.files import readable
from fxprune._base.given import LARGEST
from fxprune.capturing.normalize.dtypes import renew_anchor
from fxprune.capturing.source import unwrapped
from fxprune.compiler.options import MODULE
from fxprune.data.example import TensorSpec
from fxprune.homing.terms import Key
from fxprune.results.attached import attach
from fxprune.results.plan import Plan, check_fits
from fxprune.results.record import Report
from fxprune.rewriting.pruned import PrunedModule
from fxprune.storage import manifest
from fxprune.storage.files import opened, opened_together
from fxprune.storage.graph import Role, rebuild, tensors_of
from fxprune.storage.graph.measured import check_size
from fxprune.storage.manifest import CONSTANTS, GRAPH, MANIFEST, NUMBERS, PLAN, REPORT, WEIGHTS

#: Numbers in an example call: a batch of 3,000 images of 224 x 224 pixels.
_LARGEST_EXAMPLE = 1 << 29


def load(directory: str | os.PathLike[str], model: nn.Module | None = None) -> PrunedModule:
    """Returns the pruned model that ``save`` wrote, in evaluation mode; in its own class if it was saved in that form.

    Nothing of the files is executed, and no module is imported that they name. Without ``model`` the graph, its modules and its
    call come from ``graph.json``. Outputs (and arguments) of a class that torch's pytree knows, such as transformers' ``ModelOutput``, are
    of that class again if it is registered in this process, i.e. if its library was imported before; a namedtuple, if its
    module was. Otherwise they are a dict of the same names, or a tuple where there are none. A module whose effect while training
    is neither dropout nor stochastic depth (drop block) is replaced by one that has none, with a warning.

    Args:
        directory: what ``save`` was given.
        model: any instance of the original architecture, which stays as it is; needed for artifacts without a graph: those of
            older versions, models pruned in parts, and models in their own class. The result then lies on its device.

    Raises:
        PlanError: no artifact, a damaged or altered one, one of another model, or one that needs the model.
        RestoreError: the class of ``model`` cannot hold what is left.
        OSError: it cannot be read.
    """
    source = readable(Path(directory))
    found = manifest.sealed(source)
    summary, plan = _report_of(found)
    if model is None:
        _check_example(plan)
        pruned = _load_graph(source, found)
        check_size(pruned, plan.example, GRAPH)
        return attach(pruned, summary)
    model = unwrapped(model)
    check_fits(plan, model)
    from fxprune.compiler.application import selected, without_selected

    _check_example(plan)
    with untrusted.reading(f"{PLAN}: the plan for this model"):
        known = selected(model, plan)
        pruned = without_selected(known)
    if summary.form == MODULE:
        from fxprune.compiler.homecoming import home_again

        pruned = home_again(pruned, model, (), _numbers_of(found), known)
    with opened_together(source / name for name in found.weights) as weights:
        _fill(pruned, weights, found.ties)
    renew_anchor(pruned)
    return attach(pruned, summary)


def load_report(directory: str | os.PathLike[str]) -> Report:
    """Returns the report, and with it the plan, of the model that ``save`` wrote, without its weights.

    Raises:
        PlanError: no artifact, or a damaged or altered one.
        OSError: it cannot be read.
    """
    source = readable(Path(directory))
    return _report_of(manifest.sealed(source, tensors=False))[0]


def _report_of(found: manifest.Sealed) -> tuple[Report, Plan]:
    plan = Plan.from_json(found.texts[PLAN], what=PLAN)
    return Report.from_dict(untrusted.decode(found.texts[REPORT], REPORT), plan=plan, what=REPORT), plan


def _check_example(plan: Plan) -> None:
    """The example's zeros are made to capture the model: no file may ask for more memory than calls take."""
    size = sum(math.prod(leaf.shape) for leaf in plan.example.leaves if isinstance(leaf, TensorSpec))
    if size > _LARGEST_EXAMPLE:
        raise PlanError(f"{PLAN}: example: expected at most {_LARGEST_EXAMPLE} values, got {size}")


def _numbers_of(found: manifest.Sealed) -> dict[Key, float]:
    if NUMBERS not in found.texts:
        return {}
    data = untrusted.record(untrusted.decode(found.texts[NUMBERS], NUMBERS), NUMBERS, ("numbers",))
    numbers: dict[Key, float] = {}
    for row in untrusted.sequence(data["numbers"], NUMBERS):
        path, steps, value = untrusted.exactly(3, row, NUMBERS, "module, steps and value")
        places = untrusted.sequence_of(steps, NUMBERS, _step)
        if type(value) not in (int, float) or not abs(value) <= LARGEST:
            raise untrusted.refusal(value, NUMBERS, "a number")
        numbers[untrusted.string(path, NUMBERS), places] = value
    return numbers


def _step(value: Any, where: str) -> str | int:
    return untrusted.integer(value, where) if type(value) is int else untrusted.string(value, where)


def _load_graph(source: Path, found: manifest.Sealed) -> PrunedModule:
    """Returns the module that the graph describes, with the tensors of both files, each in memory of its own."""
    if found.no_graph is not None:
        raise PlanError(
            f"{source}: it does not load by itself ({found.no_graph:.200}): give an instance of the original "
            "architecture, fxprune.load(directory, model)"
        )
    with (
        opened_together(source / name for name in found.weights) as weights,
        opened(source / CONSTANTS, CONSTANTS) as constants,
    ):
        state, fleeting = set(weights.keys()), set(constants.keys())

        def values(name: str, role: Role) -> Tensor:
            file, names = (constants, fleeting) if role == "constant" else (weights, state)
            place = name if role == "constant" else found.ties.get(name, name)
            if place not in names:
                raise PlanError(f"{GRAPH}: {name!r:.80} is in no file")
            return _read_tensor(file, place, WEIGHTS if names is state else CONSTANTS).clone()

        pruned = rebuild(found.texts[GRAPH], values, GRAPH)
        _check_names(pruned.state_dict(keep_vars=True), state, found.ties)
        own = {name for name, role, _ in tensors_of(pruned) if role == "constant"}
        if unknown := sorted(fleeting - own):
            raise PlanError(f"{CONSTANTS}: {unknown[0]!r:.80} is not in {GRAPH}")
    return pruned


def _read_tensor(file: Any, name: str, where: str) -> Tensor:
    with untrusted.reading(f"{where}: {name!r:.80}"):
        tensor: Tensor = file.get_tensor(name)
        return tensor


def _fill(pruned: nn.Module, file: Any, ties: Mapping[str, str]) -> None:
    """Copies the file's tensors into the module; they must be exactly the module's."""
    own = pruned.state_dict(keep_vars=True)
    _check_names(own, set(file.keys()), ties)
    for name, tensor in own.items():
        _assign(name, tensor, _read_tensor(file, ties.get(name, name), WEIGHTS))


def _check_names(own: Mapping[str, Tensor], names: set[str], ties: Mapping[str, str]) -> None:
    stored = names | ties.keys()
    if astray := sorted(set(ties.values()) - names) or sorted(ties.keys() & names):
        raise PlanError(f"{MANIFEST}: ties: {astray[0]!r} does not fit {WEIGHTS}")
    if missing := sorted(own.keys() - stored):
        raise PlanError(
            f"{WEIGHTS}: {missing[0]!r} is missing ({len(missing)} in all); the plan leaves it in the model"
        )
    if unknown := sorted(stored - own.keys()):
        raise PlanError(f"{WEIGHTS}: {unknown[0]!r} is not in the pruned model ({len(unknown)} in all)")


def _assign(name: str, own: Tensor, stored: Tensor) -> None:
    if own.shape != stored.shape:
        raise PlanError(f"{WEIGHTS}: {name}: the plan leaves {list(own.shape)}, got {list(stored.shape)}")
    if own.is_meta:
        raise PlanError(
            f"{name}: the model lies on the meta device: load onto one with values, e.g. model.to_empty(...)"
        )
    if own.dtype != stored.dtype:
        own.data = own.data.to(stored.dtype)
    with torch.no_grad():
        own.copy_(stored)
