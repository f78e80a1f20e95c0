"""One set of options: what compile, sweep and their texts read, and what is refused."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from typing import Any, get_args

import numpy as np
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
    not_of_sweep = {"method", "ratios", "steps", "alone", "weights", "out"}
    assert set(FIELDS) - set(spelled) == (not_of_sweep if name == "sweep" else set())
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
        ({"steps": 0}, ValueError, "steps must be an int of at least 1, .*got 0"),
        ({"round_to": "autoo"}, ValueError, "round_to must be 'auto', 'measure' or an int of at least 1, got 'autoo'"),
        ({"min_keep": 2**63}, ValueError, "min_keep must be an int of at least 0"),
        *(
            ({option: value}, TypeError, f"{option}: expected a str or several in a tuple, got")
            for option in ("units", "ignore")
            for value in (None, 5, iter(()))
        ),
        *(
            ({"ridge": value}, ValueError, "ridge must be a positive share")
            for value in (torch.inf, 1e308, 10**400, True)
        ),
        *(
            ({"loss": value}, TypeError, r"loss: expected a function of \(outputs, targets\), got")
            for value in (5, "mse", lambda outputs: None)
        ),
        ({"forward_args": 5}, TypeError, r"forward_args: expected a function of \(batch\), got 5"),
        *(
            ({"cache_dir": value}, TypeError, "cache_dir: expected the path of a folder, or None, got")
            for value in (5, b"there", True, "")
        ),
        ({"seed": 0.5}, TypeError, r"seed: expected an int, got 0\.5"),
        *(
            ({"seed": value}, ValueError, r"seed: expected an int from -2\*\*63")
            for value in (2**63, 10**400, -(10**400))
        ),
        *(
            (
                {"budget": None, "ratios": {key: 0.5}},
                fxprune.BudgetError,
                "ratios: expected patterns of layer names as keys",
            )
            for key in (5, None)
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        compiled(**given)


@pytest.mark.parametrize("seed", [np.int64(3), torch.tensor(3), True, -(2**63), 2**63 - 1])
def test_a_seed_is_kept_as_the_int_that_it_stands_for(seed: Any) -> None:
    plan = compiled(seed=seed, method="random").plan
    assert (
        type(plan.seed) is int and plan.seed == int(seed) and fxprune.Plan.from_json(plan.to_json()).seed == plan.seed
    )


def test_one_parameter_is_not_all_parameters() -> None:
    one, whole = fxprune.Budget(params=1), fxprune.Budget(params=1.0)
    assert one != whole and len({one, whole, fxprune.Budget(params=1)}) == 2
    assert fxprune.Budget(macs=1) != fxprune.Budget(macs=1.0) and fxprune.Budget(params=1.0) != 1.0
    assert fxprune.Budget(latency_ms=5) == fxprune.Budget(latency_ms=5.0)
    assert fxprune.report(compiled(budget=1.0)).params[1] == fxprune.report(compiled(budget=1.0)).params[0]
