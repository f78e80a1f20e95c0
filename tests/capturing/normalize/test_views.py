"""Reshapes, splits and no-ops: one form each, and the same values at every batch size and length."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune.capturing.captured import capture
from fxprune.capturing.normalize.select import axis_groups
from tests.models.fn import Fn
from tests.support.capturing import assert_equal, check, nodes, ops, raw, run

BATCHES = ((torch.randn(1, 4, 6).double(),), (torch.randn(5, 4, 6).double(),))


def x() -> Tensor:
    return torch.randn(2, 4, 6, dtype=torch.float64)


def plain(sizes: Any) -> list[Any]:
    return [size.name.rpartition("_")[0] if isinstance(size, fx.Node) else size for size in sizes]


RESHAPES = {
    "view": (lambda x: x.view(-1, 6), ["mul", 6]),
    "view_batch": (lambda x: x.view(x.shape[0], -1), ["n", 24]),
    "view_product": (lambda x: x.view(x.shape[0] * 4, 6), ["mul", 6]),
    "reshape": (lambda x: x.transpose(0, 1).reshape(4, -1, 3, 2), [4, "n", 3, 2]),
    "flatten": (lambda x: x.flatten(1), ["n", 24]),
    "flatten_batch": (lambda x: x.flatten(0, 1), ["mul", 6]),
    "unflatten": (lambda x: x.unflatten(-1, (2, -1)), ["n", 4, 2, 3]),
    "view_as": (lambda x: x.view_as(x.transpose(1, 2)), ["n", 6, 4]),
    "reshape_as": (lambda x: x.mT.reshape_as(x), ["n", 4, 6]),
}


@pytest.mark.parametrize("name", RESHAPES)
def test_every_view_is_a_reshape_with_sizes(name):
    function, expected = RESHAPES[name]
    captured = check(
        Fn(lambda self, x: function(self.lin(x)) + 1, lin=nn.Linear(6, 6)), x(), others=BATCHES, batch_alone=True
    )
    (node,) = nodes(captured, "reshape.default")
    sizes = node.args[1]
    assert [size for size in sizes if isinstance(size, int) and size != -1] == [
        size for size in expected if isinstance(size, int)
    ]
    assert sum(not isinstance(size, int) or size == -1 for size in sizes) == sum(isinstance(s, str) for s in expected)
    assert list(sizes).count(-1) <= 1
    assert captured.info[node].shape == tuple(
        s if isinstance(s, int) else 10007 * (4 if s == "mul" else 1) for s in expected
    )


def test_a_batch_in_pairs():
    even = ((torch.randn(4, 4, 6).double(),), (torch.randn(6, 4, 6).double(),))
    model = Fn(lambda self, x: self.lin(x).unflatten(0, (-1, 2)) + 1, lin=nn.Linear(6, 6))
    captured = check(model, x(), others=even, batch_alone=True)
    (node,) = nodes(captured, "reshape.default")
    assert node.args[1] == [-1, 2, 4, 6]


def test_static_sizes_are_numbers_where_the_model_wrote_minus_one():
    captured = check(
        Fn(lambda self, x: self.lin(x).view(x.shape[0], x.shape[1], -1, 2), lin=nn.Linear(6, 6)),
        x(),
        others=BATCHES,
        batch_alone=True,
    )
    (node,) = nodes(captured, "reshape.default")
    assert node.args[1][1:] == [4, 3, 2]


def test_two_dynamic_sizes_both_have_nodes():
    model = Fn(lambda self, i: self.emb(i).view(i.shape[0], -1, 2, 3).flatten(2), emb=nn.Embedding(9, 6)).double()
    captured = capture(model, (torch.randint(9, (2, 5)),))
    for node in nodes(captured, "reshape.default"):
        assert list(node.args[1]).count(-1) <= 1
        assert captured.info[node].shape[:2] == (10007, 1009)
    for size in ((1, 3), (3, 7)):
        ids = torch.randint(9, size)
        assert_equal(model(ids), run(captured, ids))


@pytest.mark.parametrize(
    ("function", "sizes"),
    [
        (lambda x: x.chunk(3, -1), [2, 2, 2]),
        (lambda x: x.chunk(4, -1), [2, 2, 2]),
        (lambda x: x.split(4, 2), [4, 2]),
        (lambda x: x.split([1, 5], 2), [1, 5]),
        (lambda x: x.tensor_split(4, dim=2), [2, 2, 1, 1]),
        (lambda x: x.tensor_split((1, 4), dim=2), [1, 3, 2]),
    ],
)
def test_every_split_has_its_sizes(function, sizes):
    captured = check(
        Fn(lambda self, x: [part + i for i, part in enumerate(function(self.lin(x)))], lin=nn.Linear(6, 6)),
        x(),
        others=BATCHES,
    )
    (node,) = nodes(captured, "split_with_sizes.default")
    assert list(node.args[1]) == sizes
    assert [info.shape[-1] for info in captured.info[node]] == sizes


def test_unbind_is_select():
    captured = check(Fn(lambda self, x: self.lin(x).unbind(1)[2] + 1, lin=nn.Linear(6, 6)), x(), others=BATCHES)
    assert ops(captured) == {"linear.default": 1, "select.int": 1, "add.Tensor": 1}


NOOPS = [
    lambda x: x[:, :],
    lambda x: x[:, 0:],
    lambda x: x[:, :, :6],
    lambda x: nn.functional.pad(x, (0, 0, 0, 0)),
    lambda x: x.expand(-1, 4, -1),
    lambda x: x.clone(),
    lambda x: x.to(torch.float64),
    lambda x: x.to("cpu"),
    lambda x: x.view(x.shape),
    lambda x: x.repeat(1, 1, 1),
    lambda x: x.permute(0, 1, 2),
    lambda x: torch.cat([x], 1),
]


@pytest.mark.parametrize("function", NOOPS)
def test_no_ops_are_gone(function):
    model = Fn(lambda self, x: self.lin(function(self.lin(x)) + 1), lin=nn.Linear(6, 6)).double()
    captured = check(model, x(), others=BATCHES)
    assert ops(captured) == {"linear.default": 2, "add.Tensor": 1}


def test_under_autocast_a_cast_behind_the_last_product_is_none_that_does_nothing():
    forwards = [lambda m, x: m.lin(x).to(torch.float64) + 1, lambda m, x: m.lin(x).to("cpu") + 1]
    found = [ops(check(Fn(f, lin=nn.Linear(6, 6)).double(), x(), others=BATCHES)) for f in forwards]
    assert [one["to.dtype"] for one in found] == [1, 0]


KEPT = [
    lambda x: x[:, 1:],
    lambda x: x[:, :, ::2],
    lambda x: nn.functional.pad(x, (0, 1)),
    lambda x: nn.functional.pad(x, (1, -1)),
    lambda x: x[:, :1].expand(-1, 4, -1),
    lambda x: x.to(torch.float32),
    lambda x: x.transpose(1, 2).reshape(x.shape),
]


@pytest.mark.parametrize("function", KEPT)
def test_what_does_something_stays(function):
    model = Fn(lambda self, x: function(self.lin(x)) + 1, lin=nn.Linear(6, 6)).double()
    assert len(ops(check(model, x(), others=BATCHES))) > 2


def test_clone_stays_where_something_is_written():
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.lin(x)
        z = y.clone()
        z[:, ::2].add_(1)
        return y + z

    captured = check(Fn(forward, lin=nn.Linear(6, 6)), x(), others=BATCHES)
    assert ops(captured)["clone.default"] == 1


def test_dead_code_is_gone():
    def forward(self: Any, x: Tensor) -> Tensor:
        self.unused(x).sin()
        assert x.shape[1] == 4
        return self.lin(x)

    model = Fn(forward, lin=nn.Linear(6, 6), unused=nn.Linear(6, 6)).double()
    captured = check(model, x(), others=BATCHES)
    assert ops(captured) == {"linear.default": 1}
    assert captured.unused == {"unused.weight", "unused.bias"}


def test_blocks_without_gradients_are_inlined():
    def forward(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.mean(-1, keepdim=True)
            with torch.autocast("cpu", enabled=False):
                scale = scale.exp()
        return self.lin(x) * scale

    model = Fn(forward, lin=nn.Linear(6, 6)).double()
    assert any("wrap_with" in op for op in ops(raw(model, x())))
    captured = check(model, x(), others=BATCHES)
    assert ops(captured) == {"mean.dim": 1, "exp.default": 1, "detach.default": 1, "linear.default": 1, "mul.Tensor": 1}


@pytest.mark.parametrize(
    ("before", "after", "groups"),
    [
        ((10, 12), (2, 5, 12), [([0], [0, 1]), ([1], [2])]),
        ((7, 24), (7, 2, 3, 4), [([0], [0]), ([1], [1, 2, 3])]),
        ((7, 24), (7, 1, 24), [([0], [0]), ([1], [1, 2])]),
        ((6, 4), (4, 6), [([0, 1], [0, 1])]),
        ((5, 1), (5,), [([0, 1], [0])]),
        ((0, 4), (0, 2, 2), []),
    ],
)
def test_axis_groups(before, after, groups):
    assert axis_groups(before, after) == groups
