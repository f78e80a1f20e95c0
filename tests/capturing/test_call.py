"""The calling convention: the original signature, its defaults, and what was fixed at capture."""

from __future__ import annotations

import enum
import math
from typing import Any, NamedTuple

import numpy
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capturing.call import same
from fxprune.capturing.captured import capture
from tests.models.fn import Fn
from tests.support.capturing import assert_equal, check, run

T0 = torch.ones(2)


class Result(NamedTuple):
    total: Tensor
    parts: dict[str, Any]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(
        self, x: Tensor, pair: Any = None, *rest: Tensor, flip: bool = False, scale: float = 1.0, **named: Any
    ) -> Result:
        y = self.lin(x) * scale
        y = -y if flip else y
        for other in [*(pair or ()), *rest, *named.values()]:
            y = y + other
        return Result(y, {"x": x, "none": None, "two": 2, "list": [y, "text"]})


def t(batch: int = 3) -> Tensor:
    return torch.randn(batch, 4)


CALLS: dict[str, Any] = {
    "positional": lambda b: ((t(b),), {}),
    "keyword": lambda b: ((), {"x": t(b)}),
    "nested": lambda b: ((t(b), (t(b), t(b))), {}),
    "varargs": lambda b: ((t(b), None, t(b), t(b)), {}),
    "varkwargs": lambda b: ((t(b),), {"extra": t(b), "more": t(b)}),
    "literals": lambda b: ((t(b),), {"flip": True, "scale": 0.5}),
    "out_of_order": lambda b: ((), {"scale": 2.0, "pair": [t(b)], "x": t(b)}),
}


@pytest.mark.parametrize("name", CALLS)
def test_outputs_and_inputs_keep_their_structure(name):
    model = Model()
    args, kwargs = CALLS[name](3)
    captured = capture(model, args, kwargs)
    for batch in (1, 3):
        args, kwargs = CALLS[name](batch)
        with torch.no_grad():
            expected = model(*args, **kwargs)
        got = run(captured, *args, **kwargs)
        assert type(got) is Result
        assert_equal(expected, got)


def test_inputs_of_a_class_of_their_own():
    transformers = pytest.importorskip("transformers")
    outputs = transformers.modeling_outputs.BaseModelOutput
    model = Fn(lambda self, given: self.lin(given.last_hidden_state), lin=nn.Linear(4, 4)).double()
    captured = check(model, outputs(last_hidden_state=t().double()))
    assert captured.batch == (10007, 3)


def test_signature_is_the_original_one():
    captured = capture(Model(), (t(),))
    assert str(captured.call.signature).startswith("(x: 'Tensor', pair: 'Any' = None, *rest: 'Tensor', flip:")


def test_position_and_keyword_are_the_same():
    model, x = Model(), t()
    captured = capture(model, (x,))
    assert_equal(run(captured, x), run(captured, x=x))


def test_defaults_may_be_spelled_out():
    captured, x = capture(Model(), (t(),)), t()
    assert_equal(run(captured, x), run(captured, x, None, flip=False, scale=1.0))


def test_literals_are_remembered():
    captured, x = capture(Model(), (t(),), {"flip": True}), t()
    assert_equal(run(captured, x, flip=True), run(captured, x, flip=True, scale=1))
    assert captured.call.literals == (None, True)
    assert captured.call.placeholders == ("x", None)


def test_a_default_is_held_to_what_was_captured():
    captured = capture(Model(), (t(),), {"flip": True, "scale": 2.0})
    for kwargs, message in [
        ({}, "'flip' .* captured with True .* got False .given, or the default.: pass True"),
        ({"flip": True}, "'scale' .* captured with 2.0 .* got 1.0"),
        ({"flip": 1, "scale": 2.0}, "'flip' .* captured with True .* got 1"),
    ]:
        with pytest.raises(fxprune.CallError, match=message):
            captured.call.flatten((t(),), kwargs)


class Extra(nn.Module):
    """Collects its flags."""

    def forward(self, x: Tensor, *scales: float, **flags: Any) -> Tensor:
        return x * sum(scales) + (x if flags.get("twice") else 0)


def test_collected_constants_are_held_to_as_well():
    x = t()
    captured = capture(Extra(), (x, 1.0, 2.0), {"twice": True})
    assert_equal(x * 4, run(captured, x, 1, 2.0, twice=True))
    for args, kwargs, message in [
        ((x, 1.0, 2.0), {}, "captured with 'twice' and needs it: pass True"),
        ((x, 1.0), {"twice": True}, "'scales' .* differs in structure"),
        ((x,), {"twice": True}, "'scales' .* differs in structure"),
        ((x, 1.0, 2.5), {"twice": True}, "'scales' .* captured with 2.0 .* got 2.5"),
    ]:
        with pytest.raises(fxprune.CallError, match=message):
            captured.call.flatten(args, kwargs)


class Mood(enum.Enum):
    GAY = 1
    SAD = 2


SAME = [
    (1, 1.0),
    (2.5, 2.5),
    (math.nan, float("nan")),
    ("sum", "".join(["su", "m"])),
    (None, None),
    (Mood.SAD, Mood.SAD),
    (torch.float32, torch.float),
    (torch.device("cpu"), torch.device("cpu")),
    (T0, T0),
    ((1, 2), (1, 2)),
]
OTHER = [
    (1, True),
    (0, False),
    (0.0, None),
    (2.5, math.nan),
    (1, "1"),
    (1, 1 + 0j),
    (Mood.GAY, Mood.SAD),
    (Mood.GAY, 1),
    (torch.float32, torch.float64),
    (torch.device("cpu"), torch.device("meta")),
    (T0, T0.clone()),
    (T0, None),
    (object(), object()),
    (numpy.ones(2), numpy.ones(2)),
    ((1, 2), [1, 2]),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_constants_that_are_the_same(a, b):
    assert same(a, b) and same(b, a)


@pytest.mark.parametrize(("a", "b"), OTHER)
def test_constants_that_are_not_the_same(a, b):
    assert not same(a, b) and not same(b, a)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"flip": True}, "'flip' .* was not given when the model was captured, got True"),
        ({"scale": 0.25}, "'scale' .* captured with 0.5 .* got 0.25"),
        ({"pair": (1, 2)}, "'pair' .* was not given when the model was captured"),
        ({"x": None}, "multiple values"),
    ],
)
def test_another_call_is_refused(kwargs, message):
    captured = capture(Model(), (t(),), {"scale": 0.5})
    with pytest.raises(TypeError, match=message):
        captured.call.flatten((t(),), kwargs)


def test_wrong_arguments_are_refused():
    captured = capture(Model(), (t(), (t(), t())))
    for args, message in [
        ((), "missing"),
        ((t(), (t(),)), "'pair' .* differs in structure from what was captured"),
        ((t(), (t(), 1)), "'pair' .* captured with a tensor and must be one, got 1"),
    ]:
        with pytest.raises(TypeError, match=message):
            captured.call.flatten(args, {})


@pytest.mark.slow
def test_dataclass_outputs_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
    )
    model, x = transformers.ViTModel(config).eval(), torch.randn(2, 3, 8, 8)
    captured = capture(model, (), {"pixel_values": x})
    got = run(captured, x)
    with torch.no_grad():
        expected = model(x)
    assert type(got) is type(expected)
    assert got.keys() == expected.keys()
    assert_equal(expected, got, 1e-5)


class Offset(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = torch.nn.Linear(3, 12), torch.nn.Linear(12, 4)

    def forward(self, x, labels=None):
        y = self.b(self.a(x).relu())
        return y if labels is None else y + labels


def test_labels_that_a_dict_batch_keeps_as_targets_are_explained():
    batch = {"x": torch.randn(5, 3), "labels": torch.randn(5, 4)}
    pruned = fxprune.compile(Offset(), [batch], 0.8, recover=None, progress=False)
    with pytest.raises(fxprune.CallError, match=r"are targets; a model that computes with them: forward_args"):
        pruned(**batch)
    found = fxprune.compile(Offset(), [batch], 0.8, recover=None, progress=False, forward_args=lambda b: ((), b))
    assert found(**batch).shape == (5, 4)
