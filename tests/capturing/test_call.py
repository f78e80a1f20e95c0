"""The calling convention: the original signature, its defaults, and what was fixed at capture."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fxprune.capturing.captured import capture
from tests.models.fn import Fn
from tests.support.capturing import assert_equal, check, run


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
    assert_equal(run(captured, x), run(captured, x, flip=True))
    assert captured.call.literals == (None, True)
    assert captured.call.placeholders == ("x", None)


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
