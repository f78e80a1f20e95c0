"""Arguments of stored nodes: exact both ways, and nothing else is read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx

from fxprune._base.errors import PlanError
from fxprune.storage.graph import values
from fxprune.storage.graph.values import Unstorable

ARGUMENTS = [
    None, True, False, 0, -(2**63), 2**63 - 1, 0.1, -0.0, 1e308, float("inf"), float("-inf"), 1j, complex(2.5, -1), "", 'a"\\\n',
    [1, [2.0, None]], (1, (), [()]), slice(None, 3, None), slice(1, 2, 3), torch.float32, torch.bool, torch.complex64,
    torch.device("cpu"), torch.device("cuda:1"), torch.strided, torch.channels_last, {"a": [1, (2,)]}, {}, values.Opaque("f"),
]  # fmt: skip


@pytest.mark.parametrize("value", ARGUMENTS, ids=repr)
def test_arguments_come_back(value: Any) -> None:
    again = values.plain(json.loads(json.dumps(values.to_json(value), allow_nan=False)), "here")
    assert type(again) is type(value) and again == value and repr(again) == repr(value)


def test_every_float_is_a_float() -> None:
    for value in (np.float64(0.1), np.float64("inf")):
        again = values.plain(json.loads(json.dumps(values.to_json(value), allow_nan=False)), "here")
        assert type(again) is float and again == value


def test_nodes_and_nan_come_back() -> None:
    node = fx.Graph().placeholder("x")
    again = values.from_json(values.to_json([node, (node, float("nan"))]), "here", {"x": node})
    assert again[0] is node and again[1][0] is node and again[1][1] != again[1][1]
    assert values.to_json(torch.Size([1, 2])) == {"tuple": [1, 2]}


@pytest.mark.parametrize("value", [2**63, print, object(), torch.ones(1), {1: 2}, "\ud800", int, {"a": print}])
def test_arguments_without_a_json_form(value: Any) -> None:
    with pytest.raises(Unstorable):
        values.to_json(value)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"node": "y"},
        {"node": 1},
        {"float": "1"},
        {"a": 1},
        {"tuple": 1},
        {"tuple": [], "node": "x"},
        {"slice": [1]},
        {"dtype": "Tensor"},
        {"dtype": "float32 "},
        {"device": "cpu:x"},
        {"device": "os.system"},
        {"layout": "float32"},
        {"complex": [1, 2]},
        {"dict": [1]},
        2**63,
        float("inf"),
        {"memory_format": []},
        {"opaque": 3},
        {"float": {}},
    ],
    ids=repr,
)
def test_arguments_that_are_refused(data: Any) -> None:
    with pytest.raises(PlanError, match=r"^here"):
        values.from_json(data, "here", {})


def test_deep_arguments_are_refused() -> None:
    data: Any = 1
    for _ in range(400):
        data = {"tuple": [data]}
    with pytest.raises(PlanError, match="too deeply"):
        values.plain(data, "here")
