"""The example call of a plan: what comes back, and what a file may not ask for."""

from __future__ import annotations

import json
import re
import sys
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune._base.errors import PlanError
from fxprune.data.example import ExampleSpec, TensorSpec

ARGUMENTS = {
    "x": torch.ones(2, 3),
    "rest": [torch.ones(4, dtype=torch.int64), None, {"scale": 0.5, "name": "a"}],
    "how": OrderedDict(dtype=torch.float16, device=torch.device("cpu"), flag=True),
}
DYNAMIC = [(0,), (0,), (), (), (), (), (), ()]


class Model(nn.Module):
    def forward(self, x: Tensor, *rest: Any, how: Any = None) -> Tensor:
        return x


def test_round_trip_through_json() -> None:
    spec = ExampleSpec.of(ARGUMENTS, DYNAMIC)
    assert ExampleSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.leaves[0] == TensorSpec((2, 3), "float32", (0,))


def test_call_gives_zeros_in_the_model_s_own_signature() -> None:
    spec = ExampleSpec.of({**ARGUMENTS, "rest": tuple(ARGUMENTS["rest"])}, DYNAMIC)
    args, kwargs = spec.call(Model(), "cpu")
    assert torch.equal(args[0], torch.zeros(2, 3)) and args[1].dtype == torch.int64
    assert args[2] is None and args[3] == {"scale": 0.5, "name": "a"}
    assert kwargs["how"]["dtype"] is torch.float16 and kwargs["how"]["flag"] is True
    grown, _ = spec.call(Model(), "cpu", grow=1)
    assert grown[0].shape == (3, 3) and grown[1].shape == (5,)


def test_a_model_without_such_a_parameter() -> None:
    with pytest.raises(PlanError, match="has no parameter 'how'"):
        ExampleSpec.of(ARGUMENTS).call(nn.ReLU(), "cpu")


def test_a_call_without_json_form_is_kept_until_it_is_saved() -> None:
    point = namedtuple("point", "x")
    for odd in (point(torch.ones(1)), object(), {1: torch.ones(1)}):
        spec = ExampleSpec.of({"x": odd})
        with pytest.raises(PlanError, match="no JSON form"):
            spec.to_dict()
        with pytest.raises(PlanError, match="no JSON form"):
            spec.call(Model(), "cpu")


def test_zeros_that_no_memory_holds() -> None:
    spec = ExampleSpec(ExampleSpec.of({"x": torch.ones(1)}).structure, (TensorSpec((2**62, 2**62), "float32"),))
    with pytest.raises(PlanError, match="cannot be made"):
        spec.call(Model(), "cpu")


def node(kind: Any, context: Any, *children: Any) -> dict[str, Any]:
    return {"type": kind, "context": context, "children_spec": list(children)}


LEAF = node(None, None)
ENUM = json.dumps({"__enum__": True, "fqn": "antigravity:x", "name": "y"})
DEFAULT = {"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (node("collections.defaultdict", DEFAULT), "containers of type 'collections.defaultdict'"),
        (node("builtins.dict", ENUM), "expected an array"),
        (node("builtins.dict", f"[{ENUM}]", LEAF), "expected text"),
        (node("builtins.dict", '["x"]', node("builtins.list", ENUM)), "has a context"),
        (node("builtins.dict", '["x"]', node("collections.namedtuple", '"os.terminal_size"')), "not read from files"),
        (node("builtins.dict", '["x", "x"]', LEAF, LEAF), "2 different keys"),
        (node("builtins.dict", '["x"]'), "0 different keys"),
        (node("builtins.dict", "[", LEAF), "damaged context"),
        (node("builtins.list", "null", LEAF), "expected a dict of arguments"),
        ([], "expected an object"),
    ],
)
def test_structures_that_are_refused(tree: Any, message: str) -> None:
    data = {"structure": json.dumps([1, tree]), "leaves": [{"constant": 0}]}
    with pytest.raises(PlanError, match=re.escape(message)):
        ExampleSpec.from_dict(data)
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "no tree"), ("[2, {}]", "protocol 1"), ("7", "no tree"), ("[1]", "no tree"), ("[" * 9000, "no tree")],
)
def test_structures_that_are_no_tree(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        ExampleSpec.from_dict({"structure": text, "leaves": []})


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ({"shape": [2], "dtype": "system", "dynamic": []}, "expected a dtype"),
        ({"shape": [-2], "dtype": "float32", "dynamic": []}, "whole number"),
        ({"shape": [2], "dtype": "float32", "dynamic": [1]}, "dynamic dimension 1"),
        ({"shape": [2], "dtype": "float32"}, "dynamic missing"),
        ({"torch.dtype": "Tensor"}, "expected a dtype"),
        ({"torch.device": "nowhere"}, "expected a device"),
        ({"constant": []}, "expected a number"),
        (3, "expected an object"),
    ],
)
def test_leaves_that_are_refused(leaf: Any, message: str) -> None:
    structure = ExampleSpec.of({"x": 0}).structure
    with pytest.raises(PlanError, match=message):
        ExampleSpec.from_dict({"structure": structure, "leaves": [leaf]})


def test_the_number_of_leaves_must_fit() -> None:
    with pytest.raises(PlanError, match="expected 1 leaves, got 0"):
        ExampleSpec.from_dict({"structure": ExampleSpec.of({"x": 0}).structure, "leaves": []})
