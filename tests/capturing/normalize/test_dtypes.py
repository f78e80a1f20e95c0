"""A captured model follows a move to another dtype as the original does."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.capturing.captured import capture
from fxprune.capturing.normalize.dtypes import ANCHOR
from fxprune.rewriting.emission import emit
from tests.support.marks import but_slow


class Rotary(nn.Module):
    """Attention over rotated queries and keys; the tables are made in float32 and cast to the queries' dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.register_buffer("frequencies", 10 ** -torch.linspace(0, 1, 4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1], device=x.device).float()
        angles = steps[:, None] * self.frequencies.float()
        cos, sin = (torch.cat([t, t], -1).to(x.dtype) for t in (angles.cos(), angles.sin()))

        def turn(y: Tensor) -> Tensor:
            a, b = y.chunk(2, -1)
            return y * cos + torch.cat([-b, a], -1) * sin

        return F.scaled_dot_product_attention(turn(self.q(x)), turn(self.k(x)), self.v(x))


class Norm(nn.Module):
    """RMS norm in float32 whatever the model's dtype (as in LLaMA), and a mask made of literals."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.linear = nn.Parameter(torch.rand(8) + 0.5), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        wide = y.to(torch.float32)
        y = self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(y.dtype)
        mask = torch.zeros(x.shape[1], x.shape[1], dtype=y.dtype, device=x.device)
        scores = y @ y.transpose(1, 2) + mask.masked_fill(mask.new_ones(mask.shape).triu(1).bool(), -1e4)
        return scores.softmax(-1) @ y


class Product(nn.Module):
    """A table that a product of a buffer, cast to float32, and positions makes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("frequencies", 10 ** -torch.linspace(0, 1, 8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1], device=x.device)
        angles = self.frequencies[None, :, None].float().expand(x.shape[0], -1, 1) @ steps[None, None, :].float()
        return self.linear(x) * angles.transpose(1, 2).cos().to(x.dtype)


MODELS = {"rotary": Rotary, "norm": Norm, "product": Product}
WIDTH = {torch.float64: 1e-5, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 5e-3}


@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("at", but_slow([torch.float32, torch.bfloat16], quick=(torch.float32,)))
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_it_follows_its_model(name: str, at: torch.dtype, to: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]().eval().to(at), torch.randn(3, 5, 8, dtype=at)
    captured = capture(model, (x,))
    module = emit(captured, captured.module)
    for dtype in (at, to, torch.float32):
        want, got = (copy.deepcopy(m).to(dtype)(x.to(dtype)) for m in (model, module))
        assert got.dtype == want.dtype
        error = (got - want).abs().max() / want.abs().max()
        assert error <= WIDTH[dtype], dtype
    assert ANCHOR not in module.state_dict()
    assert pickle.loads(pickle.dumps(module)).float()(x.float()).dtype == torch.float32


def test_plain_layers_need_nothing() -> None:
    captured = capture(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GELU()), (torch.randn(2, 4),))
    assert not hasattr(captured.module, ANCHOR)


def test_what_is_meant_to_be_wide_stays_wide() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x).to(torch.float64).sum(1)

    captured = capture(Wide(), (torch.randn(2, 4),))
    module = emit(captured, captured.module).to(torch.bfloat16)
    assert module(torch.randn(2, 4, dtype=torch.bfloat16)).dtype == torch.float64
