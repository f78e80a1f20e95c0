"""`fxprune.bench` measures models in turns, and says what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune._base.errors import BudgetError, CalibrationError, FxpruneError
from fxprune.budget.budget import Budget


def test_bench_measures_models_in_turns(network: Any) -> None:
    model, x = network
    pruned = fxprune.compile(model, [x], Budget(macs=0.3), progress=False)
    model.train()
    found = fxprune.bench((model, pruned), x, batch_sizes=(1, 3), repeats=2, seconds=0.01)
    assert model.training
    model.eval()
    assert [(r.model, r.batch_size) for r in found.rows] == [("dense", 1), ("pruned", 1), ("dense", 3), ("pruned", 3)]
    assert all(row.ms > 0 for row in found.rows) and found.rows[0].ratio == 1.0
    assert found.rows[1].speedup == 1 / found.rows[1].ratio and f"{found.rows[1].speedup:.2f} x" in str(found)
    assert found.to_dict()["rows"][1]["speedup"] == found.rows[1].speedup
    weights = [sum(t.nbytes for t in (*m.parameters(), *m.buffers())) for m in (model, pruned)]
    assert [row.parameter_bytes for row in found.rows[:2]] == weights
    assert found.rows[3].peak_bytes < found.rows[2].peak_bytes  # narrower layers need less
    assert found.rows[0].peak_bytes >= 4 * 24 * 10 * 10  # the first layer's output, at least
    assert json.loads(json.dumps(found.to_dict()))["rows"][1]["model"] == "pruned"
    assert str(found).splitlines()[0] == f"cpu, {torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)
    named = fxprune.bench({"a": pruned}, repeats=1, seconds=0)  # a model of fxprune's own needs no example
    assert named.rows[0].model == "a"


def test_a_model_that_fails_costs_only_its_own_rows(network: Any) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(4, 3 * 12 * 12)[:, :2]

    models = {"dense": Fixed(), "pruned": network[0]}
    found = fxprune.bench(models, network[1], batch_sizes=(4, 3), repeats=1, seconds=0.0)
    assert [(row.model, row.batch_size) for row in found.rows] == [("dense", 4), ("pruned", 4), ("pruned", 3)]
    assert found.rows[1].ratio is not None and found.rows[2].ratio is None
    assert found.rows[2].speedup is None and " - " in str(found).splitlines()[-2]
    assert found.failed[0].startswith("dense: eager, batch 3, cpu") and "RuntimeError" in found.failed[0]


def test_one_backend_need_not_stand_in_a_tuple(network: Any) -> None:
    model, x = network
    found = fxprune.bench([model], x, backends="eager", repeats=1, seconds=0.0)
    assert [row.backend for row in found.rows] == ["eager"]
    assert "KiB" in str(found) and " 0.0 MiB" not in str(found)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"backends": ("tvm",)}, BudgetError, "backend: expected one of"),
        ({"batch_sizes": (0,)}, BudgetError, "batch_size: expected"),
        ({"batch_sizes": ()}, FxpruneError, "expected a batch size"),
        ({"repeats": 0}, FxpruneError, "repeats: expected an int of at least 1, got 0"),
        ({"models": []}, FxpruneError, r"expected models by name, or \(dense, pruned\), got none"),
        ({"models": ["resnet"]}, FxpruneError, "got str"),
        ({"example": None}, CalibrationError, "expected a batch, got None"),
    ],
)
def test_bench_says_what_is_wrong(network: Any, arguments: Any, error: Any, message: str) -> None:
    model, x = network
    with pytest.raises(error, match=message):
        fxprune.bench(**{"models": [model], "example": x} | arguments)


@pytest.mark.slow
def test_an_onnxruntime_session_runs_the_pruned_model(network: Any) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, x = network
    found = fxprune.bench([model], x, backends=("onnxruntime",), repeats=1, seconds=0)
    assert found.rows[0].ms > 0 and found.rows[0].peak_bytes is None and not found.failed
