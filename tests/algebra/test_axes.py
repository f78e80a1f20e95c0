"""Axes: what reshaping, broadcasting, taking and joining do to factors, against boolean masks in NumPy."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, pairwise, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.algebra import axes as ax
from fxprune.algebra.axes import Axes, Axis, Factor, split
from fxprune.algebra.channels import Channels, Mask

B, S = 10007, 1009  # primes that stand for sizes known at run time only
Parts = dict[str, Factor]


def _axes(channels: Channels, text: str) -> tuple[Axes, Parts]:
    """Returns axes from text: ``|`` between axes, a factor is ``6`` (fixed), ``*6`` (free) or ``a6`` (fresh ids)."""
    parts: Parts = {}

    def factor(word: str) -> Factor:
        if word[0].isalpha():
            size = int(word[1:])
            return parts.setdefault(word, Factor(size, channels.fresh(size).reshape(-1, 1)))
        return Factor(int(word.strip("*")), free=word[0] == "*")

    return tuple(tuple(map(factor, axis.split())) for axis in text.split("|")), parts


def _text(axes: Axes, parts: Parts) -> str:
    """Returns axes as text; labels that were not there before are ``?``."""
    names = {id(factor.labels): name for name, factor in parts.items()}

    def word(factor: Factor) -> str:
        if factor.labels is not None:
            return names.get(id(factor.labels), f"?{factor.size}")
        return f"*{factor.size}" if factor.free else str(factor.size)

    return "|".join(" ".join(map(word, axis)) for axis in axes)


def _labels(channels: Channels, axis: Axis) -> list[tuple[int, ...]]:
    """Returns the label of each coordinate, resolved and without zeros."""
    rows = ax.explicit(axis)
    assert rows is not None
    return [tuple(int(i) for i in row if i) for row in channels.resolve(rows)]


def _keep(channels: Channels, axis: Axis, removed: Mask) -> Mask:
    """Returns which coordinates stay, as the outer product over the factors says."""
    keep = np.ones(1, bool)
    for factor in axis:
        labels = np.zeros((factor.size, 0), np.int64) if factor.labels is None else factor.labels
        keep = np.logical_and.outer(keep, ax.keep_mask(channels.resolve(labels), removed)).reshape(-1)
    return keep


def _removals(channels: Channels) -> Iterator[Mask]:
    """Yields every way to remove live channels."""
    ids = np.arange(1, len(channels)).reshape(-1, 1)
    live = np.unique(channels.resolve(ids))
    live = live[live > 0]
    for bits in product((False, True), repeat=len(live)):
        removed = np.zeros(len(channels), bool)
        removed[live] = bits
        yield removed


def _live(channels: Channels, factor: Factor) -> bool:
    """Returns whether every coordinate can go."""
    return all(_labels(channels, (factor,)))


# -- reshape ------------------------------------------------------------------------------------------------------


RESHAPED = {
    "nothing changes": ("a2 b3|4", (6, 4), "a2 b3|4"),
    "merge": ("a2|b3", (6,), "a2 b3"),
    "split at a boundary": ("a2 b3 c5", (2, 15), "a2|b3 c5"),
    "from one boundary to another": ("a2 b3|c5", (2, 15), "a2|b3 c5"),
    "ones come and go": ("a2|b3|", (1, 2, 1, 3), "|a2||b3"),
    "fixed splits": ("12", (3, 4), "3|4"),
    "free splits": ("*12", (3, 4), "*3|*4"),
    "free merges across a boundary": ("*2|*3", (3, 2), "*3|*2"),
    "free and fixed merge to fixed": ("2|*3", (3, 2), "3|2"),
    "a new split point inside": ("a12", (3, 4), "?3|?4"),
    "a split inside an outer factor": ("a6 b5", (2, 15), "?2|?3 b5"),
    "across a boundary of labels": ("a2 b3", (3, 2), "?3|?2"),
    "batch and tokens": (f"{B}|{S}|a6", (B * S, 6), f"{B} {S}|a6"),
    "tokens come back": (f"{B} {S}|a6", (B, S, 2, 3), f"{B}|{S}|?2|?3"),
    "heads before tokens": (f"{B}|a4|{S}|b3", (B * 4, S, 3), f"{B} a4|{S}|b3"),
    "channels first": (f"{B}|a4|{S}", (B, 4 * S), f"{B}|a4 {S}"),
    "part of a factor with a size of the run": (f"a6|{S}", (2, 3 * S), f"?2|?3 {S}"),
    "a multiple of a size of the run": (f"{4 * S}|a6", (4, S, 6), f"4|{S}|a6"),
}


@pytest.mark.parametrize("case", RESHAPED)
def test_reshape(case: str) -> None:
    before, sizes, after = RESHAPED[case]
    channels = Channels()
    axes, parts = _axes(channels, before)
    result = ax.reshape(channels, axes, sizes, "why")
    assert _text(result, parts) == after
    assert tuple(map(ax.size_of, result)) == sizes
    assert all(_live(channels, part) for part in parts.values())


def test_a_split_inside_fresh_ids_gives_rows_and_columns() -> None:
    channels = Channels()
    (axis,), _ = _axes(channels, "a6")
    outer, inner = ax.reshape(channels, [axis], (2, 3), "why")
    assert _labels(channels, outer) == [(7,), (8,)]
    assert _labels(channels, inner) == [(9,), (10,), (11,)]
    assert _labels(channels, axis) == [(7, 9), (7, 10), (7, 11), (8, 9), (8, 10), (8, 11)]


@pytest.mark.parametrize(
    ("rows", "outer", "inner"),
    [
        ([[1], [1], [2], [2]], [(1,), (2,)], [(), ()]),
        ([[1], [2], [1], [2]], [(), ()], [(1,), (2,)]),
        ([[1, 3], [1, 4], [2, 3], [2, 4]], [(1,), (2,)], [(3,), (4,)]),
        ([[3, 1], [4, 1], [3, 2], [4, 2]], [(1,), (2,)], [(3,), (4,)]),
        ([[1], [1], [1], [1]], [(1,), (1,)], [(), ()]),
        ([[0], [0], [2], [2]], [(), (2,)], [(), ()]),
    ],
)
def test_constant_columns_need_no_new_ids(rows: list[list[int]], outer: Any, inner: Any) -> None:
    channels = Channels()
    channels.fresh(4)
    halves = ax.split(channels, Factor(4, np.array(rows)), 2, "why")
    assert [_labels(channels, (half,)) for half in halves] == [outer, inner]
    assert len(channels) == 5


def test_a_column_of_several_parts_is_refined_beside_a_constant_one() -> None:
    channels = Channels()
    channels.fresh(6)
    rows = np.array([[1, 3], [1, 4], [2, 5], [2, 6]])
    outer, inner = ax.split(channels, Factor(4, rows), 2, "why")
    assert _labels(channels, (outer,)) == [(1, 7), (2, 8)]
    assert _labels(channels, (inner,)) == [(9,), (10,)]
    assert _labels(channels, ax.labelled(rows)) == [(1, 7, 9), (1, 7, 10), (2, 8, 9), (2, 8, 10)]


def test_a_frozen_coordinate_freezes_its_row_and_its_column() -> None:
    channels = Channels()
    (axis,), _ = _axes(channels, "a6")
    channels.freeze(np.array([[5]]), "kept")
    outer, inner = ax.reshape(channels, [axis], (2, 3), "why")
    assert _labels(channels, outer) == [(2,), ()]  # what is left of a pair unites with the id that it was
    assert _labels(channels, inner) == [(4,), (), (6,)]
    assert _labels(channels, axis) == [(2, 4), (2,), (2, 6), (4,), (), (6,)]


@pytest.mark.parametrize(
    ("before", "sizes", "after", "live"), [("a1|6", (6,), "a1 6", True), ("6|a1", (6,), "6", False)]
)
def test_a_labelled_size_of_one(before: str, sizes: tuple[int, ...], after: str, live: bool) -> None:
    channels = Channels()
    axes, parts = _axes(channels, before)
    assert _text(ax.reshape(channels, axes, sizes, "why"), parts) == after
    assert _live(channels, parts["a1"]) is live
    assert channels.reason(np.array([1])) == (None if live else "a size of one that is dropped (why)")


def test_nothing_is_left_of_an_empty_tensor() -> None:
    channels = Channels()
    axes, parts = _axes(channels, "a2|0")
    assert _text(ax.reshape(channels, axes, (0, 2), "empty"), parts) == "0|2"
    assert channels.reason(np.array([1, 2])) == "empty"


# -- reshape against masks ----------------------------------------------------------------------------------------


Shape = tuple[int, ...]


@functools.cache
def _blocks(sizes: Shape) -> frozenset[bytes]:
    """Returns every mask of this shape that keeps a rectangular block: what slicing each dimension can give."""
    kept = [[m for m in product((False, True), repeat=size) if any(m)] for size in sizes]
    return frozenset(functools.reduce(np.logical_and.outer, map(np.array, m)).tobytes() for m in product(*kept))


def _shapes(size: int) -> list[Shape]:
    """Returns the shapes of this many elements with up to three dimensions, none of size one."""
    return [s for n in (1, 2, 3) for s in product(range(2, size + 1), repeat=n) if math.prod(s) == size]


def _groupings(sizes: Shape) -> list[Shape]:
    """Returns the shapes that merging neighbours gives: their boundaries never cross."""
    inner = range(1, len(sizes))
    ends = [(0, *cuts, len(sizes)) for n in range(len(sizes)) for cuts in combinations(inner, n)]
    return [tuple(math.prod(sizes[a:b]) for a, b in pairwise(cuts)) for cuts in ends]


any_chain = st.sampled_from([4, 6, 8, 12]).flatmap(
    lambda n: st.tuples(
        st.sampled_from([s for s in _shapes(n) if sum(s) <= 8]),
        st.lists(st.sampled_from(_shapes(n)), min_size=1, max_size=3),
    )
)

nested_chain = st.sampled_from([(2, 3), (2, 2, 2), (4, 2), (3, 3), (2, 3, 2), (3, 2, 2)]).flatmap(
    lambda sizes: st.tuples(
        st.sampled_from([s for s in _groupings(sizes) if sum(s) <= 9]),
        st.lists(st.sampled_from(_groupings(sizes)), min_size=1, max_size=3),
    )
)


def _removable(first: Shape, rest: Sequence[Shape]) -> set[bytes]:
    """Returns what any removal keeps, not nothing; asserts that all shapes of the chain agree on it."""
    channels = Channels()
    chain = [tuple(ax.labelled(channels.fresh(size)) for size in first)]
    for sizes in rest:
        chain.append(ax.reshape(channels, chain[-1], sizes, "why"))
    found = set()
    for removed in _removals(channels):
        masks = [[_keep(channels, axis, removed) for axis in axes] for axes in chain]
        keeps = {functools.reduce(np.logical_and.outer, mask).tobytes() for mask in masks}
        assert len(keeps) == 1
        found |= keeps
    return found - {bytes(math.prod(first))}


@settings(deadline=None, derandomize=True)
@given(any_chain)
@pytest.mark.slow
def test_every_removal_is_a_block_of_every_shape(chain: tuple[Shape, list[Shape]]) -> None:
    first, rest = chain
    for sizes in (first, *rest):
        assert _removable(first, rest) <= _blocks(sizes)


@settings(deadline=None, derandomize=True)
@given(nested_chain)
@pytest.mark.slow
def test_every_block_of_every_shape_can_be_removed(chain: tuple[Shape, list[Shape]]) -> None:
    first, rest = chain
    assert _removable(first, rest) == frozenset.intersection(*map(_blocks, (first, *rest)))


def test_where_boundaries_cross_only_what_both_shapes_share_is_left() -> None:
    (evens, odds) = (np.arange(12) % 2 == i for i in range(2))
    assert _removable((3, 4), [(2, 6)]) == {mask.tobytes() for mask in (evens, odds, evens | odds)}


# -- relate and broadcast -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "live"),
    [
        ("a6", "b6", "a6 b6"),
        ("a2 b3", "c2 d3", "a2 b3 c2 d3"),
        ("a6", "b2 c3", "a6 b2 c3"),
        ("a2 b3 c5", "d6 e5", "a2 b3 c5 d6 e5"),
        ("a2 3", "b2 c3", "a2 b2"),
        ("a2 3", "b6", "a2 b6"),
        ("a6", "6", ""),
        ("a6", "*6", "a6"),
        (f"{B} a6", f"{B} b2 c3", "a6 b2 c3"),
        (f"{B} a6", f"{6 * B}", ""),
        ("a2 b3", "c3 d2", "a2 b3 c3 d2"),
        ("a3 b1", "c3", "a3 c3"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_relate(a: str, b: str, live: str, swapped: bool) -> None:
    channels = Channels()
    (left, right), parts = _axes(channels, f"{a}|{b}")
    ax.relate(channels, *((right, left) if swapped else (left, right)), "why")
    assert {name for name, part in parts.items() if _live(channels, part)} == set(live.split())
    dependent = [axis for axis in (left, right) if not ax.is_free(axis)]
    if ax.size_of(left) < B:
        for removed in _removals(channels):
            assert len({_keep(channels, axis, removed).tobytes() for axis in dependent}) == 1


@pytest.mark.parametrize(
    ("axes", "result", "live"),
    [
        ("a6|b6", "a6", "a6 b6"),
        ("a6|b2 c3", "b2 c3", "a6 b2 c3"),
        ("6|a6|*6", "a6", ""),
        ("*6|a6|", "a6", "a6"),
        ("*6|*6", "*6", ""),
        ("*6|6|", "6", ""),
        ("|", "", ""),
        ("a1|6", "6", ""),
        ("a1|b6", "b6", "b6"),
        ("a1||b1", "a1", ""),
        ("a1|b1", "a1", "a1 b1"),
        (f"{B} a6|{B}  6|", f"{B} a6", ""),
    ],
)
def test_broadcast(axes: str, result: str, live: str) -> None:
    channels = Channels()
    given, parts = _axes(channels, axes)
    assert _text((ax.broadcast(channels, given, "why"),), parts) == result
    assert {name for name, part in parts.items() if _live(channels, part)} == set(live.split())


def test_the_reason_names_a_broadcast_size_of_one() -> None:
    channels = Channels()
    axes, _ = _axes(channels, "a1|b6")
    ax.broadcast(channels, axes, "add")
    assert channels.reason(np.array([1])) == "a size of one that is broadcast (add)"


# -- take, concat, explicit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axis", "cut", "result"),
    [
        ("6", (1, 5, 2), "2"),
        ("6", (2, 3, 1), ""),
        ("*6", (1, 5, 2), "*2"),
        ("2 *3", (0, 3, 1), "3"),
        ("a6", (2, 5, 1), "?3"),
        ("a6", (1, 6, 2), "?3"),
        ("a6", (2, 2, 1), "?0"),
        ("a2 b3", (3, 6, 1), "?1 b3"),
        ("3 a4", (4, 12, 1), "2 a4"),
        ("3 a4", (2, 12, 1), "?10"),
        (f"a4 {B}", (B, 3 * B, 1), f"?2 {B}"),
    ],
)
def test_take(axis: str, cut: tuple[int, int, int], result: str) -> None:
    channels = Channels()
    (whole,), parts = _axes(channels, axis)
    part = ax.take(channels, whole, *cut, "why")
    assert _text((part,), parts) == result
    assert ax.size_of(part) == len(range(*cut))
    assert _labels(channels, part) == _labels(channels, whole)[slice(*cut)]
    assert all(_live(channels, p) for p in parts.values())


@pytest.mark.parametrize(
    ("axes", "result"),
    [("6|2", "8"), ("*6|*2", "*8"), ("*6|2", "8"), ("0|a2 b3", "a2 b3"), ("a2 3|b2", "?8"), ("a2|3|b2 c2", "?9")],
)
def test_concat(axes: str, result: str) -> None:
    channels = Channels()
    given, parts = _axes(channels, axes)
    joined = ax.concat(channels, given, "why")
    assert _text((joined,), parts) == result
    assert _labels(channels, joined) == [row for axis in given for row in _labels(channels, axis)]
    assert all(_live(channels, p) for p in parts.values())


TOO_LARGE: dict[str, Callable[[Channels, Axes], Any]] = {
    "relate": lambda channels, axes: ax.relate(channels, *axes, "large"),
    "take": lambda channels, axes: ax.take(channels, axes[0], 1, 5, 1, "large"),
    "concat": lambda channels, axes: ax.concat(channels, axes, "large"),
    "reshape": lambda channels, axes: ax.reshape(channels, axes[:1], (3, 2), "large"),
}


@pytest.mark.parametrize("work", TOO_LARGE)
def test_what_is_too_large_to_write_out_freezes(work: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ax, "EXPLICIT_LIMIT", 5)
    channels = Channels()
    axes, parts = _axes(channels, "a2 b3|c6")
    TOO_LARGE[work](channels, axes)
    touched = [parts["a2"], parts["b3"]] + [parts["c6"]] * (work in ("relate", "concat"))
    for part in touched:
        assert part.labels is not None
        assert [channels.reason(row) for row in part.labels] == ["large"] * part.size


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(["", "*", "a", "b", "c"]), st.integers(1, 3)), max_size=3))
@pytest.mark.slow
def test_explicit_labels_say_what_the_factors_say(words: list[tuple[str, int]]) -> None:
    channels = Channels()
    (axis,), _ = _axes(channels, " ".join(f"{letter}{size}" for letter, size in words))
    rows = ax.explicit(axis)
    assert rows is not None
    for removed in _removals(channels):
        assert np.array_equal(ax.keep_mask(rows, removed), _keep(channels, axis, removed))


def test_what_freezes_with_a_cell_knows_why() -> None:
    channels = Channels()
    labels = channels.fresh(6).reshape(-1, 1)
    channels.freeze(labels[4:5], "the result")
    outer, _ = split(channels, Factor(6, labels), 2, "reshape")
    assert outer.labels is not None
    assert channels.reason(outer.labels[1]) == channels.reason(np.array([5])) == "the result"
