"""The record of a benchmark run: rows with the machine, versions, seed and command that gave them."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from . import ROOT

VARIABLE = "FXPRUNE_RESULTS"
QUICK = "-quick"  # what the name of a quick run's record ends with
PACKAGES = ("torch", "torchvision", "transformers", "torch-pruning", "fxprune", "numpy")

Row = Mapping[str, Any]


def folder() -> Path:
    """Returns where records are written: ``$FXPRUNE_RESULTS``, or ``benchmarks/results``."""
    return Path(os.environ.get(VARIABLE) or ROOT / "benchmarks" / "results")


def table(rows: Sequence[Row], style: str = "simple") -> str:
    """Returns the rows as text; the first row's keys are the columns, a missing value is blank."""
    return tabulate([dict(row) for row in rows], headers="keys", tablefmt=style, missingval="", floatfmt=".4g")


def record(name: str, rows: Sequence[Row], *, title: str, seed: int | None = None, notes: Sequence[str] = ()) -> str:
    """Writes ``NAME.json`` and ``NAME.md`` to `folder`, and returns the table as text.

    Args:
        name: file name without suffix.
        rows: one mapping for each line; values are plain (text, numbers, booleans, None).
        title: one sentence: what the table answers.
        seed: the seed the run took, if any.
        notes: what a reader must know to judge the figures.
    """
    folder().mkdir(exist_ok=True)
    if name.endswith(QUICK):
        notes = [*notes, "A quick run, of less than the text above says: no result."]
    context = {
        "title": title,
        "command": " ".join(["python", _program(), *map(_without_folder, sys.argv[1:])]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seed": seed,
        "machine": machine(),
        "versions": versions(),
        "notes": list(notes),
    }
    plain = [{key: _plain(value) for key, value in row.items()} for row in rows]
    (folder() / f"{name}.json").write_text(json.dumps({**context, "rows": plain}, indent=1, allow_nan=False) + "\n")
    (folder() / f"{name}.md").write_text(_markdown(context, rows))
    return table(rows)


def previous(name: str) -> list[dict[str, Any]]:
    """Returns the rows of an earlier record of that name, none if there is none."""
    path = folder() / f"{name}.json"
    return list(json.loads(path.read_text())["rows"]) if path.exists() else []


def machine() -> dict[str, Any]:
    """Returns processor model, cores, threads that torch uses, memory in GiB and system of this machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 if hasattr(os, "sysconf") else None
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory and round(memory, 1),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of the packages that the figures depend on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _program() -> str:
    path = Path(sys.argv[0]).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def _without_folder(argument: str) -> str:
    """Returns an argument as anyone could type it: of an absolute path only the name."""
    return Path(argument).name if Path(argument).is_absolute() else argument


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _markdown(context: Mapping[str, Any], rows: Sequence[Row]) -> str:
    cpu, found = context["machine"], ", ".join(f"{k} {v}" for k, v in context["versions"].items())
    seed = "" if context["seed"] is None else f", seed {context['seed']}"
    lines = [
        f"# {context['title']}",
        "",
        table(rows, "github"),
        "",
        *(f"- {note}" for note in context["notes"]),
        f"- `{context['command']}`, {context['date']}{seed}; {cpu['cpu']}, {cpu['cores']} cores, "
        f"{cpu['threads']} threads; python {cpu['python']}, {found}.",
        "",
    ]
    return "\n".join(lines)
