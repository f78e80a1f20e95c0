"""Tagged integers: torch and Python take them for integers, and arithmetic keeps where they come from."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch

from fxprune.homing.terms import Leaf, Place, Tagged, evaluate, floated, leaves, noticed, term_of

A, B = Place("layer", ("heads",), 6), Place("layer", ("width",), 24)


@pytest.mark.parametrize(
    "made",
    [
        lambda a, b: a + b,
        lambda a, b: 2 * a - 1,
        lambda a, b: b // a,
        lambda a, b: 100 // b,
        lambda a, b: b % a,
        lambda a, b: a**2,
        lambda a, b: -a,
        lambda a, b: math.trunc(b / a),
        lambda a, b: math.ceil(b / 5),
        lambda a, b: math.floor(b / 5),
        lambda a, b: math.trunc(-b / 5),
    ],
)
def test_arithmetic_is_that_of_integers_and_can_be_done_again(made: Callable[[int, int], int]) -> None:
    found = made(Tagged(6, A), Tagged(24, B))
    assert found == made(6, 24) and isinstance(found, Tagged)
    others: dict[Leaf, int] = {A: 4, B: 20}
    assert evaluate(term_of(found), lambda leaf: others[leaf]) == made(4, 20)
    assert set(leaves(term_of(found))) <= {A, B}


def test_torch_takes_it() -> None:
    x = torch.zeros(4, Tagged(6, A))
    assert x.view(Tagged(24, B)).shape == (24,) and x.shape[Tagged(1, A)] == 6
    assert type(x.shape[1]) is int


def test_a_division_by_zero_has_no_value() -> None:
    assert evaluate(term_of(Tagged(24, B) // Tagged(6, A)), lambda leaf: 0) is None


def test_a_copy_remembers_and_what_is_written_does_not() -> None:
    assert term_of(copy.deepcopy(Tagged(6, A))) == A and type(pickle.loads(pickle.dumps(Tagged(6, A)))) is int
    assert {Tagged(6, A): 1}[6] == 1


def test_who_compares_is_noticed_where_they_are_equal() -> None:
    seen: list[object] = []
    with noticed(lambda a, b: seen.append((a, b))):
        assert Tagged(6, A) == 6 and Tagged(6, A) != 7 and Tagged(24, B) != Tagged(6, A)
        assert (Tagged(6, A) != 6) is False
    assert seen == [(A, 6), (A, 6)]
    assert Tagged(6, A) == 6 and len(seen) == 2


@pytest.mark.parametrize(
    "made", [lambda a: a**-0.5, lambda a: math.sqrt(a), lambda a: a * 0.5, lambda a: a / 2.0, float]
)
def test_what_is_made_a_float_is_told(made: Callable[[int], float]) -> None:
    seen: list[object] = []
    with floated(seen.append):
        assert made(Tagged(6, A)) == made(6)
    assert seen == [A]
