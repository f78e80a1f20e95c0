"""The smallest networks that once went wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune.axes import Factor, split
from fxprune.capture import capture
from fxprune.channels import Channels
from fxprune.coupling import couple
from fxprune.rewrite.emit import emit
from fxprune.rewrite.slice import slice_graph
from fxprune.solve import solve
from fxprune.verify import verify
from tests.blocks_tokens import Attention, Encoder, Position, Reduced
from tests.fuzzing import Case, Pruning, compiled, run
from tests.networks import Network
from tests.rules.common import Fn, certify, prepared, removal
from tests.test_twin import Other, layers
from tests.util import randomise


@pytest.mark.parametrize("outputs", ["tensor", "dict"])
def test_an_axis_whose_positions_are_returned_is_no_statistic(outputs: str) -> None:
    # argmax freezes its axis; verification asked for a masked twin of it all the same
    network = Network("ids", 8, (Reduced("argmax"),), "mean", outputs=outputs)
    outcome = run(Case(network, Pruning(ratio=0.3, seed=2)))
    assert outcome.status == "verified", outcome.detail


class Peak(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.head = nn.Linear(4, 6), nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.linear(x)).max(-1, keepdim=True).values)


def test_max_with_indices_verifies_beside_a_pruned_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.peak = nn.Linear(4, 4), Peak()

        def forward(self, x: Tensor) -> Tensor:
            return self.peak(self.first(x))

    torch.manual_seed(0)
    x = torch.randn(4, 4, dtype=torch.float64)
    coupling, solution, pruned = compiled(Net().double().eval(), (x,), Pruning(ratio=0.5))
    assert len(solution.units) == 2
    assert verify(coupling, solution.removed, pruned, ((x,), {})).verified


def test_an_output_that_varies_by_rounding_only_is_no_proof_of_a_bug() -> None:
    # layer norms over two channels give almost the same for every sample: 1e-16 apart looked like an error of 1e-5
    network = Network("tokens", 4, (Encoder(2, 4), Encoder(2, 4)), "first")
    outcome = run(Case(network, Pruning(ratio=0.5, ignore=True, seed=440)))
    assert outcome.status in ("verified", "degenerate"), outcome.detail


# -- what the certificate once took for proof, or for a fault -----------------------------------------------------


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1)])
def test_nan_in_the_pruned_output_is_a_fault(rows: slice) -> None:
    case = layers(lambda m, y: m.b(y.relu()))

    def spoil(out: Tensor) -> Tensor:
        out = out.clone()
        out[rows] = float("nan")
        return out

    assert case.certificate(Other(case.module, spoil)).verified is False


def test_constant_integers_alone_are_no_proof() -> None:
    assert layers(lambda m, y: (m.b(y) > 1e9).long()).certificate().verified is None


def test_integers_as_floats_are_another_output() -> None:
    case = layers(lambda m, y: (m.b(y), m.b(y).argmax(1)))
    assert case.certificate(Other(case.module, lambda out: (out[0], out[1].float()))).verified is False


def test_complex_outputs_are_compared_by_their_parts() -> None:
    case = layers(lambda m, y: torch.fft.rfft(m.b(y.relu())))
    assert case.certificate().verified is True
    assert case.certificate(Other(case.module, lambda out: out * (1 + 1e-3j))).verified is False


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_a_statistic_with_a_dtype_is_lifted(reduce: str) -> None:
    model = Fn(
        lambda m, x: m.b((y := m.a(x)) * getattr(y, reduce)(-1, keepdim=True, dtype=torch.float32)),
        a=nn.Linear(5, 8), b=nn.Linear(8, 2),
    )  # fmt: skip
    x = (torch.randn(4, 5, generator=torch.Generator().manual_seed(0)),)
    coupling = couple(capture(randomise(model.eval(), 0), x))
    removed = removal(coupling, 0, 0.4)
    module = emit(coupling.captured, slice_graph(coupling, removed))
    assert verify(coupling, removed, module, (x, {}), dtype=torch.float64).verified is True


# -- a write to a view that has no inverse once missed its base after pruning ---------------------------------------

WRITES = {
    "stepped": lambda y: y[:, ::2].fill_(0.5),
    "stepped relu": lambda y: y[:, 1::2].relu_(),
    "transposed": lambda y: y.t()[::2].mul_(2.0),
    "reshaped": lambda y: y.view(-1, 2, 3)[:, :, ::2].mul_(2.0),
}


@pytest.mark.parametrize("how", WRITES)
def test_a_stepped_write_holds_all_of_its_base(how: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        WRITES[how](y)
        return m.b(m.c(y).relu())

    x = torch.randn(6, 5, dtype=torch.float64)
    parts = {"a": nn.Linear(5, 6), "c": nn.Linear(6, 8), "b": nn.Linear(8, 2)}
    coupling = prepared(Fn(forward, **parts), (x,))[1]
    assert [group.producers for group in coupling.groups] == [("c",)]
    assert "an in-place write" in coupling.explain("a")
    assert certify(coupling, (x,), removal(coupling, 0, 0.5)).verified is True


# -- coupling -------------------------------------------------------------------------------------------------------


def test_a_sum_with_an_input_is_held_whole() -> None:
    # expanded constants beside a model input: the sum's features are the input's, and not free to go
    model = Fn(lambda m, x, s: m.l(s.unsqueeze(1).expand(-1, 2, 3).reshape(-1, 6) + x), l=nn.Linear(6, 3))
    both = (torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64))
    assert prepared(model, both)[1].groups == ()


@pytest.mark.parametrize("gram", [False, True])
def test_units_of_a_gram_matrix_form_one_group(gram: bool) -> None:
    # every unit lies on every other's coordinates: each had a group of its own, which min_keep held
    def outer(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        z = y.transpose(1, 2) @ y if gram else y[:, 0].unsqueeze(2) * y[:, 0].unsqueeze(1)
        return m.b(z.flatten(1))

    x = torch.randn(3, 7, 5, dtype=torch.float64)
    coupling = prepared(Fn(outer, a=nn.Linear(5, 4), b=nn.Linear(16, 2)), (x,))[1]
    scores = {group.name: torch.rand(len(group.units)) for group in coupling.groups}
    solution = solve(coupling, scores, ratios=0.5)
    assert len(coupling.groups) == 1 and len(solution.units) == 2
    assert certify(coupling, (x,), solution.removed).verified is True


def test_what_freezes_with_a_cell_knows_why() -> None:
    channels = Channels()
    labels = channels.fresh(6).reshape(-1, 1)
    channels.freeze(labels[4:5], "the result")
    outer, _ = split(channels, Factor(6, labels), 2, "reshape")
    assert outer.labels is not None
    assert channels.reason(outer.labels[1]) == channels.reason(np.array([5])) == "the result"


def test_a_channel_on_every_coordinate_of_a_layer_stays() -> None:
    # a grouped convolution after one with other groups: some channels cover a whole weight, and were units all the same
    model = nn.Sequential(nn.Conv1d(3, 12, 1), nn.Conv1d(12, 12, 1, groups=2), nn.Conv1d(12, 12, 1, groups=3))
    model.append(nn.Conv1d(12, 2, 1))
    coupling = prepared(model, (torch.randn(2, 3, 4, dtype=torch.float64),))[1]
    assert coupling.groups
    sizes = [len(axis.labels) for axis in coupling.axes]
    assert all(count < sizes[index] for group in coupling.groups for index, count in group.axes)
    assert any("would go with it" in text for text in coupling.channels._reasons)


def test_a_size_that_turns_out_static_ties_nothing() -> None:
    # a position table fixes the length: sizes asked of a joint qkv view kept that view, and its ties, alive
    attention = Attention(heads=3, kv_heads=4, how="sdpa", qkv="select", causal=True, rotary=True)
    network = Network("ids", 6, (attention, Position(how="buffer")), "max")
    outcome = run(Case(network, Pruning(ratio=0.3, seed=1)))
    assert outcome.status == "verified" and not outcome.missing
