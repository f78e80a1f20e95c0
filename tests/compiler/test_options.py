"""One set of options: what compile, sweep and their texts read, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from typing import Any, get_args

import pytest
import torch
from torch import nn

import fxprune
from fxprune.algebra.channels import KINDS
from fxprune.compiler import options
from fxprune.scoring.scorer import registered

FIELDS = {entry.name: entry.default for entry in dataclasses.fields(fxprune.Options)}
OWN = {
    "compile": {"model", "calib_data", "budget"},
    "sweep": {"model", "calib_data", "budgets", "methods", "evaluate", "latency"},
}


@pytest.mark.parametrize("name", OWN)
def test_the_calls_spell_out_the_options(name: str) -> None:
    parameters = inspect.signature(getattr(fxprune, name)).parameters
    spelled = {key: value for key, value in parameters.items() if key not in OWN[name]}
    assert {key: value.default for key, value in spelled.items()} == {key: FIELDS[key] for key in spelled}
    assert set(FIELDS) - set(spelled) == ({"method", "ratios", "steps"} if name == "sweep" else set())
    annotations = fxprune.Options.__annotations__
    assert all(value.annotation == annotations[key] for key, value in spelled.items())


@pytest.mark.parametrize("name", OWN)
def test_their_texts_are_those_of_the_options(name: str) -> None:
    function = getattr(fxprune, name)
    assert "(options)" not in function.__doc__
    for key in inspect.signature(function).parameters:
        assert f"        {key}: " in function.__doc__
        if key in FIELDS:
            assert options.described()[key] in function.__doc__


def test_every_option_is_described() -> None:
    assert set(options.described()) == set(FIELDS)


def test_the_names_in_the_types_are_those_that_are_registered() -> None:
    assert set(get_args(options.MethodName)) == set(registered())
    assert set(get_args(options.UnitKind)) == set(KINDS)


@pytest.mark.slow
def test_options_are_read_without_torch() -> None:
    code = "import fxprune._base.defaults, sys; sys.modules.pop('torch', None); import fxprune.compiler.options as o; print(len(o.described()))"
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout) == len(
        FIELDS
    )


def compiled(**given: Any) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    return fxprune.compile(net, [torch.randn(4, 6)], **{"budget": 0.6, "progress": False, **given})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"budget": 1}, fxprune.BudgetError, r"budget=1 is an int: write 1\.0 for all .*, or Budget\(params=1\)"),
        ({"budget": 40}, fxprune.BudgetError, r"budget=40 is an int: write a float .*, or Budget\(params=40\)"),
        ({"budget": True}, fxprune.BudgetError, "budget must be a share such as 0.5"),
        ({"memory_limit": True}, ValueError, "memory_limit must be a positive number of bytes, got True"),
        ({"steps": 0}, ValueError, "steps must be an int of at least 1, got 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compiled(**given)


def test_one_parameter_is_not_all_parameters() -> None:
    one, whole = fxprune.Budget(params=1), fxprune.Budget(params=1.0)
    assert one != whole and len({one, whole, fxprune.Budget(params=1)}) == 2
    assert fxprune.Budget(macs=1) != fxprune.Budget(macs=1.0) and fxprune.Budget(params=1.0) != 1.0
    assert fxprune.Budget(latency_ms=5) == fxprune.Budget(latency_ms=5.0)
    assert fxprune.report(compiled(budget=1.0)).params[1] == fxprune.report(compiled(budget=1.0)).params[0]
