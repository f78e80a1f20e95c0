"""The integers of a model: tagged where they stand for one run, and changed for good in a copy.

Attributes of modules are looked at, tuples, lists and dicts in them, and objects that hold settings, such as a config.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from fxprune.homing.terms import Place, Tagged

_OWN = frozenset(nn.Module().__dict__)
_DEPTH = 4

Change = Callable[[Place], int]


@contextmanager
def tagged(model: nn.Module) -> Iterator[None]:
    """Puts integers that know their place in the place of all that ``model`` holds, and puts the old ones back on leaving.

    An object that several modules share is another one for each of them meanwhile, so that it shows who reads it.
    """
    undo: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for path, module in model.named_modules():
            for name, old in _settings(module):
                new = _changed(old, Place(path, (name,), 0), lambda place: Tagged(place.value, place))
                if new is not old:
                    undo.append((module.__dict__, name, old))
                    module.__dict__[name] = new
        yield
    finally:
        for attributes, name, old in reversed(undo):
            attributes[name] = old


def changed(model: nn.Module, values: Mapping[Place, int]) -> None:
    """Gives the integers at some places other values; an object that modules share stays shared where they agree."""
    wanted = {(place.module, place.steps): value for place, value in values.items()}

    def new_value(place: Place) -> int:
        return wanted.get((place.module, place.steps), place.value)

    agreed = _agreed(model, wanted)
    for path, module in model.named_modules():
        for name, old in _settings(module):
            if id(old) in agreed:
                module.__dict__[name] = agreed[id(old)]
            elif any(key[0] == path and key[1][0] == name for key in wanted):
                module.__dict__[name] = _changed(old, Place(path, (name,), 0), new_value)


def _agreed(model: nn.Module, wanted: Mapping[tuple[str, tuple[str | int, ...]], int]) -> dict[int, Any]:
    """Returns, for each object that modules share and no two want otherwise, the one that all of them get, by its id."""
    holders: dict[int, list[tuple[str, str, Any]]] = {}
    for path, module in model.named_modules():
        for name, old in _settings(module):
            if _is_object(old):
                holders.setdefault(id(old), []).append((path, name, old))
    found = {}
    for key, several in holders.items():
        asked: dict[tuple[str | int, ...], set[int]] = {}
        for path, name, _ in several:
            for (module_path, steps), value in wanted.items():
                if module_path == path and steps[0] == name:
                    asked.setdefault(steps[1:], set()).add(value)
        if asked and all(len(values) == 1 for values in asked.values()):
            one = {steps: next(iter(values)) for steps, values in asked.items()}
            found[key] = _changed(several[0][2], Place("", ("",), 0), partial(_of_one, one))
    return found


def _of_one(values: Mapping[tuple[str | int, ...], int], place: Place) -> int:
    return values.get(place.steps[1:], place.value)


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in list(module.__dict__.items()):
        if name not in _OWN and not name.startswith("__"):
            yield name, value


def _is_object(value: Any) -> bool:
    """Returns whether a value is an object that holds settings: of a class of the user's or a library's, no module or function."""
    if not hasattr(value, "__dict__") or callable(value) or isinstance(value, (nn.Module, Tensor, type)):
        return False
    return type(value).__module__.partition(".")[0] not in ("builtins", "torch")


def _changed(value: Any, place: Place, new: Change, depth: int = 0) -> Any:
    """Returns a value with other integers in it; itself where there are none, or they stay."""
    if type(value) is int:
        found = new(Place(place.module, place.steps, value))
        return value if type(found) is int and found == value else found
    if depth == _DEPTH:
        return value

    def inner(step: str | int, part: Any) -> Any:
        return _changed(part, Place(place.module, (*place.steps, step), 0), new, depth + 1)

    if type(value) in (tuple, list):
        parts = [inner(i, part) for i, part in enumerate(value)]
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else type(value)(parts)
    if type(value) is dict:
        return _unless_same(value, {k: inner(k, part) if isinstance(k, str) else part for k, part in value.items()})
    return _changed_object(value, inner) if _is_object(value) else value


def _changed_object(value: Any, inner: Callable[[str | int, Any], Any]) -> Any:
    parts = {name: inner(name, part) for name, part in vars(value).items()}
    if all(part is vars(value)[name] for name, part in parts.items()):
        return value
    try:
        new = copy.copy(value)
    except Exception:  # an object of any class, which may refuse
        return value
    vars(new).update(parts)
    return new


def _unless_same(old: dict[Any, Any], new: dict[Any, Any]) -> dict[Any, Any]:
    return old if all(new[key] is old[key] for key in old) else new
