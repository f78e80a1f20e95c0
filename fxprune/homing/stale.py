"""Integers of a model that were a width, and that no call has read: nobody can tell whether they should be another one now."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType

from torch import nn

from fxprune.homing.places import numbers_in
from fxprune.homing.reading import Readings
from fxprune.homing.terms import Place, leaves

#: Smaller numbers are seldom widths.
_LEAST = 3


def unread_widths(
    model: nn.Module,
    home: nn.Module,
    readings: Readings,
    there: Mapping[str, str],
    stay: Mapping[str, Collection[int]] = MappingProxyType({}),
) -> list[str]:
    """Returns the integers of a restored model that were the width of its tensors, which is another now, and that nothing has read.

    Args:
        model: the original.
        home: what is left of it.
        readings: what the calls of the original read.
        there: where its modules are, by where they were; nothing for those that are gone, and those that nothing is said of.
        stay: widths, by module, of what it takes and gives, which stay.
    """
    read = {leaf.key for reading in readings.sizes for leaf in leaves(reading.term) if isinstance(leaf, Place)}
    before, now = numbers_in(model, (int,)), numbers_in(home, (int,))
    gone = {path: _gone(module, path, home, there) for path, module in model.named_modules() if path in there}
    found: dict[tuple[str | int, ...], str] = {}
    for key, value in before.items():
        path, steps = key
        if key in read or value < _LEAST or value not in gone.get(path, ()) or now.get((there[path], steps)) != value:
            continue
        if value in stay.get(path, ()):
            continue
        own = home.get_submodule(there[path])._parameters.values()
        if not any(value in tensor.shape for tensor in own if tensor is not None):  # else it may say how large that is
            found.setdefault(steps, f"{Place(path, steps, value)} ({value})")
    return [found[steps] for steps in sorted(found, key=len)]  # its own attributes say more than one of many settings


def _gone(module: nn.Module, path: str, home: nn.Module, there: Mapping[str, str]) -> set[int]:
    """Returns the widths of a module's tensors that are another now, of one of them at least."""
    found = set[int]()
    for below, inner in module.named_modules():
        left = there.get(f"{path}.{below}".strip("."))
        now = {} if left is None else home.get_submodule(left)._parameters
        for name, was in inner._parameters.items():
            if was is not None and (new := now.get(name)) is not None:
                found.update(a for a, b in zip(was.shape, new.shape, strict=False) if a != b)
    return found
