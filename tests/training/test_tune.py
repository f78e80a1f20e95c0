"""One set of options for finetune and retrain; what cannot be trained is said at once, and nothing has changed by then."""

from __future__ import annotations

import dataclasses
import inspect
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fxprune
from fxprune._base.errors import CalibrationError, FxpruneError, TrainingError
from fxprune.compiler.options import described
from fxprune.training import TrainingOptions, feed, finetune, loop, retrain, setup
from fxprune.training.recipe import recipe_of
from tests.support.training import SGD, digest, net, pairs

FIELDS = {entry.name: entry.default for entry in dataclasses.fields(TrainingOptions)}
OWN = {"finetune": {"pruned", "data", "overrides"}, "retrain": {"pruned", "data", "overrides", "reset"}}


@pytest.mark.parametrize("name", OWN)
def test_the_calls_spell_out_the_options(name: str) -> None:
    parameters = inspect.signature(getattr(fxprune, name)).parameters
    spelled = {key: value for key, value in parameters.items() if key not in OWN[name]}
    defaults = FIELDS if name == "finetune" else {**FIELDS, "recipe": "spvr"}
    assert {key: value.default for key, value in spelled.items()} == defaults
    assert {key: value.annotation for key, value in spelled.items()} == TrainingOptions.__annotations__


@pytest.mark.parametrize("name", OWN)
def test_their_texts_are_those_of_the_options(name: str) -> None:
    text, texts = getattr(fxprune, name).__doc__, described(TrainingOptions)
    assert "(options)" not in text and set(texts) == set(FIELDS)
    assert all(f"        {key}: {body}\n" in text for key, body in texts.items())


def test_no_function_within_takes_them_one_by_one() -> None:
    functions = [f for module in (feed, loop, setup) for f in vars(module).values() if inspect.isfunction(f)]
    functions = [f for f in functions if f.__module__.startswith("fxprune.training")]
    assert setup.start in functions and all(len(inspect.signature(f).parameters) <= 8 for f in functions)


@pytest.mark.slow
def test_options_are_read_without_torch() -> None:
    code = "import sys, fxprune.training; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def _reset(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.zero_()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"recipe": "vpb"}, ValueError, "expected one of 'default', 'spvr', 'ippro', 'vbp', got 'vpb'"),
        ({"recipe": 3}, TypeError, "expected a name or a fxprune.Recipe, got int"),
        ({"epochs": 0}, ValueError, "epochs: expected a whole number of at least 1, got 0"),
        ({"lr": -1.0}, ValueError, "lr: expected a number above 0, got -1.0"),
        ({"lr": math.nan}, ValueError, "lr: expected a number above 0, got nan"),
        ({"wd": 0.1}, TypeError, "unknown argument 'wd': a recipe has epochs, lr"),
        ({"optimizer": "adam"}, ValueError, "optimizer: expected 'sgd' or 'adamw', got 'adam'"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing: expected"),
        ({"label_smoothing": 0.1, "loss": F.cross_entropy}, ValueError, "smooth in it"),
        ({"loss": lambda y, t: y}, ValueError, r"loss: expected a tensor of one number.*\[8, 3\]"),
        ({"mixed_precision": "fp8"}, ValueError, "expected 'no' or 'bf16', got 'fp8'"),
        ({"metrics": object()}, ValueError, "pass validation="),
        ({"seed": -1}, ValueError, "seed: expected a whole number from 0"),
        ({"seed": 2**63}, ValueError, r"seed: expected an int from -2\*\*63 to 2\*\*63 - 1"),
        ({"teacher": "dense"}, TypeError, "teacher: expected a torch.nn.Module, got str"),
        ({"data": [torch.ones(2, 1, 4, 4)]}, CalibrationError, "no targets and there is no teacher"),
        ({"data": []}, CalibrationError, "it is empty"),
        ({"data": iter(pairs())}, CalibrationError, "runs dry after one pass"),
        ({"data": [(torch.ones(2, 9), torch.ones(2).long())]}, CalibrationError, "the model fails on it"),
        ({"data": [(torch.ones(2, 1, 4, 4), torch.ones(5).long())]}, CalibrationError, "do not fit outputs"),
        ({"teacher": net(classes=5)}, CalibrationError, r"teacher's outputs to be \[8, 3\]"),
    ],
)
def test_bad_input_is_refused_before_anything_changes(changes: Any, error: Any, message: str) -> None:
    model = net()
    before = digest(model)
    given = {"data": pairs(), "progress": False, **changes}
    for train in (finetune, retrain):
        with pytest.raises(error, match=message):
            train(model, **given)
        assert digest(model) == before
        assert model.training


def test_a_model_that_cannot_be_trained_or_reset_is_refused() -> None:
    model = net()
    with pytest.raises(ValueError, match="shares tensors"):
        finetune(model, pairs(), teacher=model)
    with pytest.raises(TrainingError, match="nothing to train"):
        finetune(net().requires_grad_(False), pairs())
    model.scale = nn.Parameter(torch.ones(3))
    with pytest.raises(FxpruneError, match=r"found none for 'scale' \(1 in all\); retrain takes reset="):
        retrain(model, pairs(), recipe=SGD)
    retrain(model, pairs(), recipe=SGD, epochs=1, reset=_reset, progress=False)
    assert float(model.scale.detach().abs().max()) == 0.0
    assert recipe_of("vbp", epochs=2).epochs == 2


BLOCKED = """
import sys
sys.modules["accelerate"] = sys.modules["torchmetrics"] = None
import torch, fxprune
try:
    fxprune.finetune(torch.nn.Linear(2, 2), [torch.ones(1, 2)])
except ImportError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_extra_is_needed_only_to_train() -> None:
    done = subprocess.run([sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "training needs accelerate" in done.stdout
    assert "pip install 'fxprune[train]'" in done.stdout


@pytest.mark.parametrize("train", [finetune, retrain])
@pytest.mark.slow
def test_the_report_says_that_the_weights_were_trained(train: Any) -> None:
    data = pairs()
    pruned = fxprune.compile(net().eval(), [x for x, _ in data], 0.7, progress=False)
    with pytest.raises(CalibrationError):
        train(pruned, [x for x, _ in data], recipe=SGD, epochs=1, progress=False)
    assert not any("trained since" in note for note in pruned.report.notes)  # nothing has changed yet
    for _ in range(2):
        train(pruned, data, recipe=SGD, epochs=1, progress=False)
    line = f"the weights have been trained since ({train.__name__}): the certificate is about those before"
    fidelity = pruned.report.fidelity
    assert fidelity is not None and str(fidelity) == "not measured: the weights have been trained since"
    assert pruned.report.notes.count(line) == 1 and f"note: {line}" in str(fxprune.report(pruned))
