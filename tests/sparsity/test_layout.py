"""Where units lie: on what makes, shifts and reads them, in every parameter."""

from __future__ import annotations

import torch
from torch import nn

import fxprune
from fxprune.sparsity.layout import clear, flags_of, layout_of


def coupled() -> tuple[nn.Sequential, fxprune.Coupling]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    return model, fxprune.couple(fxprune.capture(model, (torch.randn(2, 3),)))


def test_the_norm_of_a_unit_is_over_all_its_weights() -> None:
    model, coupling = coupled()
    layout = layout_of(coupling, torch.device("cpu"))
    first, second = (group.units for group in coupling.groups)
    norms = layout.norms(model)
    one, two, three = model[0], model[2], model[4]
    want = (one.weight.square().sum(1) + one.bias.square() + two.weight.square().sum(0)).sqrt()
    assert torch.allclose(norms[first], want)
    want = (two.weight.square().sum(1) + two.bias.square() + three.weight.square().sum(0)).sqrt()
    assert torch.allclose(norms[second], want)
    assert layout.weights[first].tolist() == [3 + 1 + 5] * 4 and layout.weights[second].tolist() == [4 + 1 + 2] * 5


def test_weights_between_two_units_are_scaled_by_both() -> None:
    model, coupling = coupled()
    layout = layout_of(coupling, torch.device("cpu"))
    before = [p.detach().clone() for p in model.parameters()]
    factors = torch.ones(len(coupling.units))
    factors[coupling.groups[0].units[1]], factors[coupling.groups[1].units[2]] = 0.5, 0.25
    with torch.no_grad():
        layout.scale(model, factors)
    share = model[2].weight / before[2]
    want = torch.ones(5, 4)
    want[:, 1] *= 0.5
    want[2] *= 0.25
    assert torch.allclose(share, want) and torch.allclose(model[4].weight[:, 2], 0.25 * before[4][:, 2])
    assert torch.equal(model[4].bias, before[5])


def test_zeros_are_written_wherever_a_unit_lies_and_nowhere_else() -> None:
    model, coupling = coupled()
    layout = layout_of(coupling, torch.device("cpu"))
    cuts = layout.cuts(flags_of(coupling.groups[1].units[[0, 3]], layout))
    assert {(cut.tensor, cut.dim) for cut in cuts} == {("2.weight", 0), ("2.bias", 0), ("4.weight", 1)}
    with torch.no_grad():
        clear(model, cuts)
    assert [not row.any() for row in model[2].weight] == [True, False, False, True, False]
    assert [not column.any() for column in model[4].weight.T] == [True, False, False, True, False]
    assert model[0].weight.all() and (model[2].bias == 0).tolist() == [True, False, False, True, False]


def test_nan_is_cleared_as_well() -> None:
    model, coupling = coupled()
    layout = layout_of(coupling, torch.device("cpu"))
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
        clear(model, layout.cuts(flags_of(coupling.groups[1].units[[0]], layout)))
    assert not model[2].weight[0].any() and not model[2].weight.isnan().any()
