"""Shapes at primes and at the example, also where the model divides, bounds or multiplies its sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune.capturing.captured import TensorInfo, capture
from fxprune.capturing.sizes import assign
from tests.models.fn import Fn
from tests.support.capturing import assert_equal, nodes, run


def test_sizes_computed_by_the_graph_are_ints():
    model = Fn(lambda self, x: self.lin(x).view(x.shape[0] * 2, 2), lin=nn.Linear(4, 4))
    captured = capture(model, (torch.randn(3, 4),))
    assert [captured.info[n] for n in captured.module.graph.nodes if n.target in (torch.ops.aten.sym_size.int,)] == [
        10007
    ]
    (node,) = nodes(captured, "reshape.default")
    assert captured.info[node] == TensorInfo((20014, 2), (6, 2), torch.float32)


@pytest.mark.parametrize("groups", [2, 8, 24])
def test_a_divided_batch(groups):
    model = Fn(lambda self, x: self.lin(x).view(-1, groups, 4).sum(1), lin=nn.Linear(4, 4))
    captured = capture(model, (torch.randn(groups * 2, 4),))
    prime, example = captured.batch
    assert example == groups * 2
    assert prime % groups == 0
    assert prime > 10007
    output = captured.module.graph.output_node().args[0][0]
    assert captured.info[output].shape == (prime // groups, 4)
    x = torch.randn(groups * 3, 4)
    assert_equal(model(x).detach(), run(captured, x))


def test_a_bound_that_export_does_not_see():
    model = Fn(lambda self, i: self.emb(i) + self.table[-i.shape[1] :], emb=nn.Embedding(9, 4))
    model.table = nn.Parameter(torch.randn(64, 4))
    captured = capture(model, (torch.randint(9, (2, 7)),))
    placeholder = next(n for n in captured.module.graph.nodes if n.op == "placeholder")
    assert captured.info[placeholder].shape == (10007, 61)


def test_results_that_depend_on_data():
    model = Fn(lambda self, x: self.lin(x[x[:, 0] > 0]), lin=nn.Linear(4, 4))
    captured = capture(model, (torch.randn(3, 4),))
    (node,) = nodes(captured, "linear.default")
    assert len(captured.info[node].shape) == 2
    assert captured.info[node].shape[1] == 4


def test_several_results():
    captured = capture(Fn(lambda self, x: self.gru(x), gru=nn.GRU(4, 6, batch_first=True)), (torch.randn(5, 3, 4),))
    (node,) = nodes(captured, "gru.input")
    assert [info.shape for info in captured.info[node]] == [(10007, 3, 6), (1, 10007, 6)]


def test_constants_and_sizes_among_the_outputs():
    def forward(self: Fn, x: Tensor) -> tuple[Tensor, int, None]:
        return self.lin(x), x.shape[0], None

    captured = capture(Fn(forward, lin=nn.Linear(4, 4)), (torch.randn(3, 4),))
    assert run(captured, torch.randn(7, 4))[1:] == (7, None)


def test_primes_are_no_sizes_of_the_model():
    x, y = torch.export.Dim("x"), torch.export.Dim("y")
    captured = capture(
        nn.Linear(1009, 4), (torch.randn(2, 5, 6, 1009),), dynamic_shapes=({0: torch.export.Dim("b"), 1: x, 2: y},)
    )
    placeholder = next(n for n in captured.module.graph.nodes if n.op == "placeholder")
    assert captured.info[placeholder].shape == (10007, 1013, 1019, 1009)


def test_assign():
    sympy = pytest.importorskip("sympy")
    a, b, c = sympy.symbols("a b c")
    sizes = assign([a], [b, c], {b: 20, c: 20}, {19})
    assert sizes.primes == {a: 10007, b: 17, c: 13}
    assert sizes.value(a * 2 + b) == 20031
    assert assign([a], [], {a: 8}, set()).primes == {a: 7}


def test_a_batch_that_is_split_into_pieces_of_a_fixed_size():
    """There are as many pieces as the batch is long; the table says what they are at the example."""
    model = Fn(lambda self, x: list(self.lin(x).split(64)), lin=nn.Linear(3, 5)).double()
    x = torch.randn(128, 3).double()
    captured = capture(model, (x,))
    assert captured.batch == (128, 128)
    assert_equal(run(captured, x), model(x))
