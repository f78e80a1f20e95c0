"""Recipes: rates, decay and clipping, and what the papers say."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from fxprune.training import RECIPES, Recipe, finetune
from tests.support.training import net


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_rates_are_torchs_cosine(name: str) -> None:
    recipe = dataclasses.replace(RECIPES[name], epochs=4, warmup=0.0)
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=recipe.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4 * 5)
    for step in range(20):
        assert recipe.rate(step, 5) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_rates_rise_then_fall_to_the_end() -> None:
    recipe = Recipe(epochs=3, lr=1.0, warmup=0.5, final_lr=0.1)
    rates = [recipe.rate(step, 4) for step in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.55)
    assert rates == [*rates[:2], *sorted(rates[2:], reverse=True)]
    assert recipe.rate(12, 4) == pytest.approx(0.1)
    assert {Recipe(schedule="constant", lr=0.2).rate(step, 3) for step in range(9)} == {0.2}


def test_recipes_hold_what_the_papers_say() -> None:
    spvr, vbp = RECIPES["spvr"], RECIPES["vbp"]
    assert (spvr.optimizer, spvr.momentum, spvr.epochs, spvr.batch_size) == ("sgd", 0.9, 200, 128)
    assert (vbp.optimizer, vbp.lr, vbp.epochs, vbp.weight_decay, vbp.batch_size) == ("adamw", 1.5e-5, 10, 0.01, 32)
    assert all(recipe.schedule == "cosine" and "ours" in recipe.source for recipe in RECIPES.values())


def test_decay_spares_biases_and_norms() -> None:
    decayed, spared = net(), net()
    zero = Recipe(epochs=1, lr=0.1, optimizer="sgd", weight_decay=0.5, schedule="constant", momentum=0.0)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.sum() * 0.0

    x = [(torch.zeros(2, 1, 4, 4), torch.zeros(2).long())]
    finetune(decayed, x, recipe=zero, decay_all=True, loss=loss, progress=False)
    finetune(spared, x, recipe=zero, loss=loss, progress=False)
    start = dict(net().named_parameters())
    for name, parameter in decayed.named_parameters():
        torch.testing.assert_close(parameter, start[name] * (1.0 if "frozen" in name else 0.95))
    for name, parameter in spared.named_parameters():
        factor = 0.95 if parameter.dim() > 1 and "frozen" not in name else 1.0
        torch.testing.assert_close(parameter, start[name] * factor)


def test_the_gradient_is_clipped() -> None:
    model = nn.Linear(2, 1, bias=False)
    start = model.weight.detach().clone()
    plain = Recipe(epochs=1, lr=1.0, optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=0.5)
    finetune(
        model,
        [(torch.tensor([[30.0, 40.0]]), torch.zeros(1))],
        recipe=plain,
        schedule="constant",
        loss=lambda y, _: y.sum(),
        progress=False,
    )
    torch.testing.assert_close(start - model.weight, torch.tensor([[0.3, 0.4]]))
