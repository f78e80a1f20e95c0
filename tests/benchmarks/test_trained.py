"""The training step of the coverage table: what is wrong is found, what is left of terms that cancel is not."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from benchmarks.common.architectures import Call
from benchmarks.common.trained import trained


class Net(nn.Module):
    """A bias before a batch norm, whose gradient is zero but for rounding; and a layer that may be cut off."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.cut = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3), cut

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        y = self.norm(y.detach() if self.cut else y).relu()
        out: Tensor = self.b(y)
        return out


def told(cut: bool, order: bool) -> str:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.a.bias.mul_(1e3)
    other = copy.deepcopy(model)
    other.cut = cut
    x = torch.randn(64, 6)
    if order:  # the same sums in another order
        other.a.forward = lambda y: y.double() @ other.a.weight.mT + other.a.bias  # type: ignore[method-assign]
    return trained(Call(model, (x,), {}), {}, other)


def test_what_rounding_leaves_is_no_fault() -> None:
    assert told(cut=False, order=False) == told(cut=False, order=True) == "equal"


def test_a_gradient_that_is_gone_is_one() -> None:
    assert told(cut=True, order=False).startswith("WRONG gradient of a.")
