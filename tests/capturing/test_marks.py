"""Modules that eval mode hides are marked where they stood."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fxprune.capturing.captured import MARK, Captured, capture
from tests.support.capturing import check, nodes, raw


class DropBranch(nn.Module):
    """Identity in eval mode."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(x.new_full((len(x), 1), 1 - self.p)) if self.training else x


class InPlace(nn.Module):
    """Returns its input as well, but not unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(x.sigmoid())


def marks(captured: Captured) -> list[str]:
    return [str(node.args[1]) for node in captured.module.graph.nodes if node.target is MARK]


def x() -> Tensor:
    return torch.randn(3, 4, dtype=torch.float64)


def test_an_idle_module_is_marked_at_its_place():
    model = nn.Sequential(nn.Linear(4, 4), DropBranch(), nn.Linear(4, 4), nn.Sequential(DropBranch())).eval()
    assert "DropBranch" not in str([n.target for n in raw(model.double(), x()).nodes]), "eval mode hides it"
    captured = check(model, x())
    assert marks(captured) == ["1", "3.0"]
    first = next(node for node in captured.module.graph.nodes if node.target is MARK)
    assert [str(n.target) for n in (first.args[0], *first.users)] == ["aten.linear.default"] * 2
    assert captured.info[first].shape == (10007, 4)


def test_every_call_is_marked():
    drop = DropBranch()
    assert marks(check(nn.Sequential(nn.Linear(4, 4), drop, nn.Linear(4, 4), drop), x())) == ["1", "1"]


@pytest.mark.parametrize("module", [nn.ReLU(inplace=True), nn.Identity(), nn.Dropout(), nn.Flatten(), InPlace()])
def test_other_modules_that_return_their_input_are_not(module):
    assert marks(check(nn.Sequential(nn.Linear(4, 4), module, nn.Linear(4, 4)), x())) == []


@pytest.mark.slow
def test_torchvision_stochastic_depth():
    model = torchvision.models.efficientnet_b0()
    captured = capture(model, (torch.randn(2, 3, 32, 32),))
    expected = [path for path, module in model.named_modules() if isinstance(module, torchvision.ops.StochasticDepth)]
    assert set(expected) - unused(model) == set(marks(captured))
    assert nodes(captured, "add.Tensor")[0].args[0].target is MARK


def unused(model: nn.Module) -> set[str]:
    """Blocks without a residual connection never call their stochastic depth."""
    return {
        f"{path}.stochastic_depth"
        for path, module in model.named_modules()
        if hasattr(module, "use_res_connect") and not module.use_res_connect
    }


@pytest.mark.slow
def test_timm_drop_path():
    timm = pytest.importorskip("timm")
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=2, num_heads=2, drop_path_rate=0.5
    )
    captured = capture(model, (torch.randn(2, 3, 32, 32),))
    assert marks(captured) == ["blocks.1.drop_path1", "blocks.1.drop_path2"]


def test_the_mark_is_an_identity_with_a_gradient():
    given = x().requires_grad_()
    out = MARK(given, "a.b")
    assert torch.equal(out, given)
    assert out.data_ptr() != given.data_ptr()
    out.sum().backward()
    assert torch.equal(given.grad, torch.ones_like(given))
    torch.library.opcheck(MARK, (x(), "a.b"))
