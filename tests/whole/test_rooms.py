"""The order of the rooms: no import up, no circle, nothing private across a wall, no module that a function hides."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType

import networkx as nx

import fxprune


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


rooms = load(Path(__file__).parents[2] / "docs" / "rooms.py")


def test_every_folder_is_a_room_and_says_what_it_is_for() -> None:
    found = {path.parent.name for path in rooms.PACKAGE.glob("*/__init__.py")}
    assert found == set(rooms.ROOMS) - {""}
    assert {path.name for path in rooms.PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    for room in found:
        assert inspect.getdoc(importlib.import_module(f"fxprune.{room}"))


def test_no_import_goes_up() -> None:
    assert rooms.upward() == []


def test_the_order_would_be_noticed(monkeypatch) -> None:
    monkeypatch.setattr(rooms, "ROOMS", tuple(reversed(rooms.ROOMS)))
    assert len(rooms.upward()) > 100


def test_nothing_private_leaves_its_room() -> None:
    across = [i for i in rooms.imports() if rooms.room_of(i.source) != rooms.room_of(i.module)]
    named = [part for i in across for part in (*i.source.split(".")[1:], i.name) if part.startswith("_")]
    assert len(across) > 200 and named == []


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = nx.DiGraph((i.module, i.source) for i in rooms.imports() if not i.late)
    assert list(nx.simple_cycles(graph)) == []


def test_no_module_has_the_name_of_a_public_function() -> None:
    functions = {name for name in fxprune.__all__ if inspect.isfunction(getattr(fxprune, name))}
    parts = {part for module in rooms.modules() for part in module.split(".")}
    assert len(functions) > 20 and functions & parts == set()


def test_the_picture_is_of_these_rooms() -> None:
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.picture(), "run: python docs/rooms.py"
    assert f"({rooms.PICTURE.name})" in (rooms.PICTURE.parent / "architecture.md").read_text(encoding="utf-8")
