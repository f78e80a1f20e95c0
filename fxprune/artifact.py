"""Saves a pruned model to a directory and loads it again: JSON, safetensors and checksums, no pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fxprune import untrusted
from fxprune.capture.normalize.dtypes import renew_anchor
from fxprune.capture.source import unwrapped
from fxprune.errors import FxpruneError, PlanError
from fxprune.plan import Plan, check_fits
from fxprune.report import Report, attach, report

PLAN, WEIGHTS, REPORT, MANIFEST = "plan.json", "model.safetensors", "report.json", "manifest.json"

_CONTENTS = (PLAN, WEIGHTS, REPORT)
_FORMAT = "fxprune artifact"
_SCHEMA = 1


def save(pruned: nn.Module, directory: str | os.PathLike[str]) -> None:
    """Writes a pruned model; whatever interrupts it, ``load`` finds the old artifact or the new one, whole.

    The directory then holds ``plan.json``, ``report.json``, ``model.safetensors`` (every tensor once, ties
    noted) and ``manifest.json`` with the checksums. An artifact that is there already is replaced. Two processes
    must not save to one directory at a time.

    Args:
        pruned: what ``fxprune.compile`` or ``fxprune.load`` returned, trained further or not.
        directory: where to; it must not exist, or be empty, or hold an artifact.

    Raises:
        FxpruneError: fxprune did not make this model, or it has state that is no tensor.
        PlanError: the directory holds something else, or the model's example call has no JSON form.
        OSError: it cannot be written.
    """
    found = report(pruned)
    if found.plan is None:
        raise FxpruneError("the model's report has no plan, without which it could not be loaded again")
    target = Path(directory).resolve()
    check_target(target)
    plan, summary = found.plan.to_json(), json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n"
    tensors, ties = _tensors_once(pruned)
    target.parent.mkdir(parents=True, exist_ok=True)
    with fresh_directory(target) as fresh:
        (fresh / PLAN).write_text(plan, encoding="utf-8")
        (fresh / REPORT).write_text(summary, encoding="utf-8")
        save_file(tensors, fresh / WEIGHTS, metadata={"format": "pt"})
        manifest = {
            "format": _FORMAT,
            "schema": _SCHEMA,
            "files": {name: _fingerprint(fresh / name) for name in _CONTENTS},
            "ties": ties,
        }
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        for path in (*fresh.iterdir(), fresh):
            sync(path)
        put_in_place(fresh, target)
    sync(target.parent)


def load(directory: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Returns the pruned model that ``save`` wrote.

    Nothing of the files is executed. The model gives its architecture and stays as it is; the pruned tensors
    come from the files, in their dtype, on the model's device.

    Args:
        directory: what ``save`` was given.
        model: any instance of the original architecture.

    Raises:
        PlanError: no artifact, a damaged or altered one, or one of another model.
    """
    source = Path(directory).resolve()
    _recover(source)
    files, ties = _checked_manifest(source)
    plan = Plan.from_json(files[PLAN], what=PLAN)
    summary = Report.from_dict(untrusted.decode(files[REPORT], REPORT), plan=plan, what=REPORT)
    model = unwrapped(model)
    check_fits(plan, model)
    from fxprune.api import apply  # the pipeline imports this module

    pruned = apply(model, plan)
    _fill(pruned, source / WEIGHTS, ties)
    renew_anchor(pruned)
    return attach(pruned, summary)


def check_target(directory: str | os.PathLike[str]) -> None:
    """Makes sure that ``save`` may write there.

    Raises:
        PlanError: it is a file, or a directory that holds something other than an artifact.
    """
    target = Path(directory).resolve()
    if not target.exists():
        return
    if not target.is_dir():
        raise PlanError(f"{target}: expected a directory, got a file")
    others = sorted(path.name for path in target.iterdir() if path.name not in (*_CONTENTS, MANIFEST))
    if others:
        raise PlanError(
            f"{target}: it holds other files ({', '.join(others[:3])}): choose a new or empty directory"
        )


def _tensors_once(pruned: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns every tensor of the state under its first name, and for each tied name that first name."""
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
        # a copy where the storage is shared or only partly covered: the file holds plain tensors
        whole = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
        tensors[name] = (
            value.detach() if whole else value.detach().clone(memory_format=torch.contiguous_format)
        )
    return tensors, ties


def _identity(tensor: Tensor) -> Any:
    if not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.device, tensor.dtype, tuple(tensor.shape), tensor.stride()


@contextlib.contextmanager
def fresh_directory(target: Path) -> Iterator[Path]:
    """Yields a new directory beside the target; what is left of it at the end goes away."""
    fresh = target.with_name(f".{target.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)  # what a killed process left
    fresh.mkdir()
    try:
        yield fresh
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def put_in_place(fresh: Path, target: Path) -> None:
    """Renames a complete directory to its place; for a moment the old one waits under another name."""
    _recover(target)
    previous = _previous(target)
    if not target.exists():
        fresh.rename(target)
        return
    target.rename(previous)
    try:
        fresh.rename(target)
    except OSError:
        previous.rename(target)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _recover(target: Path) -> None:
    """Undoes a replacement that was interrupted half-way, or clears what one left behind."""
    previous = _previous(target)
    if not previous.is_dir():
        return
    if target.exists():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        previous.rename(target)


def _checked_manifest(source: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """Returns the JSON files' contents and the ties, once all the checksums match."""
    data = untrusted.decode(_read(source / MANIFEST), MANIFEST)
    if data.get("format") != _FORMAT:
        raise PlanError(f"{MANIFEST}: it is no {_FORMAT}")
    schema = untrusted.integer(data.get("schema"), f"{MANIFEST}: schema")
    if schema != _SCHEMA:
        raise PlanError(
            f"{MANIFEST}: format {schema} is not the one this fxprune reads ({_SCHEMA}): upgrade fxprune"
        )
    data = untrusted.record(data, MANIFEST, ("format", "schema", "files", "ties"))
    listed = untrusted.record(data["files"], f"{MANIFEST}: files", _CONTENTS)
    contents = {name: _read(source / name) for name in (PLAN, REPORT)}
    for name in _CONTENTS:
        entry = untrusted.record(listed[name], f"{MANIFEST}: {name}", ("bytes", "sha256"))
        found = _fingerprint(source / name) if name == WEIGHTS else _fingerprint_of(contents[name])
        if found["bytes"] != entry["bytes"]:
            raise PlanError(
                f"{name}: expected {entry['bytes']!r:.40} bytes, got {found['bytes']}: is the file whole?"
            )
        if found["sha256"] != entry["sha256"]:
            raise PlanError(
                f"{name}: its checksum does not match {MANIFEST}: it was changed after it was written"
            )
    return contents, untrusted.mapping_of(data["ties"], f"{MANIFEST}: ties", untrusted.string)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise PlanError(
            f"{path.parent}: {path.name} is missing: expected a directory that fxprune.save wrote"
        ) from error


def _fingerprint(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise PlanError(
            f"{path.parent}: {path.name} is missing: expected a directory that fxprune.save wrote"
        ) from error
    return {"bytes": path.stat().st_size, "sha256": digest}


def _fingerprint_of(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _fill(pruned: nn.Module, weights: Path, ties: Mapping[str, str]) -> None:
    """Copies the file's tensors into the module; they must be exactly the module's."""
    own = pruned.state_dict(keep_vars=True)
    try:
        with safe_open(weights, framework="pt") as file:
            names = set(file.keys())
            _check_names(own, names, ties)
            for name, tensor in own.items():
                _assign(name, tensor, file.get_tensor(ties.get(name, name)))
    except SafetensorError as error:
        raise PlanError(f"{weights.name}: it is no safetensors file ({error})") from error


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


def sync(path: Path) -> None:
    """Has the system write a file or directory out; not every system can for a directory."""
    with contextlib.suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
