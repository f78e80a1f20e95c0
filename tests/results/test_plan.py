"""The plan as JSON: exact both ways, and a clear error for anything else that may be in the file."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fxprune._base.errors import PlanError
from fxprune.data.example import ExampleSpec
from fxprune.results import plan as plan_module
from fxprune.results.plan import SCHEMA, Plan, check_fits


def make_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "keep": {"conv.weight": {0: (0, 2), 1: (1,)}, "conv.bias": {0: (0, 2)}},
        "shapes": {"conv.weight": (4, 3, 1, 1), "conv.bias": (4,), "norm.num_batches_tracked": ()},
        "collapsed": ("block.1",),
        "before": {"params": 16, "macs": 48, "bytes": 72},
        "after": {"params": 4, "macs": 8, "bytes": 24},
        "budget": {"params": 0.5, "macs": 40},
        "method": "variance",
        "seed": -3,
        "example": ExampleSpec.of({"x": torch.ones(2, 3, 1, 1)}, [(0,)]),
        "versions": {"fxprune": "0.1.0", "torch": "2.15.0"},
    }
    return Plan(**{**values, **changes})


PLAN = make_plan()
DATA = json.loads(PLAN.to_json())


def test_the_text_is_stable() -> None:
    structure = json.dumps(PLAN.example.structure)
    text = PLAN.to_json()
    assert text.partition('"sha256"')[0] == (
        '{\n"schema": 1,\n"method": "variance",\n"seed": -3,\n'
        '"budget": {\n  "macs": 40,\n  "params": 0.5\n},\n'
        '"before": {\n  "params": 16,\n  "macs": 48,\n  "bytes": 72\n},\n'
        '"after": {\n  "params": 4,\n  "macs": 8,\n  "bytes": 24\n},\n'
        '"versions": {\n  "fxprune": "0.1.0",\n  "torch": "2.15.0"\n},\n'
        f'"example": {{\n  "structure": {structure},\n'
        '  "leaves": [{"shape":[2,3,1,1],"dtype":"float32","dynamic":[0]}]\n},\n'
        '"islands": [],\n"collapsed": ["block.1"],\n'
        '"bridged": [],\n'
        '"remade": {},\n'
        '"shapes": {\n  "conv.bias": [4],\n  "conv.weight": [4,3,1,1],\n  "norm.num_batches_tracked": []\n},\n'
        '"keep": {\n  "conv.bias": {"0":[0,2]},\n  "conv.weight": {"0":[0,2],"1":[1]}\n},\n'
    )


def test_round_trip() -> None:
    again = Plan.from_json(PLAN.to_json())
    assert again == PLAN and again.to_json() == PLAN.to_json()
    assert Plan.from_json(json.dumps(DATA, indent=7).encode()) == PLAN  # the layout does not matter
    assert Plan.from_json(make_plan(budget=None, keep={}, collapsed=()).to_json()).budget is None


sizes = st.integers(1, 6)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    shapes = draw(st.dictionaries(st.text(min_size=1), st.lists(sizes, max_size=3).map(tuple), max_size=4))
    keep: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        for axis, size in enumerate(shape):
            kept = draw(st.none() | st.sets(st.integers(0, size - 1), max_size=size - 1))
            if kept is not None:
                keep.setdefault(name, {})[axis] = tuple(sorted(kept))
    return make_plan(keep=keep, shapes=shapes, method=draw(st.text()), seed=draw(st.integers(-(2**63), 2**63 - 1)))


@given(plans())
@settings(deadline=None, max_examples=60)
def test_any_plan_makes_the_round_trip(plan: Plan) -> None:
    assert Plan.from_json(plan.to_json()) == plan


# -- damage ---------------------------------------------------------------------------------------------------------


def resealed(data: Any) -> str:
    """Returns the JSON with the checksum that it would have, had fxprune written it."""
    data = copy.deepcopy(data)
    body = {key: value for key, value in data.items() if key != "sha256"}
    try:
        ordered = {key: body[key] for key in plan_module._READERS}
        data["sha256"] = plan_module._digest(ordered)
    except (KeyError, ValueError):
        pass
    return json.dumps(data)


def changed(path: str, value: Any) -> str:
    data = copy.deepcopy(DATA)
    *parents, last = path.split("/")
    here = data
    for key in parents:
        here = here[key]
    if value is ...:
        del here[last]
    else:
        here[last] = value
    return resealed(data)


def test_resealing_alone_changes_nothing() -> None:
    assert Plan.from_json(resealed(DATA)) == PLAN


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", SCHEMA + 1, "format 2 is not one that this fxprune reads (up to 1): upgrade fxprune"),
        ("schema", 0, "schema: expected one of 1, got 0"),
        ("schema", True, "schema: expected a whole number from 0, got True"),
        ("schema", ..., "schema: expected a whole number from 0, got None"),
        ("seed", ..., "seed missing"),
        ("extra", 1, "unknown entries ['extra']"),
        ("method", 3, "method: expected text, got 3"),
        ("method", "\ud800", "method: expected text"),
        ("seed", 2**63, "seed: expected a whole number"),
        ("seed", True, "seed: expected a whole number, got True"),
        ("budget", {"params": "half"}, "budget['params']: expected a number, got 'half'"),
        ("before", {"macs": 1}, "before: bytes, params missing"),
        ("before/params", -1, "before: params: expected a whole number from 0"),
        ("after/flops", 1, "after: unknown entries ['flops']"),
        ("collapsed", "block", "collapsed: expected an array"),
        ("islands", "body", "islands: expected an array"),
        ("versions", [], "versions: expected an object"),
        ("shapes/conv.bias", [4.0], "shapes['conv.bias'][0]: expected a whole number"),
        ("shapes/conv.bias", [-4], "shapes['conv.bias'][0]: expected a whole number from 0"),
        ("keep/other.weight", {"0": [0]}, "keep['other.weight']: no such tensor in shapes"),
        ("keep/conv.bias", {}, "keep['conv.bias']: no axis"),
        ("keep/conv.bias", {"1": [0]}, "expected an axis of a tensor of shape [4], got '1'"),
        ("keep/conv.bias", {"-1": [0]}, "got '-1'"),
        ("keep/conv.bias", {"00": [0]}, "got '00'"),
        ("keep/conv.bias", {"0": [4]}, "index 4 is out of range for 4 coordinates"),
        ("keep/conv.bias", {"0": [-1, 2]}, "expected indices from 0"),
        ("keep/conv.bias", {"0": [2, 0]}, "expected ascending indices"),
        ("keep/conv.bias", {"0": [2, 2]}, "expected ascending indices, each once"),
        ("keep/conv.bias", {"0": [0, True]}, "expected indices from 0"),
        ("keep/conv.bias", {"0": [0, 1, 2, 3]}, "nothing is removed"),
        ("example", None, "example: expected an object"),
        ("example/leaves", [], "example: expected 1 leaves, got 0"),
    ],
)
def test_a_plan_with_one_wrong_value(path: str, value: Any, message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        Plan.from_json(changed(path, value))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "7",
        '"plan"',
        b"\xff\xfe",
        "[" * 100_000,
        '{"seed": NaN}',
        '{"seed": ' + "9" * 5000 + "}",
        '{"schema": 1, "schema": 1}',
        PLAN.to_json()[:-100],
        PLAN.to_json() + "}",
    ],
)
def test_a_text_that_is_no_plan(text: str | bytes) -> None:
    with pytest.raises(PlanError, match="plan: "):
        Plan.from_json(text)


def test_a_change_that_would_be_a_plan_too_is_found() -> None:
    text = PLAN.to_json()
    altered = text.replace('"conv.bias": {"0":[0,2]}', '"conv.bias": {"0":[0,3]}')
    assert altered != text
    with pytest.raises(PlanError, match="checksum does not match"):
        Plan.from_json(altered)


@given(st.data())
@settings(deadline=None, max_examples=300)
def test_a_mutated_text_is_refused_or_the_same_plan(data: st.DataObject) -> None:
    text = PLAN.to_json()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 8, len(text))))
    put = data.draw(st.text(max_size=8) | st.sampled_from(['"', "{", "]", "-1", "1e999", "null", "\\u0000"]))
    try:
        plan = Plan.from_json(text[:start] + put + text[end:])
    except PlanError as error:
        assert str(error)
    else:
        assert plan == PLAN


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
@settings(deadline=None, max_examples=300)
@pytest.mark.slow
def test_a_mutated_structure_is_refused_or_a_plan(data: st.DataObject) -> None:
    tree = copy.deepcopy(DATA)
    here: Any = tree
    while True:
        keys = sorted(here) if isinstance(here, dict) else range(len(here))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(here[key], dict | list) or not here[key] or data.draw(st.booleans()):
            break
        here = here[key]
    if isinstance(here, dict) and data.draw(st.booleans()):
        del here[key]
    else:
        here[key] = data.draw(json_values)
    try:
        plan = Plan.from_json(resealed(tree))
    except PlanError as error:
        assert str(error)
    else:
        assert Plan.from_json(plan.to_json()) == plan


# -- the model ------------------------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self, channels: int = 4, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1, bias=bias)
        self.norm = nn.BatchNorm2d(channels)
        self.unused = nn.Linear(2, 2)


def test_a_plan_fits_its_model_and_what_the_graph_never_reaches_is_free() -> None:
    check_fits(PLAN, Small())
    check_fits(PLAN, {name: list(shape) for name, shape in PLAN.shapes.items()})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Small(channels=5), "conv.weight: expected [4, 3, 1, 1], got [5, 3, 1, 1]"),
        (Small(bias=False), "conv.bias: expected [4], the model has no such tensor"),
        ({**PLAN.shapes, "more": (1,)}, "more: unknown to the plan"),
    ],
)
def test_a_plan_for_another_model(model: Any, message: str) -> None:
    with pytest.raises(PlanError, match=re.escape(message)):
        check_fits(PLAN, model)


def test_only_the_first_differences_are_named() -> None:
    plan = make_plan(shapes={f"layer{i}": (1,) for i in range(9)}, keep={})
    with pytest.raises(PlanError, match=r"layer4: .*\n  and 4 more") as error:
        check_fits(plan, Small())
    assert "layer5" not in str(error.value)
