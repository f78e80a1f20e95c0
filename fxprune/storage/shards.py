"""Applies a plan to safetensors files, one at a time: a model that is too large for memory never has to be loaded."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from fxprune._base.errors import PlanError
from fxprune._base.files import fresh_directory, put_in_place
from fxprune.results.plan import Plan
from fxprune.storage.files import found_files, opened

#: Ends the name of the file that says which shard holds which tensor, as transformers writes it.
_INDEX = ".index.json"


@dataclass(frozen=True, slots=True)
class Shards:
    """What was written.

    Attributes:
        files: the new files, one for each that came in.
        dropped: tensors of the input that the pruned model has no use for.
    """

    files: tuple[Path, ...]
    dropped: tuple[str, ...]


def apply_to_files(plan: Plan, files: str | os.PathLike[str], out: str | os.PathLike[str]) -> Shards:
    """Writes the pruned weights of a model whose weights lie in safetensors files; no more than one file is in memory.

    The result loads into the module that ``fxprune.apply`` makes of the same plan, on the meta device too:
    ``load_state_dict(..., assign=True)``. An index beside the files (``*.index.json``) is written anew.

    Args:
        plan: the plan.
        files: a file, or a pattern such as ``"in/*.safetensors"``.
        out: a directory that does not exist or is empty; it appears when it is complete.

    Raises:
        PlanError: no such files, two of one name, tensors that are missing, twice there or of another shape than the
            plan's, a directory in use, or a plan that takes more than slicing: layers that collapsed or were bridged, weights that are computed from others.
        OSError: it cannot be written.
    """
    target = Path(out).resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise PlanError(f"{out}: expected a new or empty directory")
    if plan.bridged or plan.collapsed:
        names = ", ".join((*plan.bridged, *plan.collapsed)[:3])
        raise PlanError(
            f"the plan removes whole layers ({names}), which changes others: apply it to a model, not to files"
        )
    if plan.computed:
        raise PlanError(
            f"the original computes weights from others ({', '.join(plan.computed[:3])}), which are plain once it is pruned: "
            "apply the plan to a model, not to files"
        )
    sources = found_files(files)
    indices = sorted({index for source in sources for index in source.parent.glob(f"*{_INDEX}")})
    _check_names([*sources, *indices])
    wanted = _places(plan, sources)
    target.parent.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, dict[str, int]] = {}
    with fresh_directory(target) as fresh:
        for source in sources:
            tensors = dict(_sliced(plan, source, wanted[source]))
            save_file(tensors, fresh / source.name, metadata={"format": "pt"})
            sizes[source.name] = {name: tensor.nbytes for name, tensor in tensors.items()}
        for index in indices:
            (fresh / index.name).write_text(_index(sizes), encoding="utf-8")
        put_in_place(fresh, target)
    dropped = [name for names in wanted.values() for name, keep in names.items() if not keep]
    return Shards(tuple(target / source.name for source in sources), tuple(sorted(dropped)))


def _check_names(paths: Sequence[Path]) -> None:
    """Makes sure that the files can lie in one directory."""
    for name, count in Counter(path.name for path in paths).items():
        if count > 1:
            raise PlanError(f"several files are called {name}, and what comes out lies in one directory: rename them")


def _places(plan: Plan, sources: Sequence[Path]) -> dict[Path, dict[str, bool]]:
    """Returns the tensors of each file and whether the plan knows them, all checked before anything is written."""
    places: dict[Path, dict[str, bool]] = {}
    shapes: dict[str, list[int]] = {}
    for source in sources:
        with opened(source, source) as file:
            names = file.keys()
            for name in names:
                if name in shapes:
                    raise PlanError(f"{source}: {name!r} is in another file as well")
                shapes[name] = file.get_slice(name).get_shape()
        places[source] = {name: name in plan.shapes for name in names}
    for name, shape in plan.shapes.items():
        if name not in shapes:
            raise PlanError(f"{name}: the plan's model has it, the files do not")
        if list(shape) != shapes[name]:
            raise PlanError(f"{name}: expected {list(shape)}, the files hold {shapes[name]}")
    return places


def _sliced(plan: Plan, source: Path, names: Mapping[str, bool]) -> Iterator[tuple[str, Tensor]]:
    with opened(source, source) as file:
        for name in (name for name, known in names.items() if known):
            tensor: Tensor = file.get_tensor(name)
            for axis, kept in plan.keep.get(name, {}).items():
                tensor = tensor.index_select(axis, torch.tensor(kept))
            factor = plan.scaled.get(name)
            yield name, tensor.contiguous() if factor is None else tensor * factor


def _index(sizes: Mapping[str, Mapping[str, int]]) -> str:
    total = sum(size for file in sizes.values() for size in file.values())
    where = {name: file for file, tensors in sizes.items() for name in tensors}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}, indent=2) + "\n"
