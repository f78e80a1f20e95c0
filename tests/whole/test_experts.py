"""Whole experts of a mixture: removed, they are absent from the router as well, and the masked twin decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune._base.errors import BudgetError, NothingToPruneError
from fxprune.capturing.captured import capture
from fxprune.compiler.by_hand import verify
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.rewriting.slicing import slice_graph
from fxprune.twin.interpreter import Run
from tests.support.marks import but_slow, sampled
from tests.support.weights import randomise

EXPERTS, CHOSEN = 6, 2


class Mixture(nn.Module):
    """All experts' weights in one tensor; how the router's choice reaches them is ``how``."""

    def __init__(self, how: str, dim: int = 8, hidden: int = 10) -> None:
        super().__init__()
        self.how = how
        self.router = nn.Linear(dim, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, dim, hidden) / dim**0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, hidden, dim) / hidden**0.5)

    def gates(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(-1)
        if self.how == "dense":
            return scores
        weight, where = scores.topk(CHOSEN)
        weight = weight / weight.sum(-1, keepdim=True)
        if self.how == "scatter":
            return torch.zeros_like(scores).scatter(-1, where, weight)
        chosen = F.one_hot(where, EXPERTS) if self.how == "one-hot" else where.unsqueeze(-1) == torch.arange(EXPERTS)
        return (weight.unsqueeze(-1) * chosen.to(x.dtype)).sum(-2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bneh,ehd->bned", torch.einsum("bnd,edh->bneh", x, self.up).relu(), self.down)
        return torch.einsum("bned,bne->bnd", y, self.gates(x))


class Gathered(Mixture):
    """The chosen experts' weights are looked up for every token."""

    def forward(self, x: Tensor) -> Tensor:
        weight, where = self.router(x).topk(CHOSEN)
        h = torch.einsum("bnd,bnkdh->bnkh", x, self.up[where]).relu()
        return torch.einsum("bnkh,bnkhd,bnk->bnd", h, self.down[where], weight.softmax(-1))


class Net(nn.Module):
    def __init__(self, mixture: nn.Module, dim: int = 8) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(5, dim), nn.LayerNorm(dim)
        self.mixture, self.head = mixture, nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.mixture(self.norm(x)))


HOW = ("dense", "scatter", "one-hot", "compare", "gathered")
X = torch.randn(4, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _net(how: str = "scatter") -> Net:
    torch.manual_seed(0)
    net = Net(Gathered(how) if how == "gathered" else Mixture(how)).double().eval()
    with torch.no_grad():
        randomise(net, 0)
    return net


def _coupled(how: str) -> Coupling:
    return couple(capture(_net(how), (X,), dynamic_shapes={}))


def _compile(model: nn.Module, *args: Any, **options: Any) -> Any:
    return fxprune.compile(
        model, [X], *args, **{"method": "l1", "recover": None, "progress": False, "dynamic_shapes": {}} | options
    )


@pytest.mark.parametrize("how", HOW)
@pytest.mark.slow
def test_a_mixture_has_its_experts_as_units(how: str) -> None:
    coupling = _coupled(how)
    (group,) = (g for g in coupling.groups if g.kind == "expert")
    assert len(group.units) == EXPERTS and group.name == "mixture:expert"
    on = {(coupling.axes[i].tensor, coupling.axes[i].dim) for i, _ in group.axes}
    assert on == {("mixture.router.weight", 0), ("mixture.router.bias", 0), ("mixture.up", 0), ("mixture.down", 0)}
    assert "6 units of mixture:expert" in coupling.explain("mixture.router")
    assert not coupling.unsupported


@pytest.mark.parametrize("how", but_slow(HOW, quick=("dense", "gathered"), every=2))
@pytest.mark.parametrize("ratio", but_slow([0.2, 0.5, 0.7, 1.0], quick=(0.5,), every=3))
def test_experts_go_at_any_ratio_and_as_many_stay_as_are_chosen(how: str, ratio: float) -> None:
    pruned = _compile(_net(how), ratios=ratio, units="expert", verify_dtype=torch.float64)
    report = fxprune.report(pruned)
    assert report.verified and report.max_error < 1e-12
    left = max(EXPERTS - int(EXPERTS * ratio), 1 if how == "dense" else CHOSEN)
    assert pruned.mixture.up.shape == (left, 8, 10)
    assert pruned.mixture.router.weight.shape == (left, 8)
    assert "expert" in str(report)


@pytest.mark.parametrize("how", but_slow(HOW, quick=("scatter",)))
def test_random_sets_of_units_are_verified(how: str) -> None:
    coupling = _coupled(how)
    experts = next(g.units for g in coupling.groups if g.kind == "expert")
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        flags = torch.rand(len(coupling.units), generator=generator) < (0.2, 0.5)[seed % 2]
        for group in coupling.groups:  # enough stay
            least = CHOSEN if group.kind == "expert" else 2
            flags[group.units[torch.randperm(len(group.units), generator=generator)[:least].numpy()]] = False
        removed = coupling.removed_mask(flags.nonzero().flatten().tolist())
        certificate = verify(coupling, removed, slice_graph(Selection(coupling, removed)), ((X,), {}))
        assert certificate.verified, (seed, flags[experts], certificate)


@pytest.mark.parametrize("how", but_slow(HOW, quick=("scatter",)))
def test_the_twin_is_not_the_model_with_zeros_for_weights(how: str) -> None:
    """The softmax and the choice are among those that stay."""
    coupling, net = _coupled(how), _net(how)
    removed = coupling.removed_mask(next(g.units for g in coupling.groups if g.kind == "expert")[:2])
    with torch.no_grad():
        net.mixture.up[:2] = 0
        net.mixture.down[:2] = 0
    (twin,) = Run(Selection(coupling, removed))([X])
    assert not torch.allclose(twin, net(X))


@pytest.mark.slow
def test_units_may_be_chosen_without_experts() -> None:
    pruned = _compile(_net(), 0.5, units=("channel",))
    assert len(pruned.mixture.up) == EXPERTS
    with pytest.raises(NothingToPruneError):
        _compile(nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval(), 0.5, units="expert")


def test_a_budget_below_the_chosen_experts_is_refused() -> None:
    with pytest.raises(BudgetError, match="cannot be reached"):
        _compile(_net(), 0.2, units="expert")
    pruned = _compile(_net(), 0.45, units="expert", verify_dtype=torch.float64)
    assert fxprune.report(pruned).verified and CHOSEN <= len(pruned.mixture.up) < EXPERTS


@pytest.mark.parametrize("how", sampled(HOW, 2))
@pytest.mark.slow
def test_saved_loaded_and_applied_it_is_the_same(how: str, tmp_path: Path) -> None:
    net = _net(how)
    pruned = _compile(net, 0.5, verify_dtype=torch.float64)
    assert len(pruned.mixture.up) < EXPERTS
    fxprune.save(pruned, tmp_path / "half")
    loaded = fxprune.load(tmp_path / "half", net)
    torch.testing.assert_close(loaded(X), pruned(X))
    again = fxprune.apply(net, fxprune.report(pruned).plan)
    torch.testing.assert_close(again(X), pruned(X))


@pytest.mark.parametrize(
    "method", but_slow(["variance", "taylor", "joint", "spvr", "kl", "fpgm", "random"], quick=("taylor",))
)
def test_every_kind_of_criterion_has_a_score_for_experts(method: str) -> None:
    extra = {"loss": lambda output, _: output.square().mean()} if method == "taylor" else {}
    pruned = fxprune.compile(
        _net(),
        [(X, torch.zeros(4))],
        0.6,
        method=method,
        units=("channel", "expert"),
        progress=False,
        recover="covariance",
        **extra,
    )
    assert fxprune.report(pruned).verified


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
@pytest.mark.slow
def test_transformers_send_tokens_to_fewer_experts(name: str) -> None:
    pytest.importorskip("transformers")
    from benchmarks.common.architectures import select

    (entry,) = select(names=[f"transformers:{name}"])
    call = entry.build()
    pruned = fxprune.compile(
        call.model,
        [dict(call.kwargs)],
        ratios=0.5,
        method="l1",
        units="expert",
        recover=None,
        progress=False,
        verify_dtype=torch.float64,
    )
    assert fxprune.report(pruned).verified
    assert len(pruned.get_parameter("model.layers.0.mlp.experts.gate_up_proj")) == 2
    assert len(pruned.get_parameter("model.layers.1.mlp.gate.weight")) == 2
