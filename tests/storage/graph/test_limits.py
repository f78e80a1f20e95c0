"""The sizes that a graph stands for are stored with it; what a damaged file says of them is refused."""

from __future__ import annotations

import json
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
)


def stored() -> Any:
    return json.loads(json.dumps(describe_limits(LIMITS)))


def test_limits_come_back() -> None:
    assert read_limits(stored(), 2, "here") == LIMITS


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
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
