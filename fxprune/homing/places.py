"""The integers of a model: tagged where they stand for one run, and changed for good in a copy.

Attributes of modules are looked at, tuples, lists and dicts in them, and objects that hold settings, such as a config.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.homing.terms import Key, Place, Tagged, Term

_OWN = frozenset(nn.Module().__dict__)
_DEPTH = 4

Change = Callable[[Place], Any]


@contextmanager
def tagged(model: nn.Module) -> Iterator[None]:
    """Puts integers that know their place in the place of all that ``model`` holds, and puts the old ones back on leaving.

    An object that several modules share is another one for each of them meanwhile, so that it shows who reads it.
    """
    undo: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for path, module in model.named_modules():
            for name, old in _settings(module):
                new = with_numbers(old, Place(path, (name,), 0), lambda place: Tagged(place.value, place))
                if new is not old:
                    undo.append((module.__dict__, name, old))
                    module.__dict__[name] = new
        yield
    finally:
        for attributes, name, old in reversed(undo):
            attributes[name] = old


def changed(model: nn.Module, values: Mapping[Place, Any], kinds: Collection[type] = (int,)) -> None:
    """Gives the numbers of some kinds at some places other values; an object that modules share stays shared where they agree."""
    wanted = {place.key: value for place, value in values.items()}

    def new_value(place: Place) -> Any:
        return wanted.get(place.key, place.value)

    agreed = _agreed(model, wanted, kinds)
    for path, module in model.named_modules():
        for name, old in _settings(module):
            if id(old) in agreed:
                module.__dict__[name] = agreed[id(old)]
            elif any(key[0] == path and key[1][0] == name for key in wanted):
                module.__dict__[name] = with_numbers(old, Place(path, (name,), 0), new_value, kinds)


def numbers_in(model: nn.Module, kinds: Collection[type] = (int, float)) -> dict[Key, Any]:
    """Returns the numbers of some kinds that the modules of a model hold."""
    found: dict[Key, Any] = {}

    def noted(place: Place) -> int:
        found[place.key] = place.value
        return place.value

    for path, module in model.named_modules():
        for name, value in _settings(module):
            with_numbers(value, Place(path, (name,), 0), noted, kinds)
    return found


def terms_in(model: nn.Module) -> dict[Key, Term]:
    """Returns the terms of the tagged integers that the modules of a model hold."""
    return {key: value.term for key, value in numbers_in(model, (Tagged,)).items()}


def _agreed(model: nn.Module, wanted: Mapping[Key, Any], kinds: Collection[type]) -> dict[int, Any]:
    """Returns, for each object that modules share and no two want otherwise, the one that all of them get, by its id."""
    holders: dict[int, list[tuple[str, str, Any]]] = {}
    for path, module in model.named_modules():
        for name, old in _settings(module):
            if is_object(old):
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
            found[key] = with_numbers(several[0][2], Place("", ("",), 0), partial(_of_one, one), kinds)
    return found


def _of_one(values: Mapping[tuple[str | int, ...], int], place: Place) -> int:
    return values.get(place.steps[1:], place.value)


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, value in list(module.__dict__.items()):
        if name not in _OWN and not name.startswith("__"):
            yield name, value


def is_object(value: Any) -> bool:
    """Returns whether a value is an object that holds settings: of a class of the user's or a library's, no module or function."""
    if not hasattr(value, "__dict__") or callable(value) or isinstance(value, (nn.Module, Tensor, type)):
        return False
    return type(value).__module__.partition(".")[0] not in ("builtins", "torch")


def with_numbers(value: Any, place: Place, new: Change, kinds: Collection[type] = (int,), depth: int = 0) -> Any:
    """Returns a value with other numbers of some kinds in it; itself where there are none, or they stay."""
    if type(value) in kinds:
        found = new(Place(place.module, place.steps, value))
        return value if found is value or (type(found) is int and found == value) else found
    if depth == _DEPTH:
        return value

    def inner(step: str | int, part: Any) -> Any:
        return with_numbers(part, Place(place.module, (*place.steps, step), 0), new, kinds, depth + 1)

    if type(value) in (tuple, list, torch.Size) or (isinstance(value, tuple) and hasattr(value, "_fields")):
        parts = [inner(i, part) for i, part in enumerate(value)]
        return value if all(a is b for a, b in zip(parts, value, strict=True)) else _like(value, parts)
    if type(value) is dict:
        changed = {k: inner(k, part) if isinstance(k, (str, int)) else part for k, part in value.items()}
        return _unless_same(value, changed)
    return _changed_object(value, inner) if is_object(value) else value


def _like(value: Any, parts: list[Any]) -> Any:
    """Returns a sequence of another's kind; a size of tensors holds plain integers alone."""
    if isinstance(value, torch.Size):
        return torch.Size(parts) if all(type(part) is int for part in parts) else tuple(parts)
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


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
