"""Dropout that only training shows is written into the eval-mode graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.capturing.captured import Captured, capture
from tests.models.fn import Fn
from tests.models.libraries import transformer
from tests.support.capturing import assert_untouched, check, nodes, ops, raw, snapshot


class Attention(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0)


def x() -> Tensor:
    return torch.randn(2, 5, 8)


def attention(captured: Captured) -> list[float | None]:
    return [n.meta.get("dropout_p") for n in nodes(captured, "scaled_dot_product_attention.default")]


def test_attention_dropout_is_found_per_call():
    shared = Attention(0.3)
    model = nn.Sequential(Attention(0.1), shared, Attention(0.0), shared)
    assert "0.1" not in str(raw(model, x())), "eval mode hides the probability"
    before = snapshot(model)
    captured = capture(model, (x(),))
    assert attention(captured) == [0.1, 0.3, 0.0, 0.3]
    assert captured.notes == ()
    assert_untouched(model, before)


def test_multihead_attention():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
    captured = capture(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (x(),))
    assert attention(captured) == [0.2, 0.2]
    assert [n.args[1:] for n in nodes(captured, "dropout.default")] == [(0.2, False)] * 6


def test_attention_weights_get_their_dropout_node():
    model = Fn(lambda self, x: self.m(x, x, x), m=nn.MultiheadAttention(8, 2, dropout=0.4, batch_first=True))
    assert not any("dropout" in op for op in ops(raw(model.eval(), x())))
    captured = check(model, x().double())
    (node,) = nodes(captured, "dropout.default")
    assert node.args[1:] == (0.4, False)
    assert str(node.args[0].target) == "aten.softmax.int"


def test_functional_dropout_with_a_conditional_probability():
    def forward(self: Any, x: Tensor) -> Tensor:
        x = F.dropout(self.lin(x), 0.25, self.training)
        return F.dropout(x, self.drop_rate if self.training else 0.0, self.training)

    model = Fn(forward, lin=nn.Linear(8, 8))
    model.drop_rate = 0.5
    captured = check(model, x().double())
    assert [n.args[1:] for n in nodes(captured, "dropout.default")] == [(0.25, False), (0.5, False)]


def test_buffers_are_not_touched_by_the_training_run():
    model = nn.Sequential(Attention(0.1), nn.Flatten(0, 1), nn.BatchNorm1d(8))
    before = snapshot(model)
    assert attention(capture(model, (x(),))) == [0.1]
    assert_untouched(model, before)


def test_layers_skipped_by_chance_are_run():
    class LayerDrop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Attention(0.1), Attention(0.2)])

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                if self.training and torch.rand([]) < 0.5:
                    continue
                x = layer(x)
            return x

    assert attention(capture(LayerDrop(), (x(),))) == [0.1, 0.2]


def test_a_model_that_cannot_train_is_captured_with_a_note():
    def forward(self: Any, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("inference only")
        return self.inner(x)

    model = Fn(forward, inner=Attention(0.1)).eval()
    captured = capture(model, (x(),))
    assert attention(captured) == [None]
    assert "does not run in training mode" in captured.notes[0]
    assert "inference only" in captured.notes[0]


def test_other_calls_in_training_are_noted():
    def forward(self: Any, x: Tensor) -> Tensor:
        y = F.scaled_dot_product_attention(x, x, x, dropout_p=0.1 if self.training else 0.0)
        return F.scaled_dot_product_attention(y, y, y, dropout_p=0.2) if self.training else y

    captured = capture(Fn(forward), (x(),))
    assert any("2 times in training and 1 times in eval" in note for note in captured.notes)


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
@pytest.mark.slow
def test_transformers_bert(kind):
    chances = {"attention_probs_dropout_prob": 0.3, "hidden_dropout_prob": 0.1}
    model = transformer("BertModel", num_hidden_layers=1, attn_implementation=kind, **chances)
    captured = capture(model, (torch.randint(16, (2, 5)),))
    probabilities = [n.args[1] for n in nodes(captured, "dropout.default")]
    if kind == "sdpa":
        assert attention(captured) == [0.3]
        assert probabilities == [0.1, 0.1, 0.1]
    else:
        assert probabilities == [0.1, 0.3, 0.1, 0.1]
