"""The graph is tied to no device and to no dtype that the model does not ask for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.capturing.captured import capture
from tests.models.fn import Fn
from tests.models.libraries import transformer
from tests.support.capturing import attributes, check, nodes, ops, raw


def makes_tensors(self: Any, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1], device=ids.device)
    zeros = torch.zeros(ids.shape[1], 6, device=ids.device, dtype=self.emb.weight.dtype)
    mask = torch.ones(ids.shape[1], device=ids.device).bool().to(ids.device)
    y = self.emb(ids).to(ids.device) + zeros + positions[:, None].to(device=ids.device, dtype=self.emb.weight.dtype)
    return y * mask[:, None].type_as(y) + torch.full((6,), 2.0, device=ids.device).to(y)


def model() -> nn.Module:
    return Fn(makes_tensors, emb=nn.Embedding(9, 6))


IDS = torch.randint(9, (2, 5))


def test_no_device_is_left():
    assert "cpu" in str(raw(model(), IDS)), "the raw export names the device: this tests nothing"
    captured = check(model(), IDS, others=((torch.randint(9, (1, 5)),), (torch.randint(9, (3, 8)),)))
    assert "cpu" not in str(captured.module.graph)
    device = next(n for n in captured.module.graph.nodes if n.target is getattr and n.args[1] == "device")
    assert device.args[0].op == "placeholder"
    assert {node.kwargs["device"] for node in nodes(captured, "arange.default")} == {device}


def test_moves_and_casts():
    captured = check(model(), IDS)
    assert {op for op in ops(captured) if op.startswith(("to.", "type_as", "_to_copy"))} <= {"to.dtype"}


def test_graph_moves_to_another_device():
    captured = capture(model(), (IDS,))
    (output,) = captured.module.to("meta")(IDS.to("meta"))
    assert output.is_meta
    assert output.shape == (2, 5, 6)


@pytest.mark.parametrize("dtype", [torch.float64])
@pytest.mark.slow
def test_graph_moves_to_another_dtype(dtype):
    llama = transformer("LlamaForCausalLM", num_hidden_layers=1, num_key_value_heads=1)
    captured = capture(llama, (), {"input_ids": IDS})
    (output,) = captured.module.to(dtype)(IDS)
    assert output.dtype == dtype


def test_asserts_are_gone():
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.lin(x).to(torch.float64).to("cpu")

    fn = Fn(forward, lin=nn.Linear(6, 6))
    assert any("assert" in op for op in ops(raw(fn, torch.randn(2, 6))))
    assert set(ops(capture(fn, (torch.randn(2, 6),)))) == {"linear.default", "to.dtype"}


def test_lifted_constants_are_buffers():
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.lin(x) * torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) + self.plain

    fn = Fn(forward, lin=nn.Linear(6, 6))
    fn.plain = torch.randn(6)
    captured = capture(fn, (torch.randn(2, 6),))
    assert set(attributes(captured)[2:]) == {"plain", "lifted_tensor_0"}
    assert set(ops(captured)) == {"linear.default", "mul.Tensor", "add.Tensor"}
    assert captured.module.plain is fn.plain
    assert not set(dict(captured.module.named_buffers())) & set(captured.module.state_dict())
