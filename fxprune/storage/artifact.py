"""Saves a pruned model to a directory: JSON, safetensors and checksums, no pickle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from fxprune._base.errors import FxpruneError, MissingExtraError, PlanError
from fxprune._base.files import fresh_directory, put_in_place
from fxprune._base.given import LARGEST
from fxprune._base.graphs import quantizes
from fxprune.capturing.source import unwrapped
from fxprune.compiler.options import MODULE
from fxprune.homing.places import numbers_in
from fxprune.reporting.html import page
from fxprune.results.attached import report
from fxprune.results.plan import Plan
from fxprune.results.record import Report
from fxprune.rewriting.pruned import PrunedModule
from fxprune.storage import manifest
from fxprune.storage.files import opened_together
from fxprune.storage.graph import Unstorable, describe, tensors_of
from fxprune.storage.graph.measured import check_size
from fxprune.storage.manifest import CONSTANTS, GRAPH, NUMBERS, PAGE, PLAN, README, REPORT, WEIGHTS

_HOW_TO_LOAD = """\
# {name}

A pruned model, written by [fxprune](https://pypi.org/project/fxprune/) {version}:
{before:,} parameters before, {after:,} after.

```python
import fxprune

pruned = fxprune.load("."{model})  # this directory
print(fxprune.report(pruned))
```

{note}

| file | what it holds |
|---|---|
{files}

Nothing in these files is executed when they are loaded; `manifest.json` has their checksums.
"""
_NEEDS_NO_MODEL = """\
The class of the original is not needed. Outputs of a class that is registered with `torch.utils._pytree` (such as those of
transformers) come as that class if its library was imported before, as a plain dict or tuple otherwise."""
_NEEDS_MODEL = """\
`model` is any instance of the original architecture: {reason}."""
_ABOUT = {
    PLAN: "which coordinates of which tensors stay",
    WEIGHTS: "the weights, every tensor once",
    REPORT: "what the compilation did, and the certificate",
    GRAPH: "the graph, its modules and its call",
    CONSTANTS: "what the graph reads besides the weights",
    NUMBERS: "the numbers that the model's modules hold",
    PAGE: "the report to look at",
}


def save(pruned: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Writes a pruned model; whatever interrupts it, ``load`` finds the old artifact or the new one, whole.

    The directory then holds ``plan.json``, ``report.json``, ``model.safetensors`` (every tensor once, ties
    noted), ``graph.json`` and ``constants.safetensors`` (the graph, so that it loads without the original's class;
    not where the model was pruned in parts, or is of its own class), ``README.md`` (how to load it), ``report.html`` (the report to look
    at; not without ``fxprune[report]``) and ``manifest.json`` with the checksums. An artifact that is there already
    is replaced. Two processes must not save to one directory at a time.

    Args:
        pruned: what ``fxprune.compile`` or ``fxprune.load`` returned, trained further or not.
        directory: where to; it must not exist, or be empty, or hold an artifact.

    Raises:
        FxpruneError: fxprune did not make this model, it is quantized, or it has state that is no tensor.
        PlanError: the directory holds something else, or the model's example call has no JSON form.
        OSError: it cannot be written.
    """
    save_with(pruned, directory, ())


def save_with(pruned: nn.Module, directory: str | os.PathLike[str], files: Sequence[Path]) -> None:
    """Writes a pruned model as `save` does, with files that hold some of its weights already: they are taken in as they are.

    Args:
        pruned: the model.
        directory: where to.
        files: safetensors files on the same file system, which stay where they are as well.
    """
    pruned = unwrapped(pruned)
    found = report(pruned)
    if found.plan is None:
        raise FxpruneError("the model's report has no plan, without which it could not be loaded again")
    if isinstance(pruned, fx.GraphModule) and not isinstance(pruned, PrunedModule) and quantizes(pruned.graph):
        raise FxpruneError(
            "save: the model is quantized: its integers are not the weights that the plan speaks of. Keep it with "
            "fxprune.export(model, 'model.onnx') or '.pt2', or save the model that it was made of"
        )
    target = Path(directory).resolve()
    manifest.check_target(directory)
    with opened_together(files) as there:
        tensors, ties = _tensors_once(pruned, set(there.keys()))
    graph, constants, reason = _graph_of(pruned, found)
    texts = {
        PLAN: found.plan.to_json(),
        REPORT: json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n",
        **({} if graph is None else {GRAPH: graph}),
        **({NUMBERS: _numbers(pruned)} if found.form == MODULE else {}),
        **_page(pruned),
    }
    stored = {
        **({WEIGHTS: tensors} if tensors or not files else {}),
        **({} if graph is None else {CONSTANTS: constants}),
    }
    texts[README] = _how_to_load(
        type(pruned).__name__, found.plan, (*texts, *stored, *({WEIGHTS} if files else ())), reason
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with fresh_directory(target) as fresh:
        for name, text in texts.items():
            (fresh / name).write_text(text, encoding="utf-8")
        for name, values in stored.items():
            save_file(values, fresh / name, metadata={"format": "pt"})
        for number, file in enumerate(files, 1):
            _linked(file, fresh / manifest.part(number))
        manifest.seal(fresh, ties, reason)
        put_in_place(fresh, target)


def _graph_of(pruned: nn.Module, found: Report) -> tuple[str | None, dict[str, Tensor], str | None]:
    """Returns the graph and its constants, or None and the reason why the model needs its class to be loaded."""
    if found.form == MODULE:
        return None, {}, "the model is of its own class"
    plan = found.plan
    assert plan is not None
    constants = {name: tensor.detach() for name, role, tensor in tensors_of(pruned) if role == "constant"}
    try:
        graph = describe(pruned)
        if isinstance(pruned, PrunedModule):
            check_size(pruned, plan.example, GRAPH)
        return graph, _contiguous(constants), None
    except (Unstorable, PlanError) as error:
        return None, {}, str(error)


def _numbers(pruned: nn.Module) -> str:
    """Returns the numbers that the modules hold, as a table of module, steps from there, and value."""
    numbers = numbers_in(pruned).items()
    rows = [[path, list(steps), value] for (path, steps), value in numbers if abs(value) <= LARGEST]
    return json.dumps({"numbers": rows}, allow_nan=False) + "\n"


def _page(pruned: nn.Module) -> dict[str, str]:
    """Returns the report as a page; nothing where what draws it (``fxprune[report]``) is not installed."""
    try:
        return {PAGE: page(pruned)}
    except MissingExtraError:
        return {}


def _how_to_load(name: str, plan: Plan, files: tuple[str, ...], reason: str | None) -> str:
    rows = [f"| `{file}` | {_ABOUT[file]} |" for file in _ABOUT if file in files]
    return _HOW_TO_LOAD.format(
        name=name,
        version=plan.versions.get("fxprune", ""),
        before=plan.before["params"],
        after=plan.after["params"],
        model="" if reason is None else ", model",
        note=_NEEDS_NO_MODEL if reason is None else _NEEDS_MODEL.format(reason=reason),
        files="\n".join(rows),
    )


def _tensors_once(pruned: nn.Module, there: Container[str] = ()) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns every tensor of the state under its first name, but for those that are there, and for each tied name that first name."""
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, value in pruned.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise FxpruneError(
                f"{name}: expected a tensor in the state, got {type(value).__name__}: it cannot be saved"
            )
        if value.is_meta:
            raise FxpruneError(f"{name}: it lies on the meta device and has no values to save")
        place = first.setdefault(_identity(value), name)
        if place != name:
            ties[name] = place
            continue
        if name not in there:
            tensors[name] = value.detach()
    return _contiguous(tensors), ties


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns copies of what shares its storage or covers it only partly: the file holds plain tensors."""
    found: dict[str, Tensor] = {}
    seen: set[Any] = set()
    for name, value in tensors.items():
        storage = value.untyped_storage()
        place = value.device, storage.data_ptr()
        plain = value.is_contiguous() and storage.nbytes() == value.nbytes and place not in seen
        found[name] = value if plain else value.clone(memory_format=torch.contiguous_format)
        seen.add(place)
    return found


def _identity(tensor: Tensor) -> Any:
    if not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride()


def _linked(file: Path, target: Path) -> None:
    """Has a file lie in another place as well; a copy of it where the system knows no links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)
