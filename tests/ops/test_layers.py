"""Layers of emitted networks that check what their op does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fxprune.ops.layers import Recurrent

LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN}


def recurrent(op: str, bidirectional: bool = False) -> Recurrent:
    """Returns a layer of four inputs and five units, twice, with its parameters."""
    known = LAYERS[op](4, 5, num_layers=2, bidirectional=bidirectional)
    options = {
        "has_biases": True,
        "num_layers": 2,
        "dropout": 0.0,
        "bidirectional": bidirectional,
        "batch_first": False,
    }
    made = Recurrent(op, tuple(known._flat_weights_names), **options)
    for name, value in zip(made.names, known._flat_weights, strict=True):
        made.register_parameter(name, value)
    return made.eval()


def states(op: str, *shape: int) -> Any:
    state = torch.zeros(shape)
    return [state, state] if op == "lstm" else state


@pytest.mark.parametrize("op", LAYERS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_recurrent_layer_of_sound_shapes(op: str, bidirectional: bool) -> None:
    outputs = recurrent(op, bidirectional)(torch.ones(3, 7, 4), states(op, 4 if bidirectional else 2, 7, 5))
    assert outputs[0].shape == (3, 7, 10 if bidirectional else 5)


@pytest.mark.parametrize("op", LAYERS)
@pytest.mark.parametrize("shape", [(2, 1, 5), (2, 8, 5), (1, 7, 5), (2, 7, 4), (2, 7, 6), (2, 5)])
def test_a_state_of_another_shape_is_refused(op: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"{op}: a state: expected \[2, 7, 5\], got"):
        recurrent(op)(torch.ones(3, 7, 4), states(op, *shape))


def test_the_second_state_is_looked_at_as_well() -> None:
    with pytest.raises(ValueError, match=r"expected \[2, 7, 5\], got \[2, 1, 5\]"):
        recurrent("lstm")(torch.ones(3, 7, 4), [torch.zeros(2, 7, 5), torch.zeros(2, 1, 5)])


@pytest.mark.parametrize(
    ("name", "shape"), [("weight_ih_l0", (20, 3)), ("weight_ih_l1", (20, 4)), ("bias_hh_l1", (1,))]
)
def test_a_parameter_of_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    layer = recurrent("lstm")
    layer.register_parameter(name, nn.Parameter(torch.ones(shape)))
    with pytest.raises(ValueError, match=f"lstm: {name}: expected"):
        layer(torch.ones(3, 7, 4), states("lstm", 2, 7, 5))


def test_a_sequence_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a batch of sequences"):
        recurrent("gru")(torch.ones(3, 4), states("gru", 2, 1, 5))
