"""What an artifact's directory holds, and the checksums that tell whether it is as it was written."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxprune._base import untrusted
from fxprune._base.errors import PlanError

PLAN, WEIGHTS, REPORT, MANIFEST = "plan.json", "model.safetensors", "report.json", "manifest.json"

#: The graph, and the tensors that it reads and the state does not hold; absent where the model is no single graph.
GRAPH, CONSTANTS = "graph.json", "constants.safetensors"

#: The numbers that the modules of a model in its own class hold.
NUMBERS = "numbers.json"

#: For people; nothing is read from them.
README, PAGE = "README.md", "report.html"

#: Every name that an artifact may hold.
FILES = (PLAN, WEIGHTS, REPORT, GRAPH, CONSTANTS, NUMBERS, README, PAGE, MANIFEST)

#: Weights may lie in several files instead of one.
_PART = re.compile(r"model-[0-9]{5}\.safetensors")

_FORMAT = "fxprune artifact"

#: 1: without a graph. 2: the graph, or why there is none.
_SCHEMAS = (1, 2)


@dataclass(frozen=True, slots=True)
class Sealed:
    """What the manifest vouches for.

    Attributes:
        texts: the contents of the JSON files, by name.
        ties: every tied name of the state to the name that its tensor has in the file.
        no_graph: why the model has to be given; None if there is a graph.
        weights: the files of the weights.
    """

    texts: Mapping[str, bytes]
    ties: Mapping[str, str]
    no_graph: str | None
    weights: tuple[str, ...]


def is_weights(name: str) -> bool:
    """Returns whether a file of this name holds weights."""
    return name == WEIGHTS or _PART.fullmatch(name) is not None


def part(number: int) -> str:
    """Returns the name of one of several files of weights."""
    return f"model-{number:05}.safetensors"


def seal(directory: Path, ties: Mapping[str, str], no_graph: str | None) -> None:
    """Writes the manifest of the files that are in the directory."""
    manifest = {
        "format": _FORMAT,
        "schema": _SCHEMAS[-1],
        "files": {
            name: _fingerprint(directory / name) for name in _names(no_graph, [p.name for p in directory.iterdir()])
        },
        "ties": ties,
        "no_graph": no_graph,
    }
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def sealed(directory: Path, *, tensors: bool = True) -> Sealed:
    """Returns what is there, once all the checksums match.

    Args:
        directory: of an artifact.
        tensors: False leaves the files of tensors alone.

    Raises:
        PlanError: no artifact, one of a newer version, or one whose files are missing or were changed.
    """
    data = untrusted.decode(untrusted.read_file(directory / MANIFEST), MANIFEST)
    if data.get("format") != _FORMAT:
        raise PlanError(f"{MANIFEST}: it is no {_FORMAT}")
    schema = untrusted.check_schema(data.get("schema"), MANIFEST, _SCHEMAS)
    data = untrusted.record(
        data, MANIFEST, ("format", "schema", "files", "ties", *(("no_graph",) if schema > 1 else ()))
    )
    no_graph = data.get("no_graph", "it was written by an older fxprune, without its graph")
    no_graph = untrusted.maybe(untrusted.string)(no_graph, f"{MANIFEST}: no_graph")
    names = _names(no_graph, untrusted.mapping(data["files"], f"{MANIFEST}: files"))
    listed = untrusted.record(data["files"], f"{MANIFEST}: files", names)
    weights = tuple(name for name in names if is_weights(name))
    texts = {name: untrusted.read_file(directory / name) for name in names if name not in weights and name != CONSTANTS}
    for name in names:
        if name in texts or tensors:
            found = _fingerprint_of(texts[name]) if name in texts else _fingerprint(directory / name)
            _check(name, listed[name], found)
    return Sealed(texts, untrusted.mapping_of(data["ties"], f"{MANIFEST}: ties", untrusted.string), no_graph, weights)


def check_target(directory: str | os.PathLike[str]) -> None:
    """Makes sure that ``save`` may write there.

    Raises:
        PlanError: it is a file, or a directory that holds something other than a whole artifact, as it was written.
    """
    target = Path(directory)
    if not target.exists():
        return
    if not target.is_dir():
        raise PlanError(f"{target}: expected a directory, got a file")
    names = sorted(path.name for path in target.iterdir())
    if not names:
        return
    known = [name for name in names if name in FILES or is_weights(name)] if MANIFEST in names else []
    others = [name for name in names if name not in known]
    if others:
        raise PlanError(f"{target}: it holds other files ({', '.join(others[:3])}): choose a new or empty directory")
    try:
        listed = sealed(target).weights
    except PlanError as error:
        raise PlanError(
            f"{target}: it holds no artifact as fxprune wrote it ({error}): choose a new or empty directory"
        ) from error
    if unlisted := [name for name in names if is_weights(name) and name not in listed]:
        raise PlanError(f"{target}: {unlisted[0]} is not of the artifact there: choose a new or empty directory")


def _names(no_graph: str | None, there: Collection[Any]) -> tuple[str, ...]:
    """Returns the files that an artifact vouches for, of those that are there."""
    numbers = (NUMBERS,) if NUMBERS in there else ()
    parts = sorted(name for name in there if isinstance(name, str) and _PART.fullmatch(name))
    weights = (WEIGHTS,) if WEIGHTS in there or not parts else ()
    return (PLAN, *weights, *parts, REPORT, *((GRAPH, CONSTANTS) if no_graph is None else numbers))


def _check(name: str, listed: Any, found: Mapping[str, Any]) -> None:
    entry = untrusted.record(listed, f"{MANIFEST}: {name}", ("bytes", "sha256"))
    if found["bytes"] != entry["bytes"]:
        raise PlanError(f"{name}: expected {entry['bytes']!r:.40} bytes, got {found['bytes']}: is the file whole?")
    if found["sha256"] != entry["sha256"]:
        raise PlanError(f"{name}: its checksum does not match {MANIFEST}: it was changed after it was written")


def _fingerprint(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise untrusted.missing(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _fingerprint_of(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
