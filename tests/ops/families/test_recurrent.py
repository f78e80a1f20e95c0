"""Recurrent layers and cells: one hidden axis for all gates, layers and directions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.budget.cost import cost_model
from tests.models.fn import Fn
from tests.models.ops.recurrent import CELLS, LAYERS, loop, sequence, tagger
from tests.support.marks import but_slow
from tests.support.pruning import check, groups_of, prepared
from tests.support.weights import randomise


@pytest.mark.parametrize("name", but_slow(LAYERS, quick=("lstm", "gru", "tanh")))
def test_what_stays_is_exact(name: str) -> None:
    coupling = prepared(tagger(LAYERS[name]()), sequence())[1]
    assert not coupling.unsupported
    assert [g.producers[0] for g in coupling.groups] == ["make", "rnn"]
    check(coupling, sequence())


@pytest.mark.slow
def test_a_hidden_unit_goes_from_every_gate_layer_and_direction() -> None:
    coupling = prepared(tagger(LAYERS["lstm, two layers, both ways"]()), sequence())[1]
    hidden = groups_of(coupling)[1]
    assert hidden.startswith("5 channel: ")
    for tag in ("l0", "l0_reverse", "l1", "l1_reverse"):
        assert f"rnn.weight_ih_{tag}[0]x4" in hidden and f"rnn.bias_hh_{tag}[0]x4" in hidden
        assert f"rnn.weight_hh_{tag}[0]x4 rnn.weight_hh_{tag}[1]" in hidden
    assert "rnn.weight_ih_l1[1]x2" in hidden and "head.weight[1]x2" in hidden


@pytest.mark.slow
def test_a_projection_has_channels_of_its_own_and_its_cell_stays() -> None:
    """The op tells a projection by two states of different widths, so the cell must never shrink to the projection's."""
    coupling = prepared(tagger(LAYERS["lstm, projected"]()), sequence())[1]
    _, out = groups_of(coupling)
    assert out.startswith("4 ") and "rnn.weight_hr_l0[0]" in out and "rnn.weight_hh_l1[1]" in out
    assert "rnn.weight_hr_l0[1]" not in out and "head.weight[1]" in out
    assert "must stay wider than its projection" in coupling.explain("rnn")


@pytest.mark.slow
def test_macs_are_those_of_all_products() -> None:
    coupling = prepared(tagger(LAYERS["gru, two layers, both ways"]()), sequence())[1]
    none = coupling.removed_mask([])
    layer = 2 * 3 * 5 * ((6 + 5) + (10 + 5))
    assert cost_model(coupling).of(none).macs == 7 * (4 * 6 + layer + 10 * 3)


@pytest.mark.parametrize("kind", but_slow(CELLS, quick=("lstm",)))
def test_cells_in_a_loop(kind: str) -> None:
    coupling = prepared(loop(kind), sequence())[1]
    assert not coupling.unsupported and [len(g.units) for g in coupling.groups] == [6, 8]
    check(coupling, sequence())


def test_a_state_that_the_caller_gives_keeps_the_hidden_units() -> None:
    model = Fn(
        lambda m, x, h: m.head(m.rnn(m.make(x), h)[0]), make=nn.Linear(4, 6), rnn=nn.GRU(6, 8), head=nn.Linear(8, 3)
    )
    args = (torch.randn(7, 3, 4, dtype=torch.float64), torch.randn(1, 3, 8, dtype=torch.float64))
    coupling = prepared(model, args)[1]
    assert [len(g.units) for g in coupling.groups] == [6]
    check(coupling, args)


@pytest.mark.parametrize("method", ["variance", "l1", "taylor", "joint"])
@pytest.mark.slow
def test_a_tagger_is_compiled_by_every_kind_of_criterion(method: str) -> None:
    model = randomise(tagger(LAYERS["lstm, two layers, both ways"]()), 0, (torch.randn(8, 7, 4),)).eval()
    data = [(torch.randn(8, 7, 4), torch.randint(3, (8, 7)))]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())

    pruned = fxprune.compile(model, data, 0.5, method=method, loss=loss, progress=False)
    report = fxprune.report(pruned)
    assert report.verified and report.params[1] <= report.params[0] // 2
    assert pruned(torch.randn(2, 11, 4)[:, :7]).shape == (2, 7, 3)
    assert pruned.get_parameter("rnn.weight_ih_l0").shape[0] % 4 == 0
