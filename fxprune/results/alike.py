"""Names and lines that differ in numbers alone, taken together: ``layers.0.mlp`` and ``layers.1.mlp`` are ``layers.*.mlp``."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: A number that is a whole part of a name; then any number.
_NUMBERS = (re.compile(r"(?<![^._:/\s])\d+(?![^._:/\s])"), re.compile(r"\d+"))


def folded(names: Sequence[str], most: int) -> list[tuple[str, list[int]]]:
    """Returns (pattern, places of what it stands for) in the order of the first places; up to ``most`` names stay as they are.

    Numbers that are whole parts of a name are taken together first (``layer1.*.conv2``); where that leaves more than ``most``
    patterns, all numbers (``layer*.*.conv*``).

    Args:
        names: of layers or groups, or lines of text.
        most: names or patterns that can be read one by one.
    """
    found = [(name, [place]) for place, name in enumerate(names)]
    for number in _NUMBERS:
        if len(found) <= most:
            break
        alike: dict[str, list[int]] = {}
        for place, name in enumerate(names):
            alike.setdefault(number.sub("*", name), []).append(place)
        found = [(_pattern([names[place] for place in places], number), places) for places in alike.values()]
    return found


def _pattern(names: Sequence[str], number: re.Pattern[str]) -> str:
    """Returns the first of names that are alike, with a star for every number that is not the same in all."""
    columns = zip(*(number.findall(name) for name in names), strict=True)
    shown = iter([column[0] if len(set(column)) == 1 else "*" for column in columns])
    return number.sub(lambda _: next(shown), names[0])
