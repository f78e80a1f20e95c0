"""A layer is a layer however it is spelled: recovery of products with a matrix against that of `nn.Linear`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxprune
from tests.support.marks import but_slow
from tests.support.weights import randomise

Spelling = Callable[[Tensor, Tensor, Tensor], Tensor]

#: Each multiplies ``x[..., columns]`` by ``w[columns, outputs]`` and adds a bias.
SPELLINGS: dict[str, Spelling] = {
    "addmm": lambda x, w, b: torch.addmm(b, x.flatten(0, -2), w).unflatten(0, x.shape[:-1]),
    "matmul": lambda x, w, b: x @ w + b,
    "mm": lambda x, w, b: torch.mm(x.flatten(0, -2), w).unflatten(0, x.shape[:-1]) + b,
    "bias first": lambda x, w, b: b + x @ w,
    "einsum": lambda x, w, b: torch.einsum("...i,io->...o" if x.dim() < 3 else "bti,io->bto", x, w) + b,
}


class Spelled(nn.Module):
    """A linear layer with its weight the other way round, as GPT-2 has it."""

    def __init__(self, linear: nn.Linear, spelling: Spelling) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().T.contiguous())
        self.bias = nn.Parameter(linear.bias.detach().clone())
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        return self.spelling(x, self.weight, self.bias)


class Block(nn.Module):
    """Attention and an MLP, both beside a stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, -1))
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        y: Tensor = x + self.down(self.up(x).relu())
        return y


def model(spelling: Spelling | None) -> nn.Module:
    torch.manual_seed(0)
    made = randomise(nn.Sequential(Block(), Block(), nn.Linear(16, 3))).double().eval()
    for module in list(made.modules()) if spelling else ():
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, Spelled(child, spelling))  # type: ignore[arg-type]
    return made


def recovered(spelling: Spelling | None, ratios: dict[str, float], recover: str) -> tuple[float, tuple[str, ...], Any]:
    """Returns the error on other data, what was left alone, and what was kept."""
    made, data = model(spelling), torch.randn(8, 16, 12, 16, generator=torch.Generator().manual_seed(1)).double()
    options: Any = {"method": "l2", "recover": recover, "dynamic_shapes": {}, "progress": False}
    pruned = fxprune.compile(made, list(data[:6]), ratios=ratios | {"default": 0.0}, **options)
    assert pruned.report.verified
    with torch.no_grad():
        error = float(sum((pruned(x) - made(x)).square().mean() for x in data[6:]))
    return error, pruned.report.skipped, [(g.name, g.after) for g in pruned.report.groups]


HIDDEN = {"*.up": 0.5}


@functools.cache
def of_layers(recover: str) -> tuple[float, tuple[str, ...], Any]:
    """Returns what comes of plain layers."""
    return recovered(None, HIDDEN, recover)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(
    "recover", but_slow(["mean_shift", "covariance", "sequential"], quick=("covariance",), every=3)
)
def test_hidden_channels_are_made_up_for(spelling: str, recover: str) -> None:
    nothing, wanted = of_layers("mean_shift")[0], of_layers(recover)
    error, *others = recovered(SPELLINGS[spelling], HIDDEN, recover)
    assert error == pytest.approx(wanted[0], rel=1e-6) and others == list(wanted[1:])
    assert recover == "mean_shift" or error < nothing


@pytest.mark.parametrize("spelling", ["addmm", "matmul"])
def test_heads_are_given_in_another_basis(spelling: str) -> None:
    ratios = {"*.qkv:head_dim": 0.5, "*.qkv:head_dim#2": 0.5}
    wanted, got = (recovered(s, ratios, "covariance") for s in (None, SPELLINGS[spelling]))
    assert got[0] == pytest.approx(wanted[0], rel=1e-6) and got[1:] == wanted[1:]


def test_what_is_permuted_or_scaled_is_no_layer() -> None:
    spellings: list[Spelling] = [
        lambda x, w, b: torch.einsum("bti,io->tbo", x, w).transpose(0, 1) + b,
        lambda x, w, b: torch.addmm(b, x.flatten(0, -2), w, alpha=0.5).unflatten(0, x.shape[:-1]),
        lambda x, w, b: torch.addmm(b.sum()[None], x.flatten(0, -2), w).unflatten(0, x.shape[:-1]),
    ]
    for spelling in spellings:
        with pytest.warns(fxprune.RecoverySkippedWarning, match="down.weight: no compensation for aten"):
            recovered(spelling, {"*.up": 0.5}, "covariance")


def test_gpt2_is_made_up_for() -> None:
    """Its layers are products with matrices the other way round."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=0
    )
    gpt, ids = transformers.GPT2LMHeadModel(config).eval(), torch.randint(50, (24, 32))
    error = {}
    for recover in (None, "covariance"):
        pruned = fxprune.compile(
            gpt,
            [{"input_ids": part} for part in ids.split(8)],
            0.8,
            ignore="*wte*",
            method="l2",
            recover=recover,
            progress=False,
        )
        assert pruned.report.verified and not pruned.report.skipped
        with torch.no_grad():
            error[recover] = float((pruned(input_ids=ids).logits - gpt(ids).logits).square().mean())
    assert error["covariance"] < 0.7 * error[None]
