"""Integers of a model that were a width, and that no call has read: nobody can tell whether they should be another one now."""

from __future__ import annotations

from torch import nn

from fxprune.homing.places import numbers_in
from fxprune.homing.reading import Readings
from fxprune.homing.terms import Place, leaves

#: Smaller numbers are seldom widths.
_LEAST = 3


def unread_widths(model: nn.Module, home: nn.Module, readings: Readings) -> list[str]:
    """Returns the integers of a restored model that were the width of its tensors, which is another now, and that nothing has read.

    Args:
        model: the original.
        home: what is left of it.
        readings: what the calls of the original read.
    """
    read = {leaf.key for reading in readings.sizes for leaf in leaves(reading.term) if isinstance(leaf, Place)}
    before, now = numbers_in(model, (int,)), numbers_in(home, (int,))
    gone = {path: _gone(module, home.get_submodule(path)) for path, module in model.named_modules()}
    found: dict[tuple[str | int, ...], str] = {}
    for key, value in before.items():
        path, steps = key
        if value >= _LEAST and value in gone[path] and now.get(key) == value and key not in read:
            found.setdefault(steps, f"{Place(path, steps, value)} ({value})")
    return list(found.values())


def _gone(module: nn.Module, left: nn.Module) -> set[int]:
    """Returns the widths of a module's tensors that are another now, of one of them at least."""
    pairs = zip(module.parameters(), left.parameters(), strict=True)
    return {old for was, now in pairs for old, new in zip(was.shape, now.shape, strict=False) if old != new}
