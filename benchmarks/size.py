"""How large the package is: the core, which prunes, and the rim around it, room by room; beside an earlier revision.

Needs no data. ``python benchmarks/size.py [--against REVISION]``
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from common import ROOT
from common.cli import begin, guarded, name_of, parser
from common.counting import File, Function, count
from common.results import record
from common.revisions import PACKAGE, unpacked

#: The rooms that a model goes through to become smaller; all others are the rim.
CORE = ("algebra", "capturing", "ops", "coupling", "twin", "recovery", "scoring", "bridging", "budget", "rewriting")

#: Where folders and files went that stood elsewhere before there were rooms; the longest match counts.
BEFORE = {
    "algebra": "axes channels",
    "capturing": "capture captured_inputs",
    "ops": "rules rewrite/modules",
    "coupling": "coupling grouping blocks branches constants",
    "twin": "verify",
    "recovery": "recover",
    "scoring": "scores",
    "bridging": "rewrite/bridge rewrite/span",
    "budget": "budget constraints cost depth pools solve latency/setting",
    "rewriting": "rewrite plan",
    "_base": "errors extras files paths untrusted",
    "data": "batch data example",
    "reporting": "by_layer distribution fidelity html points record report report_text tables latency/record",
    "runtimes": "exporting generation latency/backends",
    "latency": "latency",
    "compiler": "api arguments explain finish islands iterate put_back stages sweep",
    "storage": "artifact manifest shards stored",
    "training": "training",
    "contrib": "demo",
    "cli": "cli",
    "": "__init__",
}


def files_of(tree: Path) -> dict[str, str]:
    """Returns the text of every Python file of the package in a tree, by its path in the package."""
    folder = tree / PACKAGE
    paths = sorted([*folder.rglob("*.py"), *folder.rglob("*.pyi")])
    return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in paths}


def rooms_of(files: Mapping[str, str]) -> dict[str, list[File]]:
    """Returns the files of each room, by path; those of a revision without rooms where their successors stand."""
    rooms = any(path.startswith("_base/") for path in files)
    found: dict[str, list[File]] = {}
    for path, text in files.items():
        room = path.rpartition("/")[0].partition("/")[0] if rooms else former_room(path)
        found.setdefault(room, []).append(count(path, text))
    return found


def former_room(path: str) -> str:
    """Returns where a file of the old layout went."""
    place = {name: room for room, names in BEFORE.items() for name in names.split()}
    path = path.removesuffix(".py")
    for name in (path, *(parent.as_posix() for parent in PurePosixPath(path).parents)):
        if name in place:
            return place[name]
    raise SystemExit(f"no room is known for {PACKAGE}/{path}.py: add it to BEFORE in benchmarks/size.py")


def figures(files: Sequence[File]) -> dict[str, int]:
    """Returns what is counted of some files."""
    functions = _functions(files)
    return {
        "files": len(files),
        "lines": sum(f.lines for f in files),
        "code": sum(f.code for f in files),
        "statements": sum(f.statements for f in files),
        "median file": round(statistics.median(f.lines for f in files)),
        "largest file": max(f.lines for f in files),
        "median function": round(statistics.median(f.code for f in functions)) if functions else 0,
        "largest function": max((f.code for f in functions), default=0),
        "most parameters": max((f.parameters for f in functions), default=0),
        "fmt: skip": sum(f.skips for f in files),
    }


def _functions(files: Sequence[File]) -> list[Function]:
    return [function for file in files for function in file.functions]


def parts_of(rooms: Mapping[str, list[File]]) -> dict[str, list[File]]:
    """Returns the files of core, rim and both."""
    core = [file for room in CORE for file in rooms.get(room, [])]
    rim = [file for room, files in rooms.items() if room not in CORE for file in files]
    return {"core": core, "rim": rim, "all": core + rim}


def by_room(rooms: Mapping[str, list[File]], then: Mapping[str, list[File]] | None) -> Iterator[dict[str, Any]]:
    """Yields a line for each room, core first; beside its lines of code what they were."""
    for room in sorted({*rooms, *(then or {})}, key=lambda room: (room not in CORE, room)):
        files, before = rooms.get(room, []), (then or {}).get(room, [])
        line = {"part": "core" if room in CORE else "rim", "room": room or PACKAGE}
        yield line | (figures(files) if files else {}) | ({} if then is None else _change(files, before))


def _change(files: Sequence[File], before: Sequence[File]) -> dict[str, int]:
    then = sum(f.code for f in before)
    return {"code then": then, "more": sum(f.code for f in files) - then}


def totals(
    rooms: Mapping[str, list[File]], then: Mapping[str, list[File]] | None, revision: str
) -> Iterator[dict[str, Any]]:
    """Yields a line for core, rim and both; after each what it was, and the difference."""
    before = None if then is None else parts_of(then)
    for part, files in parts_of(rooms).items():
        now = figures(files)
        yield {"part": part, "room": "total", **now}
        if before is not None:
            past = figures(before[part])
            yield {"part": part, "room": revision, **past}
            yield {"part": part, "room": "difference", **{key: now[key] - past[key] for key in now}}


def extremes(parts: Mapping[str, Sequence[File]]) -> Iterator[str]:
    """Yields in words which file and which functions of core and rim are the largest."""
    for part in ("core", "rim"):
        file = max(parts[part], key=lambda f: f.lines)
        longest = max(_functions(parts[part]), key=lambda f: f.code)
        widest = max(_functions(parts[part]), key=lambda f: f.parameters)
        yield f"{part}: {file.name} is the largest file, {longest.name} the longest function, {widest.name} takes most."


def main() -> None:
    """Prints and records the table."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--against", metavar="REVISION", help="a revision of the repository to compare with")
    options = begin(made)
    rooms, then = rooms_of(files_of(ROOT)), None
    if options.against:
        with unpacked(options.against) as tree:
            then = rooms_of(files_of(tree))
    rows = [*by_room(rooms, then), *totals(rooms, then, options.against or "")]
    notes = [
        "Code: lines that are neither blank nor comment nor docstring. A file's size is all its lines; a function's its "
        "lines of code from its def on. Statements do not depend on how lines are broken. Parameters: without "
        "self and cls.",
        f"Core: {', '.join(CORE)}. Rim: the rest.",
        *extremes(parts_of(rooms)),
    ]
    if then is not None:
        notes.append("A revision without rooms is counted by where its modules went.")
    print(record(name_of("size", options), rows, title="How large the package is, core and rim", notes=notes))


if __name__ == "__main__":
    guarded(main)
