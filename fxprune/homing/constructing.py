"""One construction of a model's class from its settings, on no device, in which every size knows the settings that it comes from.

A class that takes one object of settings, ``type(model)(model.config)``, makes all its layers of it: what ties their widths.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune._base.errors import RestoreError, brief
from fxprune._base.modes import random_states_kept
from fxprune.homing.naming import sizes_named
from fxprune.homing.places import is_object, numbers_in, terms_in, with_numbers
from fxprune.homing.solving import solve_terms
from fxprune.homing.terms import Key, Place, Tagged, Term, evaluate, floated, noticed

#: The attribute that holds the settings, and the argument of the class.
SETTINGS = "config"
#: Stands for a setting that is None, to see which sizes it would give: small, since it may be a number of layers.
_SOME = 13

Steps = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Construction:
    """What a class makes of its settings.

    Attributes:
        shapes: of each parameter and buffer, by name, the terms of its sizes.
        integers: what the modules keep of the settings.
        equal: what the class compares and finds equal, or makes a number of that it keeps.
        filled: settings that were None, as what they stand for.
    """

    shapes: Mapping[str, tuple[Term, ...]]
    integers: Mapping[Key, Term]
    equal: tuple[tuple[Term, Term], ...]
    filled: Mapping[Steps, int]

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of all parameters and buffers."""
        return {name: tuple(_value(term) for term in terms) for name, terms in self.shapes.items()}


def constructed(model: nn.Module) -> Construction:
    """Returns what the class of a model makes of the model's settings.

    Raises:
        RestoreError: it takes no settings, or makes something else of them.
    """
    settings, name = getattr(model, SETTINGS, None), type(model).__name__
    if settings is None or not hasattr(settings, "__dict__"):
        raise RestoreError(f"expected a model that its class makes of one object of settings, {name}.{SETTINGS}")
    try:
        plain = _construct(model, settings, {})
    except Exception as error:  # of any class
        raise RestoreError(f"{name}({name}.{SETTINGS}) raises {brief(error)}") from error
    filled = {
        steps: size for steps in _unset(settings) if (size := _stands_for(model, settings, steps, plain)) is not None
    }
    with contextlib.suppress(Exception):  # of any class, which may not take two at once
        again = _construct(model, settings, filled)
        if again.sizes() == plain.sizes():
            return again
    return plain


def settings_of(model: nn.Module) -> Any:
    """Returns the settings of which the class of a model makes one of the same shapes.

    Raises:
        RestoreError: there are none; says which tensor they cannot make.
    """
    settings = _settings_for(model)
    found = constructed(with_settings(model, settings)).sizes()
    for name, shape in sizes_of(model).items():
        if (made := found.get(name, ())) != shape:
            raise RestoreError(
                f"{name} is {list(shape)}, where the settings of {type(model).__name__} make {list(made)}"
            )
    return settings


def with_settings(model: nn.Module, settings: Any) -> nn.Module:
    """Returns a view of a model, with the same tensors and other settings."""
    view = copy.copy(model)
    view.__dict__[SETTINGS] = settings
    return view


def sizes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of what a model saves, by name."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _settings_for(model: nn.Module) -> Any:
    """Returns settings of which the class of a model makes tensors of the model's shapes, as far as settings can say them.

    Of several, those with which its modules hold the integers that they hold now.
    """
    made, wanted = constructed(model), sizes_of(model)
    shapes: list[tuple[Term, int]] = [
        (term, size)
        for name, shape in wanted.items()
        for term, size in zip(made.shapes.get(name, ()), shape, strict=False)
    ]
    integers = _own_numbers(model, int)
    held = [(term, integers[key]) for key, term in made.integers.items() if key in integers]
    values, conflicts = solve_terms([*held, *shapes])
    if conflicts:
        values, _ = solve_terms(shapes)
    wanted_here = {place.key: value for place, value in values.items()}
    settings = with_numbers(
        getattr(model, SETTINGS), Place("", (SETTINGS,), 0), lambda place: wanted_here.get(place.key, place.value)
    )
    for steps in made.filled:
        if (value := wanted_here.get(("", (SETTINGS, *steps)))) is not None:
            settings = _with(settings, steps, value)
    return _with_floats(model, settings)


def _own_numbers(model: nn.Module, kind: type) -> dict[Key, Any]:
    """Returns the numbers that modules hold, but those of their settings."""
    return {key: value for key, value in numbers_in(model, (kind,)).items() if key[1][0] != SETTINGS}


def made_of(model: nn.Module, settings: Any) -> nn.Module:
    """Returns what the class of a model makes of some settings, on no device."""
    with torch.device("meta"), random_states_kept():
        made: nn.Module = type(model)(settings)
    return made


def _with_floats(model: nn.Module, settings: Any) -> Any:
    """Returns settings with other floats where all layers that hold one hold another one now, such as an eps."""
    try:
        made, now = _own_numbers(made_of(model, settings), float), _own_numbers(model, float)
    except Exception:  # of any class
        return settings
    others: dict[float, set[float]] = {}
    for key, value in made.items():
        others.setdefault(value, set()).add(now.get(key, value))

    def new(place: Place) -> Any:
        wanted = others.get(place.value, {place.value})
        return next(iter(wanted)) if len(wanted) == 1 else place.value

    return with_numbers(settings, Place("", (SETTINGS,), 0), new, (float,))


def _construct(model: nn.Module, settings: Any, filled: Mapping[Steps, int]) -> Construction:
    own = copy.copy(settings)
    for steps, value in filled.items():
        own = _with(own, steps, value)
    tags = with_numbers(own, Place("", (SETTINGS,), 0), lambda place: Tagged(place.value, place))
    equal: list[tuple[Term, Term]] = []
    floats: list[Term] = []
    made = _Made()
    with noticed(lambda a, b: equal.append((a, b))), floated(floats.append), random_states_kept():
        tags = _checked(tags)
        with torch.device("meta"), made:
            new = type(model)(tags)
    shapes = {name: made.terms(tensor) for name, tensor in _tensors(new)}
    equal += _scales(new, floats)
    return Construction(shapes, terms_in(new), tuple(dict.fromkeys(equal)), dict(filled))


def _scales(made: nn.Module, floats: Sequence[Term]) -> Iterator[tuple[Term, int]]:
    """Yields terms that must stay what they are, as a module holds a number made of them: ``head_dim**-0.5``, ``width**0.5``."""
    held = {value for key, value in numbers_in(made, (float,)).items() if key[1][0] != SETTINGS}
    for term in dict.fromkeys(floats):
        size = _value(term)
        roots = (size, 1 / size, size**0.5, size**-0.5) if size > 1 else ()
        if any(math.isclose(root, value, rel_tol=1e-9) for root in roots for value in held):
            yield term, size


def _checked(settings: Any) -> Any:
    """Returns settings made anew of what they say, as their reader would, so that what their class checks is seen."""
    try:
        return type(settings).from_dict(settings.to_dict())
    except Exception:  # of any class, which may have no such methods
        return settings


class _Made(TorchFunctionMode):
    """Sees of which terms the sizes of new tensors are."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, dict[int, Term]] = {}
        self.kept: list[Tensor] = []  # so that no other storage gets the same number

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for term, tensor, dim in sizes_named(func, args, kwargs or {}, result):
            self.kept.append(tensor)
            self.found.setdefault(_storage(tensor), {})[dim % tensor.dim()] = term
        return result

    def terms(self, tensor: Tensor) -> tuple[Term, ...]:
        """Returns the terms of the sizes of a tensor, ``[...]``, or the sizes."""
        terms = self.found.get(_storage(tensor), {})
        pairs = ((terms.get(dim, size), size) for dim, size in enumerate(tensor.shape))
        return tuple(term if _value(term) == size else size for term, size in pairs)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _unset(settings: Any, before: Steps = ()) -> Iterator[Steps]:
    """Yields where settings, and settings in them, are None."""
    for name, value in vars(settings).items():
        if value is None and not name.startswith("_"):
            yield (*before, name)
        elif is_object(value) and len(before) < 2:
            yield from _unset(value, (*before, name))


def _with(settings: Any, steps: Steps, value: int) -> Any:
    """Returns settings, copied, with a value of one of them."""
    name = str(steps[0])
    new = copy.copy(settings)
    setattr(new, name, value if len(steps) == 1 else _with(getattr(settings, name), steps[1:], value))
    return new


def _stands_for(model: nn.Module, settings: Any, steps: Steps, plain: Construction) -> int | None:
    """Returns what a setting that is None comes to: the one size that it would give otherwise; None if it gives none, or several."""
    try:
        tried = _construct(model, settings, {steps: _SOME})
    except Exception:  # of any class, of a setting that is something else
        return None
    place = Place("", (SETTINGS, *steps), _SOME)
    sizes = {
        _value(plain.shapes[name][dim])
        for name, terms in tried.shapes.items()
        for dim, term in enumerate(terms)
        if term == place and name in plain.shapes
    }
    return sizes.pop() if len(sizes) == 1 else None


def _value(term: Term) -> int:
    found = evaluate(term, lambda leaf: leaf.value)
    assert found is not None  # it was computed before
    return int(found)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
