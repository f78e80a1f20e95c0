"""Channels: what a label means after uniting, refining and freezing, against sets and booleans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.algebra.axes import keep_mask
from fxprune.algebra.channels import KINDS, Channels, Ids

Label = tuple[int, ...]
LIVE = 8  # ids 1 to 8 in the tests below


def _store(count: int = LIVE) -> Channels:
    channels = Channels()
    channels.fresh(count)
    return channels


def _rows(*labels: Label) -> Ids:
    width = max(map(len, labels), default=0)
    return np.array([(*label, *[0] * (width - len(label))) for label in labels], np.int64).reshape(len(labels), width)


def _labels(channels: Channels, *labels: Label) -> list[Label]:
    """Returns what labels stand for, without the zeros."""
    return [tuple(int(i) for i in row if i) for row in channels.resolve(_rows(*labels))]


def _meaning(channels: Channels) -> dict[int, Label]:
    """Returns what each id stands for, those that stand for themselves left out."""
    ids = range(1, len(channels))
    return {i: m for i, m in zip(ids, _labels(channels, *((i,) for i in ids)), strict=True) if m != (i,)}


def _relate(channels: Channels, *pairs: tuple[Label, Label], reason: str = "why") -> None:
    """Relates all pairs in one call."""
    channels.relate(_rows(*(a for a, _ in pairs)), _rows(*(b for _, b in pairs)), reason)


# -- one relation -------------------------------------------------------------------------------------------------

RELATED: dict[str, tuple[Label, Label, dict[int, Label]]] = {
    "id with id": ((1,), (2,), {2: (1,)}),
    "the smaller root stays": ((2,), (1,), {2: (1,)}),
    "id with itself": ((1,), (1,), {}),
    "nothing with nothing": ((), (0, 0), {}),
    "nothing with ids": ((), (1, 2), {1: (), 2: ()}),
    "id with ids is refined": ((3,), (1, 2), {3: (1, 2)}),
    "a smaller id is refined to larger ones": ((1,), (2, 3), {1: (2, 3)}),
    "equally many unite in order": ((1, 2), (3, 4), {3: (1,), 4: (2,)}),
    "in the order of the row, not of the ids": ((2, 1), (3, 4), {3: (2,), 4: (1,)}),
    "two with three unite all": ((1, 2), (3, 4, 5), dict.fromkeys((2, 3, 4, 5), (1,))),
    "a label with itself in another order": ((1, 2, 3), (3, 1, 2), {}),
    "shared ids cancel, the rest unites": ((1, 2), (3, 1), {3: (2,)}),
    "shared ids cancel, the rest refines": ((1, 2), (1, 3, 4), {2: (3, 4)}),
    "shared ids cancel, the rest freezes": ((1,), (2, 1, 3), {2: (), 3: ()}),
    "zeros say nothing": ((0, 1, 0), (0, 0, 2), {2: (1,)}),
    "a repeated id counts once": ((1, 1), (2,), {2: (1,)}),
}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("case", RELATED)
def test_relate(case: str, swapped: bool) -> None:
    left, right, meaning = RELATED[case]
    channels = _store()
    _relate(channels, (right, left) if swapped else (left, right))
    assert _meaning(channels) == meaning


TOGETHER: dict[str, tuple[list[tuple[Label, Label]], dict[int, Label]]] = {
    "a chain": ([((i + 1,), (i,)) for i in range(1, 5)], dict.fromkeys(range(2, 6), (1,))),
    "a star": ([((5,), (i,)) for i in range(1, 5)], dict.fromkeys(range(2, 6), (1,))),
    "a target is refined as well": ([((3,), (1, 2)), ((4,), (3, 5))], {3: (1, 2), 4: (1, 2, 5)}),
    "an id that is refined twice": ([((3,), (1, 2)), ((3,), (4, 5))], {3: (1, 2), 4: (1,), 5: (2,)}),
    "two ids that hold each other": ([((1,), (2, 3)), ((2,), (1, 4))], {1: (2,), 3: (), 4: ()}),
    "an id that holds itself in the end": (
        [((1,), (2, 3)), ((2,), (4, 5)), ((4,), (1, 6))],
        {1: (4,), 2: (4,), 3: (), 5: (), 6: ()},
    ),
    "a grid of rows and columns": (
        [((i,), (5 + (i - 1) // 2, 7 + (i - 1) % 2)) for i in range(1, 5)],
        {1: (5, 7), 2: (5, 8), 3: (6, 7), 4: (6, 8)},
    ),
    "repeated ids leave the grid one row": (
        [((i,), (5 + (j // 2), 7 + j % 2)) for j, i in enumerate((1, 1, 2, 3))],
        {1: (5, 7), 2: (6, 7), 3: (6, 7), 8: (7,)},
    ),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_relate_many_at_once(case: str) -> None:
    pairs, meaning = TOGETHER[case]
    channels = _store()
    _relate(channels, *pairs)
    assert _meaning(channels) == meaning


def test_a_refined_id_is_not_refined_to_itself() -> None:
    channels = _store()
    _relate(channels, ((3,), (1, 2)))
    _relate(channels, ((1,), (3,)))  # 1 is among what 3 stands for: 2 can never go alone, nor may it go at all
    assert _meaning(channels) == {2: (), 3: (1,)}
    assert channels.reason(_rows((2,))) == "why"


# -- resolve, freeze, reasons, kinds ------------------------------------------------------------------------------


def test_columns_are_not_shifted_and_empty_ones_are_dropped() -> None:
    channels = _store()
    channels.freeze(_rows((2,), (6,)), "kept")
    rows = _rows((1, 2, 3), (4, 6, 4), (0, 2, 5))
    assert channels.resolve(rows).tolist() == [[1, 3], [4, 0], [0, 5]]
    _relate(channels, ((3,), (7, 8)))
    assert channels.resolve(rows).tolist() == [[1, 7, 8], [4, 0, 0], [0, 5, 0]]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_rows_without_ids(shape: tuple[int, int]) -> None:
    channels = _store()
    none = np.zeros(shape, np.int64)
    assert channels.resolve(none).shape == (shape[0], 0)
    channels.relate(none, none, "why")
    channels.freeze(none, "why")
    assert _meaning(channels) == {}


def test_ids_beyond_the_first_allotment() -> None:
    channels = Channels()
    first, second = channels.fresh(1000), channels.fresh(5000, "head")
    assert (len(channels), first[0], second[-1]) == (6001, 1, 6000)
    channels.freeze(first[:3].reshape(-1, 1), "early")
    order = np.random.default_rng(0).permutation(4999)
    channels.unite(second[order], second[order + 1])
    assert (channels.find(second) == second[0]).all()
    assert channels.reason(first[:1]) == "early"
    assert channels.kinds()[second[0]] == KINDS.index("head")
    assert channels.resolve(first.reshape(-1, 1))[:, 0].tolist() == [0, 0, 0, *range(4, 1001)]


def test_the_reason_is_the_first_one() -> None:
    channels = _store()
    assert channels.reason(_rows((1, 2))) is None
    channels.freeze(_rows((1,)), "first")
    channels.freeze(_rows((1, 2)), "second")
    assert [channels.reason(_rows((i,))) for i in (1, 2, 3)] == ["first", "second", None]
    assert channels.reason(_rows((3, 2))) == "second"


@pytest.mark.parametrize(
    ("label", "reason"),
    [((1,), "kept"), ((1, 0), "kept"), ((4,), "kept"), ((), "here"), ((0,), "here"), ((5, 2), "here")],
)
def test_a_reason_travels(label: Label, reason: str) -> None:
    channels = _store()
    channels.freeze(_rows((1,)), "kept")
    _relate(channels, ((1,), (4,)), reason="elsewhere")  # 4 freezes with what froze 1
    _relate(channels, (label, (2, 3) if 2 not in label else (2, 3, 5)), reason="here")
    assert [channels.reason(_rows((i,))) for i in (3, 6)] == [reason, None]


@pytest.mark.parametrize("ids", [np.zeros(0, np.int64), np.zeros(2, np.int64), np.zeros((2, 2), np.int64)])
def test_the_reason_of_no_id_at_all(ids: Ids) -> None:
    assert _store().reason(ids) == "fixed"


def test_a_refined_id_tells_what_froze_its_parts() -> None:
    channels = _store()
    _relate(channels, ((3,), (1, 2)), ((4,), (3, 5)))
    channels.freeze(_rows((2,)), "the second part")
    assert channels.leaves(_rows((4,))).tolist() == [1, 2, 5]
    assert channels.reason(_rows((4,))) == "the second part"
    assert _labels(channels, (4,)) == [(1, 5)]


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_a_class_has_its_strongest_kind(first: str, second: str) -> None:
    channels = Channels()
    a, b, c = (channels.fresh(1, kind) for kind in (first, second, "channel"))
    channels.unite(np.concatenate([a, a]), np.concatenate([b, c]))
    assert KINDS[channels.kinds()[a[0]]] == max(first, second, key=KINDS.index)


def test_marks_reach_what_an_id_stands_for_and_never_weaken() -> None:
    channels = _store()
    _relate(channels, ((3,), (1, 2)))
    channels.mark(_rows((3, 4)), "head")
    channels.mark(_rows((1, 5)), "head_dim")
    assert [KINDS[k] for k in channels.kinds()[[1, 2, 4, 5, 6]]] == [*["head"] * 3, "head_dim", "channel"]


# -- against a reference ------------------------------------------------------------------------------------------


class Substitution:
    """The same rules on one pair of labels at a time: each id that is settled is replaced by a tuple."""

    def __init__(self) -> None:
        self.meaning: dict[int, Label] = {0: ()}

    def resolve(self, label: Label) -> Label:
        parts = (self.resolve(self.meaning[i]) if i in self.meaning else (i,) for i in label)
        return tuple(dict.fromkeys(i for part in parts for i in part))

    def unite(self, *ids: int) -> None:
        roots = {i for label in ids for i in self.resolve((label,))}
        self.meaning |= {i: (min(roots),) for i in roots - {min(roots)}}

    def freeze(self, label: Label) -> None:
        self.meaning |= dict.fromkeys(self.resolve(label), ())

    def relate(self, left: Label, right: Label) -> None:
        left, right = self.resolve(left), self.resolve(right)
        a, b = (tuple(i for i in x if i not in y) for x, y in ((left, right), (right, left)))
        if not a or not b:
            self.freeze(a + b)
        elif len(a) == len(b):
            for pair in zip(a, b, strict=True):
                self.unite(*pair)
        elif 1 in (len(a), len(b)):
            self.meaning[min(a, b, key=len)[0]] = max(a, b, key=len)
        else:
            self.unite(*a, *b)


label = st.lists(st.integers(0, LIVE), max_size=4).map(tuple)
pairs = st.lists(st.tuples(label, label), max_size=8)
one = st.integers(0, LIVE).map(lambda i: (i,) if i else ())
steps = st.lists(st.one_of(st.tuples(label, label), st.tuples(label)), max_size=10)


@settings(deadline=None, derandomize=True)
@given(steps)
def test_step_by_step_it_agrees_with_substitution(steps: Sequence[tuple[Label, ...]]) -> None:
    channels, reference = _store(), Substitution()
    for step in steps:
        if len(step) == 2:
            _relate(channels, step)
            reference.relate(*step)
        else:
            channels.freeze(_rows(*step), "why")
            reference.freeze(*step)
        expected = [reference.resolve((i,)) for i in range(1, LIVE + 1)]
        assert _labels(channels, *((i,) for i in range(1, LIVE + 1))) == expected


@settings(deadline=None, derandomize=True)
@given(st.lists(pairs, min_size=1, max_size=3), label)
@pytest.mark.slow
def test_related_labels_go_together_whatever_is_removed(
    calls: Sequence[list[tuple[Label, Label]]], never: Label
) -> None:
    channels = _store()
    for call in calls:
        _relate(channels, *call)
    channels.freeze(_rows(never), "kept")
    left, right = (channels.resolve(_rows(*(p[side] for call in calls for p in call))) for side in (0, 1))
    kept = channels.resolve(_rows(never, (), (0,)))
    for bits in range(1 << LIVE):
        removed = np.array([False, *((bits >> i) & 1 for i in range(LIVE))], bool)
        assert np.array_equal(keep_mask(left, removed), keep_mask(right, removed))
        assert keep_mask(kept, removed).all()


@settings(deadline=None, derandomize=True)
@given(pairs)
def test_what_is_resolved_is_live_distinct_and_final(related: list[tuple[Label, Label]]) -> None:
    channels = _store()
    _relate(channels, *related)
    rows = channels.resolve(_rows(*(a + b for a, b in related)))
    assert np.array_equal(channels.resolve(rows), rows)
    assert rows.any(axis=0).all()
    assert all(len(set(ids)) == len(ids) for ids in ([i for i in row if i] for row in rows.tolist()))
    assert all(channels.reason(np.array([i])) is None for i in np.unique(rows[rows > 0]))
    before = _meaning(channels)
    _relate(channels, *related)
    assert _meaning(channels) == before  # what is said twice is said once


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(one, one), max_size=12), st.data())
def test_single_ids_make_the_same_classes_in_any_order_and_any_batches(
    related: list[tuple[Label, Label]], data: Any
) -> None:
    reference, channels = Substitution(), _store()
    for pair in related:
        reference.relate(*pair)
    order = data.draw(st.permutations(related))
    cut = data.draw(st.integers(0, len(order)))
    _relate(channels, *order[:cut])
    _relate(channels, *order[cut:])
    ids = [(i,) for i in range(1, LIVE + 1)]
    assert _labels(channels, *ids) == [reference.resolve(i) for i in ids]
    solutions = {
        tuple((bits >> i) & 1 for i in range(LIVE + 1))
        for bits in range(0, 1 << (LIVE + 1), 2)  # id 0 stays
        if all(((bits >> (*a, 0)[0]) ^ (bits >> (*b, 0)[0])) & 1 == 0 for a, b in related)
    }
    assert len(solutions) == 2 ** len({i for row in _labels(channels, *ids) for i in row})
