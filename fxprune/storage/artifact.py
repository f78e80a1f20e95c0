"""Saves a pruned model to a directory and loads it again: JSON, safetensors and checksums, no pickle."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fxprune._base import untrusted
from fxprune._base.errors import FxpruneError, MissingExtraError, PlanError
from fxprune._base.files import fresh_directory, put_in_place, readable
from fxprune._base.given import LARGEST
from fxprune.capturing.normalize.dtypes import renew_anchor
from fxprune.capturing.source import unwrapped
from fxprune.compiler.options import MODULE
from fxprune.data.example import TensorSpec
from fxprune.homing.places import numbers_in
from fxprune.homing.terms import Key
from fxprune.reporting.html import page
from fxprune.results.attached import attach, report
from fxprune.results.plan import Plan, check_fits
from fxprune.results.record import Report
from fxprune.rewriting.pruned import PrunedModule
from fxprune.storage import manifest
from fxprune.storage.graph import Role, Unstorable, describe, rebuild, tensors_of
from fxprune.storage.graph.measured import check_size
from fxprune.storage.manifest import CONSTANTS, GRAPH, MANIFEST, NUMBERS, PAGE, PLAN, README, REPORT, WEIGHTS
from fxprune.storage.shards import opened

#: Numbers in an example call: a batch of 3,000 images of 224 x 224 pixels.
_LARGEST_EXAMPLE = 1 << 29

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
        FxpruneError: fxprune did not make this model, or it has state that is no tensor.
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
    target = Path(directory).resolve()
    manifest.check_target(target)
    there = _names_in(files)
    tensors, ties = _tensors_once(pruned, there)
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
    source = readable(Path(directory).resolve())
    found = manifest.sealed(source)
    summary, plan = _report_of(found)
    if model is None:
        _check_example(plan)
        pruned = _load_graph(source, found)
        check_size(pruned, plan.example, GRAPH)
        return attach(pruned, summary)
    model = unwrapped(model)
    check_fits(plan, model)
    from fxprune.storage.application import apply

    _check_example(plan)
    with untrusted.reading(f"{PLAN}: the plan for this model"):
        pruned = apply(model, plan)
    if summary.form == MODULE:
        from fxprune.compiler.homecoming import home_again

        pruned = home_again(pruned, model, (), _numbers_of(found))
    with _weights(source, found) as weights:
        _fill(pruned, weights, found.ties)
    renew_anchor(pruned)
    return attach(pruned, summary)


def load_report(directory: str | os.PathLike[str]) -> Report:
    """Returns the report, and with it the plan, of the model that ``save`` wrote, without its weights.

    Raises:
        PlanError: no artifact, or a damaged or altered one.
        OSError: it cannot be read.
    """
    source = readable(Path(directory).resolve())
    return _report_of(manifest.sealed(source, tensors=False))[0]


def _report_of(found: manifest.Sealed) -> tuple[Report, Plan]:
    plan = Plan.from_json(found.texts[PLAN], what=PLAN)
    return Report.from_dict(untrusted.decode(found.texts[REPORT], REPORT), plan=plan, what=REPORT), plan


def _check_example(plan: Plan) -> None:
    """The example's zeros are made to capture the model: no file may ask for more memory than calls take."""
    size = sum(math.prod(leaf.shape) for leaf in plan.example.leaves if isinstance(leaf, TensorSpec))
    if size > _LARGEST_EXAMPLE:
        raise PlanError(f"{PLAN}: example: expected at most {_LARGEST_EXAMPLE} values, got {size}")


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


def _load_graph(source: Path, found: manifest.Sealed) -> PrunedModule:
    """Returns the module that the graph describes, with the tensors of both files, each in memory of its own."""
    if found.no_graph is not None:
        raise PlanError(
            f"{source}: it does not load by itself ({found.no_graph:.200}): give an instance of the original "
            "architecture, fxprune.load(directory, model)"
        )
    with _weights(source, found) as weights, opened(source / CONSTANTS, CONSTANTS) as constants:
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


def _linked(file: Path, target: Path) -> None:
    """Has a file lie in another place as well; a copy of it where the system knows no links."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


class _Weights:
    """The tensors of several files as those of one."""

    def __init__(self, files: Iterable[Any]) -> None:
        self._files = {name: file for file, names in [(file, file.keys()) for file in files] for name in names}

    def keys(self) -> Iterable[str]:
        """Returns their names."""
        return self._files.keys()

    def get_tensor(self, name: str) -> Tensor:
        """Returns a tensor, ``[...]``."""
        found: Tensor = self._files[name].get_tensor(name)
        return found


@contextmanager
def _weights(source: Path, found: manifest.Sealed) -> Iterator[_Weights]:
    with ExitStack() as stack:
        yield _Weights([stack.enter_context(opened(source / name, name)) for name in found.weights])


def _names_in(files: Iterable[Path]) -> set[str]:
    """Returns the names of the tensors in files."""
    found: set[str] = set()
    for path in files:
        with opened(path, path) as file:
            found |= set(file.keys())
    return found


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
