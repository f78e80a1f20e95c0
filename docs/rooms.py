"""The rooms of the package in their order, and the picture of them in architecture.md: ``python docs/rooms.py`` draws it.

A room imports only rooms above it in the table, modules of a room do not import each other in a circle, and nothing
that begins with an underscore leaves its room. ``tests/whole/test_rooms.py`` holds the code to that.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

PACKAGE = Path(__file__).parent.parent / "fxprune"

#: Where the picture is.
PICTURE = Path(__file__).parent / "rooms.svg"

#: Lowest first: each imports only what stands above it. The empty name is the package itself, its public names.
ROOMS = (
    "_base", "algebra", "data", "capturing", "runtimes", "results", "ops", "coupling", "twin", "rotation", "recovery", "scoring", "bridging", "budget",
    "rewriting", "homing", "reporting", "deployment", "latency", "compiler", "storage", "streaming", "training", "sparsity", "contrib", "", "cli",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name.

    Attributes:
        module: who imports, without the package's name.
        source: the module that it comes from, or the module that is imported.
        name: what is imported; empty for a module.
        line: where.
        late: it does not run when the module is imported: it stands in a function, or is for type checkers.
    """

    module: str
    source: str
    name: str
    line: int
    late: bool = False


def modules() -> dict[str, Path]:
    """Returns every module of the package by its name, without the package's own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports() -> Iterator[Import]:
    """Yields what the package imports of itself, wherever it stands: in functions and for types as well."""
    known = modules()
    for module, path in [*known.items(), ("", PACKAGE / "__init__.pyi")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        now = set(tree.body) if path.suffix == ".py" else set()
        for node in ast.walk(tree):
            late = node not in now
            if isinstance(node, ast.ImportFrom) and (node.level or f"{node.module}.".startswith("fxprune.")):
                source = (node.module or "").removeprefix("fxprune").removeprefix(".")
                for alias in node.names:
                    inner = f"{source}.{alias.name}".removeprefix(".")
                    found = (inner, "") if inner in known else (source, alias.name)
                    yield Import(module, *found, node.lineno, late)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if f"{alias.name}.".startswith("fxprune."):
                        source = alias.name.removeprefix("fxprune").removeprefix(".")
                        yield Import(module, source, "", node.lineno, late)


def room_of(module: str) -> str:
    """Returns the room of a module; empty for the package itself, which is run as the command line is."""
    return "cli" if module == "__main__" else module.partition(".")[0]


def upward() -> list[str]:
    """Returns the imports that break the order, in words."""
    place = {room: i for i, room in enumerate(ROOMS)}
    return [
        f"{i.module}:{i.line} imports {i.source} {i.name}"
        for i in imports()
        if place[room_of(i.source)] > place[room_of(i.module)]
    ]


def purpose(room: str) -> str:
    """Returns what a room is for, in its own words."""
    if not room:
        return "The public names."
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def picture() -> str:
    """Returns the rooms as SVG: a row each, and a dot in the column of every room that it imports; none lies above the diagonal."""
    edges = {(room_of(i.module), room_of(i.source)) for i in imports()}
    row, left, top, right = 24, 150, 120, 20
    side = row * len(ROOMS)
    width, height = left + side + 800, top + side + 10
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">',
        "<style>text{fill:#444}.d{fill:#3b6ea5}.s{fill:#ddd}.p{fill:#888}"
        "@media(prefers-color-scheme:dark){text{fill:#ccc}.d{fill:#7fb0e6}.s{fill:#444}.p{fill:#999}}</style>",
    ]
    for y, room in enumerate(ROOMS):
        name, at = room or "fxprune", top + y * row + 17
        x = left + y * row + 16
        parts.append(f'<text x="{left - 10}" y="{at}" text-anchor="end">{name}</text>')
        parts.append(f'<text transform="translate({x} {top - 8}) rotate(-60)">{name}</text>')
        parts.append(f'<text class="p" x="{left + side + right}" y="{at}">{escape(purpose(room))}</text>')
        for column, other in enumerate(ROOMS):
            kind = "s" if column == y else "d" if (room, other) in edges else ""
            if kind:
                cx, cy = left + column * row + 12, top + y * row + 12
                parts.append(f'<circle class="{kind}" cx="{cx}" cy="{cy}" r="{5 if kind == "d" else 3}"/>')
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print("\n".join(upward()) or f"{PICTURE.name}: no import goes up")
