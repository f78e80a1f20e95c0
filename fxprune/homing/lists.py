"""Lists of layers that get shorter, and what a model says of how many layers there are."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from fxprune.homing.constructing import SETTINGS, made_of
from fxprune.homing.places import changed, is_object, numbers_in, with_numbers
from fxprune.homing.terms import Key, Place


def shorten(model: nn.Module, paths: Sequence[str]) -> None:
    """Takes layers out of the lists of a model; those behind move up."""
    for container, names in _by_container(paths).items():
        held = model.get_submodule(container)
        left = renamed(held, names)
        held._modules = {new: held._modules[old] for old, new in left.items()}


def renamed(container: nn.Module, gone_names: Sequence[str]) -> dict[str, str]:
    """Returns the names of what is left of a list, and what they are then: numbers count anew."""
    names = list(container._modules)
    left = [name for name in names if name not in gone_names]
    numbered = names == [str(i) for i in range(len(names))]
    return {name: str(i) if numbered else name for i, name in enumerate(left)}


def moved(model: nn.Module, paths: Sequence[str]) -> dict[str, str]:
    """Returns where the modules of a model are, by where they were, once layers are taken out; nothing for what is gone."""
    by_container = _by_container(paths)
    new = {container: renamed(model.get_submodule(container), names) for container, names in by_container.items()}
    return {path: there for path, _ in model.named_modules() if (there := _moved(path, new)) is not None}


def _moved(path: str, new: Mapping[str, Mapping[str, str]]) -> str | None:
    parts: list[str] = []
    here: list[str] = []
    for name in path.split(".") if path else ():
        table = new.get(".".join(here))
        here.append(name)
        if table is not None and name not in table:
            return None
        parts.append(name if table is None else table[name])
    return ".".join(parts)


def _by_container(paths: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in paths:
        container, _, name = path.rpartition(".")
        found.setdefault(container, []).append(name)
    return found


def number_anew(model: nn.Module, paths: Sequence[str]) -> None:
    """Has layers that know their number in a list know the one that they are to have."""
    numbers = numbers_in(model, (int,))
    for container, names in _by_container(paths).items():
        held = model.get_submodule(container)
        order = list(held._modules)
        left = [name for name in order if name not in names]
        known: dict[Key, dict[str, int]] = {}
        for (path, steps), value in numbers.items():
            if (name := _child(container, path, held)) is not None:
                known.setdefault((path[len(f"{container}.{name}".removeprefix(".")) :], steps), {})[name] = value
        for (below, steps), values in known.items():
            first = values.get(order[0])
            if (
                len(order) > 1
                and first is not None
                and [values.get(n) for n in order] == [*range(first, first + len(order))]
            ):
                changed(model, dict(_numbered(container, below, steps, values, left, first)))


def _numbered(
    container: str, below: str, steps: tuple[str | int, ...], values: Mapping[str, int], left: Sequence[str], first: int
) -> Iterator[tuple[Place, int]]:
    for i, name in enumerate(left):
        path = f"{container}.{name}{below}".removeprefix(".")
        yield Place(path, steps, values[name]), first + i


def _child(container: str, path: str, held: nn.Module) -> str | None:
    """Returns the name of the child of a list in which a path lies."""
    if container and not path.startswith(f"{container}."):
        return None
    name = path[len(container) :].removeprefix(".").partition(".")[0]
    return name if name in held._modules else None


def set_counts(model: nn.Module, paths: Sequence[str]) -> None:
    """Has the settings of a model, of which its class makes its layers, say how many there are in lists that got shorter.

    Args:
        model: without the layers; it is changed.
        paths: where the layers were.
    """
    for container, names in _by_container(paths).items():
        settings, here = getattr(model, SETTINGS, None), f"{container}."
        if not is_object(settings):
            return
        now = len(model.get_submodule(container)._modules)
        wanted = {name for name in model.state_dict() if name.startswith(here)}
        for tried in _counted(settings, now + len(names), sorted(int(name) for name in names if name.isdigit())):
            try:
                made = {name for name in made_of(model, tried).state_dict() if name.startswith(here)}
            except Exception:  # of any class, at settings that it does not take
                continue
            if made == wanted:
                replaced(model, settings, tried)
                break


def _counted(settings: Any, before: int, places: Sequence[int]) -> Iterator[Any]:
    """Yields settings that may say of a list that it has fewer layers: one number is less, and lists of as many entries are cut."""
    root = Place("", (), 0)
    for cut in (_cut(settings, before, places), settings):
        numbers: dict[Place, None] = {}

        def noted(place: Place, into: dict[Place, None] = numbers) -> int:
            into[place] = None
            return place.value

        with_numbers(cut, root, noted)
        for found in [place for place in numbers if place.value == before]:
            yield with_numbers(cut, root, partial(_instead, found, before - len(places)))


def _instead(changing: Place, value: int, place: Place) -> int:
    return value if place == changing else place.value


def _cut(value: Any, before: int, places: Sequence[int]) -> Any:
    """Returns settings whose lists of as many entries as there were layers lack those of some."""
    if isinstance(value, (list, tuple)) and len(value) == before:
        return type(value)(part for i, part in enumerate(value) if i not in places)
    if not is_object(value):
        return value
    parts = {name: _cut(part, before, places) for name, part in vars(value).items()}
    if all(parts[name] is part for name, part in vars(value).items()):
        return value
    new = copy.copy(value)
    vars(new).update(parts)
    return new


def replaced(model: nn.Module, old: Any, new: Any) -> None:
    """Puts settings, and what they hold, in the place of others in all modules that hold them."""
    pairs = dict(_pairs(old, new))
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if id(value) in pairs:
                module.__dict__[name] = pairs[id(value)]


def _pairs(old: Any, new: Any) -> Iterator[tuple[int, Any]]:
    if old is not new and is_object(old):
        yield id(old), new
        for name, value in vars(old).items():
            yield from _pairs(value, vars(new)[name])
