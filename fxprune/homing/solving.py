"""Equations over the integers of a model: what its forward names of sizes must come to what is left of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fxprune.homing.counting import left, left_before
from fxprune.homing.reading import Line, Reading
from fxprune.homing.terms import Leaf, Place, SizeOf, Term, evaluate, leaves
from fxprune.ops.slicer import Slicer


@dataclass(frozen=True, slots=True)
class Equation:
    """What a reading's term must come to."""

    reading: Reading
    wanted: int


Conflict: TypeAlias = "tuple[Equation, Equation | None]"


@dataclass(frozen=True, slots=True)
class Solved:
    """What the integers of a model become.

    Attributes:
        values: of those that change.
        conflicts: what no integer can be: each equation that does not hold, with one that holds in its place, if there is one.
    """

    values: Mapping[Place, int]
    conflicts: tuple[Conflict, ...]


def equations(readings: Iterable[Reading], slicer: Slicer) -> Iterator[Equation]:
    """Yields what each reading must come to; nothing for what the graph does not have."""
    for reading in readings:
        old = evaluate(reading.term, lambda leaf: leaf.value)
        assert old is not None
        if reading.named == "place":
            yield Equation(reading, left_before(slicer, reading.axis, old))
        elif reading.named in ("equal", "divides"):
            yield Equation(reading, 0)
        elif reading.named == "size":
            yield Equation(reading, left(slicer, reading.axis, old))


def solve(found: Sequence[Equation], slicer: Slicer) -> Solved:
    """Returns the integers with which all equations hold, or as many as can; an integer that none needs otherwise stays."""
    return _Solver(slicer).run(found)


def solve_terms(found: Sequence[tuple[Term, int]]) -> tuple[Mapping[Place, int], tuple[Conflict, ...]]:
    """Returns the integers with which terms come to numbers, as far as they can, and what does not."""
    line = Line("", "", "", "", 0)
    solved = _Solver(None).run([Equation(Reading(term, "size", (), 0, line, ""), wanted) for term, wanted in found])
    return solved.values, solved.conflicts


class _Solver:
    def __init__(self, slicer: Slicer | None) -> None:
        self.slicer = slicer
        self.values: dict[Place, int] = {}
        self.choices: dict[Place, set[int]] = {}
        self.decided: dict[Place, Equation] = {}

    def run(self, found: Sequence[Equation]) -> Solved:
        waiting = [(equation, list(dict.fromkeys(_places(equation.reading.term)))) for equation in found]
        # what is equal is a way that the code takes: it may take another, as long as the outputs are right
        waiting.sort(key=lambda pair: pair[0].reading.named in ("equal", "divides"))
        conflicts = [self._narrowed(equation, places[0]) for equation, places in waiting if len(places) == 1]
        for place, fitting in self.choices.items():
            self.values[place] = place.value if place.value in fitting else max(fitting)
        for equation, places in sorted(waiting, key=lambda pair: len(pair[1])):
            if len(places) != 1 and not self._holds(equation) and not self._settled(equation, places):
                conflicts.append((equation, next((self.decided[p] for p in places if p in self.decided), None)))
        changed = {place: value for place, value in self.values.items() if value != place.value}
        return Solved(changed, tuple(conflict for conflict in conflicts if conflict is not None))

    def _narrowed(self, equation: Equation, place: Place) -> Conflict | None:
        """Leaves a place the values with which another equation holds as well, or returns the two that do not go together."""
        fitting = self._fitting(equation, place)
        if fitting is None:
            return None
        left = self.choices.get(place, fitting) & fitting
        if not left:
            return equation, self.decided.get(place)
        if place not in self.choices or len(left) < len(self.choices[place]):
            self.decided[place] = equation
        self.choices[place] = left
        return None

    def _settled(self, equation: Equation, places: Sequence[Place]) -> bool:
        """Finds a value of one open place that makes an equation true, the others as they are."""
        for place in (place for place in places if place not in self.values):
            fitting = self._fitting(equation, place)
            if fitting:
                self.values[place] = place.value if place.value in fitting else max(fitting)
                self.decided[place] = equation
                return True
        return False

    def _fitting(self, equation: Equation, place: Place) -> set[int] | None:
        """Returns the values of a place with which an equation holds; None where it has a size that nobody knows."""
        if _is_unknown(equation.reading.term):
            return None
        term, wanted = equation.reading.term, equation.wanted
        if isinstance(term, Place):
            return {wanted}
        tried = range(1, 2 * max(place.value, wanted, 1) + 1)
        return {v for v in tried if self._come_to(term, {place: v}) == wanted}

    def _come_to(self, term: Term, given: Mapping[Place, int]) -> int | None:
        def value(leaf: Leaf) -> int:
            if isinstance(leaf, SizeOf):
                if self.slicer is None or leaf.axis is None:
                    return leaf.value
                return left(self.slicer, leaf.axis, leaf.value)
            return given.get(leaf, self.values.get(leaf, leaf.value))

        return evaluate(term, value)

    def _holds(self, equation: Equation) -> bool:
        term = equation.reading.term
        return _is_unknown(term) or self._come_to(term, {}) == equation.wanted


def _is_unknown(term: Term) -> bool:
    return any(isinstance(leaf, SizeOf) and leaf.axis is None for leaf in leaves(term))


def _places(term: Term) -> Iterator[Place]:
    return (leaf for leaf in leaves(term) if isinstance(leaf, Place))
