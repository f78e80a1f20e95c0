"""Cuts of a graph: coordinates that go, and which others each of them needs to go; for `tests.support.bruteforce.claims`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Variables = npt.NDArray[np.int64]
#: The variables of each dimension's coordinates.
Box = tuple[Variables, ...]
#: A flag for each variable that stays, and how many reasons each demand has left.
State = tuple[bytearray, list[int]]

#: The variable of all that can never go.
STAYS = 0


class Demands:
    """Coordinates as variables, and what must hold: each goes only if one of certain others goes.

    A union of such cuts is one as well, so there is a largest one, whatever must stay; it is found by dropping what has
    lost its last reason. It may leave nothing of some value; `cut` finds one that does not.
    """

    def __init__(self) -> None:
        self._stays = bytearray(b"\x01")
        self._lines: list[range] = []
        self._line_of: list[int] = [-1]
        self._reasons: list[list[tuple[int, ...]]] = [[]]  # the demands of each variable
        self._named: list[list[int]] = [[]]  # the demands that name it as a reason
        self._heads: list[int] = []
        self._left: list[int] = []  # how many reasons a demand has left

    def new(self, count: int) -> Variables:
        """Returns the variables of a new line, a dimension of which something must be left."""
        if count == 1:
            return np.zeros(1, np.int64)
        line = range(len(self._named), len(self._named) + count)
        self._line_of += [len(self._lines)] * count
        self._lines.append(line)
        self._reasons += [[] for _ in line]
        self._named += [[] for _ in line]
        self._stays += bytes(count)
        return np.array(line, np.int64)

    def goes_only_with(self, head: int, reasons: Iterable[int]) -> None:
        """Demands that one of the reasons goes if the head does."""
        live = tuple(sorted({reason for reason in reasons if not self._stays[reason]}))
        if self._stays[head] or head in live or live in self._reasons[head]:
            return
        self._reasons[head].append(live)
        for reason in live:
            self._named[reason].append(len(self._heads))
        self._heads.append(head)
        self._left.append(len(live))
        if not live:
            self.keep([head])

    def equal(self, a: Iterable[int], b: Iterable[int]) -> None:
        """Demands that the variables go in pairs."""
        for one, other in zip(a, b, strict=True):
            self.goes_only_with(int(one), [int(other)])
            self.goes_only_with(int(other), [int(one)])

    def either(self, whole: Iterable[int], parts: Iterable[int]) -> None:
        """Demands that one of the first goes exactly when one of the second does."""
        first, second = list(whole), list(parts)
        for variable in first:
            self.goes_only_with(variable, second)
        for variable in second:
            self.goes_only_with(variable, first)

    def stays(self, variable: int) -> bool:
        """Returns whether a variable can never go."""
        return bool(self._stays[variable])

    def keep(self, variables: Iterable[int]) -> None:
        """Makes the variables stay, and what must stay with them."""
        self._spread(variables, self._stays, self._left)

    def largest(self, leave: Iterable[int]) -> bytearray:
        """Returns what stays in the largest cut that leaves these variables, a flag for each variable."""
        return self._leaving(leave, (self._stays, self._left))[0]

    def cut(self, take: Iterable[int], leave: Iterable[int]) -> frozenset[int] | None:
        """Returns a small cut that takes some variables, leaves others and leaves something of every line, or None."""
        grown = self._grow(frozenset(), take, self._leaving(leave, (self._stays, self._left)))
        return None if grown is None else self._search(*grown)

    def _leaving(self, variables: Iterable[int], state: State) -> State:
        stays, left = state[0].copy(), state[1].copy()
        self._spread(variables, stays, left)
        return stays, left

    def _spread(self, variables: Iterable[int], stays: bytearray, left: list[int]) -> None:
        todo = list({v for v in map(int, variables) if not stays[v]})
        for v in todo:
            stays[v] = 1
        while todo:
            for number in self._named[todo.pop()]:
                left[number] -= 1
                head = self._heads[number]
                if left[number] == 0 and not stays[head]:
                    stays[head] = 1
                    todo.append(head)

    def _search(self, gone: frozenset[int], state: State) -> frozenset[int] | None:
        """Tries one choice after the other; what fails must stay for all that is tried later."""
        while choices := [o for v in gone for o in self._options(v, state[0]) if gone.isdisjoint(o)]:
            failing = [v for v in {*itertools.chain(*choices)} if self._grow(gone, [v], state) is None]
            if not failing:
                break
            grown = self._grow(gone, [], self._leaving(failing, state))
            if grown is None:
                return None
            gone, state = grown
        else:
            return gone
        for choice in min(choices, key=len):
            grown = self._grow(gone, [choice], state)
            found = None if grown is None else self._search(*grown)
            if found is not None:
                return found
            state = self._leaving([choice], state)
        return None

    def _grow(self, gone: frozenset[int], more: Iterable[int], state: State) -> tuple[frozenset[int], State] | None:
        """Takes more, and what has no choice then; returns what is gone and what must stay, None if that cannot be."""
        grown, todo = set(gone), set(more)
        while True:
            grown |= todo
            for number in {self._line_of[v] for v in todo}:
                rest = [v for v in self._lines[number] if v not in grown]
                state = self._leaving(rest, state) if len(rest) == 1 else state
                if not rest:
                    return None
            if any(state[0][v] for v in grown):
                return None
            todo = {o[0] for v in grown for o in self._options(v, state[0]) if len(o) == 1} - grown
            if not todo:
                return frozenset(grown), state

    def _options(self, variable: int, stays: bytearray) -> list[list[int]]:
        """Returns, for each demand of a variable, the reasons that may still go."""
        return [[reason for reason in reasons if not stays[reason]] for reasons in self._reasons[variable]]
