"""Mutations become values: no node changes after it was computed, and no user tensor is ever written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune.capturing.captured import capture
from tests.models.fn import Fn
from tests.support.capturing import assert_equal, check, copied, ops, raw, run
from tests.support.marks import but_slow

ROWS = ((torch.randn(1, 4, 6).double(),), (torch.randn(5, 4, 6).double(),))


def x() -> Tensor:
    return torch.randn(2, 4, 6, dtype=torch.float64)


def in_place(found: Any) -> list[str]:
    return [op for op in found if op.split(".")[0].endswith("_") and not op.startswith("__")]


def late_use(self: Any, x: Tensor) -> Any:
    y = self.lin(x)
    y.relu_()
    return y + 1, y * 2


def chained(self: Any, x: Tensor) -> Any:
    y = self.lin(x)
    y += x
    y *= 2
    y.clamp_(min=0.1)
    return y


def through_reshape(self: Any, x: Tensor) -> Any:
    y = self.lin(x)
    y.view(-1, 4, 2, 3).add_(1)
    return y.sin()


def through_slice(self: Any, x: Tensor) -> Any:
    y = self.lin(x)
    y[:, 1:, :] += x[:, 1:, :]
    return y, y.sin()


def through_two_slices_and_a_view(self: Any, x: Tensor) -> Any:
    y = self.lin(x)
    y[:, 1:, 2:].add_(x[:, 1:, 2:])
    return y.sin()


def through_select(self: Any, x: Tensor) -> Any:
    y = self.lin(x)
    y[:, -1].mul_(3)
    y[:, 0] = 7
    return y


def through_transpose(self: Any, x: Tensor) -> Any:
    y = self.lin(x)
    y.transpose(1, 2)[:, :3].zero_()
    return y


def earlier_view_used_later(self: Any, x: Tensor) -> Any:
    y = self.lin(x)
    part = y[:, 2:]
    other = y.permute(0, 2, 1)
    y.exp_()
    return part + 1, other


def view_written_twice(self: Any, x: Tensor) -> Any:
    y = self.lin(x)
    part = y[:, 1:]
    part.add_(1)
    part.mul_(2)
    return y, part


def assigned(self: Any, x: Tensor) -> Any:
    y = self.lin(x)
    y[:, :2] = x[:, 2:]
    y[:, 3:] = x[:, :1, :1]
    return y


def kept_dtype(self: Any, x: Tensor) -> Any:
    y = self.lin(x).float()
    y += x
    return y


def after_dropout(self: Any, x: Tensor) -> Any:
    y = self.drop(self.lin(x))
    return y.relu_()


def given_input(self: Any, x: Tensor) -> Any:
    return x.relu_() + self.lin(x)


WRITES = (
    late_use,
    chained,
    through_reshape,
    through_slice,
    through_two_slices_and_a_view,
    through_select,
    through_transpose,
    earlier_view_used_later,
    view_written_twice,
    assigned,
    kept_dtype,
    after_dropout,
    given_input,
)


@pytest.mark.parametrize("function", but_slow(WRITES, WRITES[::3]))
def test_functional_and_equal(function):
    model = Fn(function, lin=nn.Linear(6, 6), drop=nn.Dropout(0.5)).double()
    assert in_place(ops(raw(model, x()))), "the model mutates nothing: this tests nothing"
    captured = check(model, x(), others=ROWS)
    assert not in_place(ops(captured))


def test_the_users_input_is_not_written():
    model = Fn(given_input, lin=nn.Linear(6, 6)).double()
    captured = capture(model, (x(),))
    given = x()
    before = given.clone()
    run(captured, given)
    assert torch.equal(given, before)


def test_later_uses_in_the_graph_see_the_new_value():
    captured = capture(Fn(late_use, lin=nn.Linear(6, 6)), (torch.randn(2, 6),))
    relu = next(n for n in captured.module.graph.nodes if "relu" in str(n.target))
    assert [str(user.target) for user in relu.users] == ["aten.add.Tensor", "aten.mul.Tensor"]
    assert all(len(n.users) == 1 for n in captured.module.graph.nodes if "linear" in str(n.target))


def test_a_constant_mask_stays_as_it_is():
    def forward(self: Any, x: Tensor) -> Tensor:
        mask = x.new_zeros(4, 6)
        mask[1:, 2:] = 1
        return self.lin(x) * mask

    captured = check(Fn(forward, lin=nn.Linear(6, 6)), x(), others=ROWS)
    assert [op.partition(".")[0] for op in in_place(ops(captured))] == ["fill_"]


def test_a_view_without_inverse_stays_in_place():
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.lin(x)
        y[:, ::2].add_(1)
        return y

    captured = check(Fn(forward, lin=nn.Linear(6, 6)), x(), others=ROWS)
    assert in_place(ops(captured)) == ["add_.Tensor"]


class Counter(nn.Module):
    """Counts its calls and remembers part of its input."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)
        self.step = step
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("memory", torch.zeros(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.memory[:: self.step] = x[0, :: self.step]
        return self.lin(x) * self.calls + self.memory


@pytest.mark.parametrize("step", [1, 2])
def test_state_is_computed_but_never_stored(step):
    model = Counter(step).double().eval()
    captured = capture(model, (x(),))
    assert sorted(note.split("'")[1] for note in captured.notes) == ["calls", "memory"]
    inputs = x()
    got = [run(captured, *copied((inputs,))) for _ in range(2)]
    assert float(model.calls) == 0
    assert not model.memory.any()
    assert_equal(got[0], got[1])
    with torch.no_grad():
        assert_equal(model(inputs), got[0])


def test_a_comparison_in_place_keeps_the_dtype():
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.lin(x)
        y.gt_(0.5)
        return y + 1

    check(Fn(forward, lin=nn.Linear(6, 6)), x(), others=ROWS)
