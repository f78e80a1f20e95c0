"""The sizes that a graph stands for are stored with it; what a damaged file says of them is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from fxprune._base.errors import PlanError
from fxprune.capturing.limits import Limits
from fxprune.storage.graph.limits import describe_limits, read_limits

LIMITS = Limits(
    ("x", "mask"),
    (("x.shape[0]", 3, "x.shape[2]"), ("x.shape[0]", ("floordiv", "x.shape[2]", 2))),
    (("x.shape[0]", 1), ("x.shape[2]", 2)),
    (("eq", ("mod", "x.shape[2]", 32), 0), ("le", "x.shape[2]", 512)),
    ("floating", "bool"),
)


def stored() -> Any:
    return json.loads(json.dumps(describe_limits(LIMITS)))


def test_limits_come_back() -> None:
    assert read_limits(stored(), 2, "here") == LIMITS


def test_a_file_of_an_earlier_version_has_no_kinds() -> None:
    old = {key: value for key, value in stored().items() if key != "kinds"}
    assert read_limits(old, 2, "here") == replace(LIMITS, kinds=())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("kinds", ["bool"], "expected those of 2 inputs, got 1"),
        ("kinds", ["bool", "text"], "expected one of bool"),
        ("names", ["x"], "expected names and shapes of 2 inputs"),
        ("shapes", [[3], ["y.shape[0]", ["mul", 2]]], "a term of 2 to 64 operands"),
        ("least", [["y.shape[0]", 2]], "there is no size 'y.shape\\[0\\]'"),
        ("conditions", [["eq", "y", 3]], "there is no size 'y'"),
        ("conditions", [["system", "x.shape[0]", 3]], "expected one of add"),
        ("conditions", [[]], "expected a term"),
        ("conditions", [None], "a number"),
    ],
)
def test_damage_is_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        read_limits({**stored(), key: value}, 2, "here")
