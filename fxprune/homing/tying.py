"""What the original's class cannot say otherwise: channels that must go in step, and channels that must stay.

Each reading is an equation between what the forward names and what is left; where a name (an attribute, a size) has been
given a form by one reading, another reading of it ties the two forms.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from fxprune.algebra.axes import Axis, labels_of, size_of
from fxprune.algebra.channels import KINDS, Ids, Mask
from fxprune.budget.ties import Ties
from fxprune.coupling.coupling import Coupling
from fxprune.homing.forms import NOTHING, Form, ProductError, form_of, number, ratio_of
from fxprune.homing.reading import Reading, Readings
from fxprune.homing.terms import Computed, Place, SizeOf, Term, evaluate, leaves


def ties_of(coupling: Coupling, readings: Readings, free: Mask) -> Ties:
    """Returns what must go in step, and what must stay, so that all readings can hold.

    Args:
        coupling: of the captured graph.
        readings: what the original's forward says of its sizes.
        free: flags the channels that may go, ``[channels]``.
    """
    return _Tying(coupling, free.copy()).run(readings)


def _order(reading: Reading) -> tuple[bool, int]:
    """Returns what is looked at first: sizes before what the code compares, and of few places before of many."""
    return reading.named in ("equal", "divides"), len(set(leaves(reading.term)))


class _OpenError(Exception):
    """A term has a part of which nothing is known."""


class _Tying:
    def __init__(self, coupling: Coupling, free: Mask) -> None:
        self.coupling, self.free = coupling, free
        self.held = np.zeros(len(free), bool)
        self.forms: dict[Place, Form] = {}

    def run(self, readings: Readings) -> Ties:
        for axis in readings.whole:
            self._hold_axis(axis)
        while True:
            before = int(self.held.sum())
            self.forms, equal = {}, []
            for axes in readings.shared:
                equal += self._alike(axes)
            multiples: list[tuple[Ids, Ids, int]] = []
            for reading in sorted(readings.sizes, key=_order):
                equal += [form for form in self._equations(reading) if not form.is_constant]
            for form in equal:
                if (form.weights > 0).all() or (form.weights < 0).all():
                    self._hold(form.channels)
            for reading in readings.sizes:
                if reading.named == "multiple":
                    multiples += self._multiple(reading)
                elif reading.named == "divides":
                    multiples += self._divides(reading, equal)
            if int(self.held.sum()) == before:
                return Ties(self.held, tuple((form.channels, form.weights) for form in equal), tuple(multiples))

    def _hold_axis(self, axis: Axis) -> None:
        """Has all channels of an axis stay."""
        for labels in labels_of(axis):
            found = np.unique(self.coupling.channels.resolve(labels))
            self._hold(found[self.free[found]])

    def _hold(self, channels: Ids) -> None:
        self.held[channels] = True
        self.free[channels] = False

    def _hold_some(self, channels: Ids) -> None:
        """Has channels stay: of several kinds rather the widths of heads than the heads."""
        widths = channels[self.coupling.channels.kinds()[channels] == KINDS.index("head_dim")]
        self._hold(widths if len(widths) else channels)

    def _multiple(self, reading: Reading) -> list[tuple[Ids, Ids, int]]:
        """Returns what must add up to a multiple of a number."""
        number_of = evaluate(reading.term, lambda leaf: leaf.value) or 1
        try:
            form = form_of(self.coupling, reading.axis, reading.size, self.free)
        except ProductError as several:
            self._hold_some(several.channels)
            return []
        if form.is_constant or number_of == 1:
            return []
        if reading.size % number_of or form.scale != 1:
            self._hold(form.channels)
            return []
        return [(form.channels, form.weights, number_of)]

    def _divides(self, reading: Reading, equal: Sequence[Form]) -> list[tuple[Ids, Ids, int]]:
        """Returns what must add up to a multiple of a number that stays, as it divides what changes.

        A number that changes as well is to stay, unless the other is always the same multiple of it.
        """
        term = reading.term
        assert isinstance(term, Computed)
        try:
            a, by = (self._known(operand) for operand in term.operands)
        except ProductError as several:
            self._hold_some(several.channels)
            return []
        if a is None or by is None or a.is_constant:
            return []
        if by.is_constant:
            return [] if by.constant == 1 else [(a.channels, a.weights, int(by.constant * a.scale))]
        now, parts = (evaluate(operand, lambda leaf: leaf.value) for operand in term.operands)
        apart = a - by.times(Fraction(now or 0, parts or 1))
        if not apart.is_nothing and not any(ratio_of(apart, form) for form in equal):
            self._hold(by.channels)
        return []

    def _alike(self, axes: Sequence[Axis]) -> list[Form]:
        """Returns the forms that must stay 0 so that all of some axes keep as many coordinates."""
        try:
            first, *others = (form_of(self.coupling, axis, size_of(axis), self.free) for axis in axes)
        except ProductError as several:
            self._hold_some(several.channels)
            return []
        return [form for other in others if not (form := other - first).is_constant]

    def _equations(self, reading: Reading) -> list[Form]:
        """Returns the forms that must stay 0."""
        wanted = NOTHING
        try:
            if reading.named == "parts":
                return self._parts(reading)
            if reading.named in ("multiple", "divides"):
                return []
            if reading.named == "equal":
                return self._comes_to(reading.term, NOTHING)
            old = evaluate(reading.term, lambda leaf: leaf.value)
            upto = old if reading.named == "place" else None
            if upto is not None and upto < 0:
                whole = form_of(self.coupling, reading.axis, reading.size, self.free)
                wanted = form_of(self.coupling, reading.axis, reading.size, self.free, reading.size + upto) - whole
            else:
                wanted = form_of(self.coupling, reading.axis, reading.size, self.free, upto)
            return self._comes_to(reading.term, wanted)
        except ProductError as several:
            if reading.named not in ("equal", "divides"):  # it may hold all the same: the proof tells
                self._hold_some(np.union1d(several.channels, wanted.channels))
        except _OpenError:
            pass
        return []

    def _comes_to(self, term: Term, wanted: Form) -> list[Form]:
        """Returns the forms that must stay 0 so that a term comes to a form."""
        if isinstance(term, Place) and term not in self.forms:
            self.forms[term] = wanted
            return []
        turned = self._turned(term, wanted) if isinstance(term, Computed) else None
        return [self._form(term) - wanted] if turned is None else self._comes_to(*turned)

    def _turned(self, term: Computed, wanted: Form) -> tuple[Term, Form] | None:
        """Returns a simpler term and what it must come to: of ``a * 3`` and 6 ``a`` and 2; of ``a // 3`` and 2 ``a`` and 6."""
        if len(term.operands) != 2:
            return None
        a, b = term.operands
        if term.function is operator.mul:
            if self._is_known(a) and not self._is_known(b):
                a, b = b, a
            by = self._known(b)
            return None if by is None or not by.is_constant or not by.constant else (a, wanted.times(1 / by.constant))
        if term.function is operator.floordiv:
            by = self._known(b)
            if by is not None and by.is_constant:
                return a, wanted.times(by.constant)
            if by is None and self._is_known(a) and wanted.is_constant and wanted.constant:
                return b, self._form(a).times(1 / wanted.constant)
            return (a, by.times(wanted.constant)) if by is not None and wanted.is_constant else None
        if term.function is operator.sub and self._is_known(a) and not self._is_known(b):
            return b, self._form(a) - wanted
        if term.function in (operator.add, operator.sub) and (by := self._known(b)) is not None:
            return a, wanted.plus(by, 1 if term.function is operator.sub else -1)
        return None

    def _is_known(self, term: Term) -> bool:
        return self._known(term) is not None

    def _known(self, term: Term) -> Form | None:
        try:
            return self._form(term)
        except _OpenError:
            return None

    def _form(self, term: Term) -> Form:
        """Returns the form of a term.

        Raises:
            _OpenError: some place in it has none.
            ProductError: it is no sum over channels.
        """
        if isinstance(term, int):
            return number(term)
        if isinstance(term, SizeOf):
            if term.axis is None:
                raise _OpenError
            return form_of(self.coupling, term.axis, term.value, self.free)
        if isinstance(term, Place):
            if term not in self.forms:
                raise _OpenError
            return self.forms[term]
        return self._computed(term)

    def _computed(self, term: Computed) -> Form:
        parts = [self._form(operand) for operand in term.operands]
        if all(part.is_constant for part in parts):
            found = evaluate(term, lambda leaf: leaf.value)
            return number(found if found is not None else 0)
        if term.function is operator.add:
            return parts[0].plus(parts[1])
        if term.function is operator.sub:
            return parts[0] - parts[1]
        if term.function is operator.mul and parts[1].is_constant:
            return parts[0].times(parts[1].constant)
        if term.function is operator.mul and parts[0].is_constant:
            return parts[1].times(parts[0].constant)
        if term.function is operator.floordiv and parts[1].is_constant and parts[1].constant:
            return parts[0].times(1 / parts[1].constant)
        if term.function is operator.floordiv and (ratio := ratio_of(*parts)) is not None:
            return number(ratio)
        raise ProductError(np.unique(np.concatenate([part.channels for part in parts])))

    def _parts(self, reading: Reading) -> list[Form]:
        """Returns the forms that must stay 0 so that an axis can be cut into equal parts."""
        count = evaluate(reading.term, lambda leaf: leaf.value) or 1
        size = reading.size
        ends = [size * i // count for i in range(count + 1)]
        upto = [NOTHING, *(form_of(self.coupling, reading.axis, size, self.free, end) for end in ends[1:])]
        parts = [b - a for a, b in itertools.pairwise(upto)]
        if size % count:
            self._hold(np.unique(np.concatenate([part.channels for part in parts])))
            return []
        return [part - parts[0] for part in parts[1:]]
