"""Which groups are MLPs, and what removing their units counts to."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxprune._base.errors import NothingToPruneError, ScorerError
from fxprune.budget.solver import solve
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.unit_scores import STAYS
from fxprune.scoring import score, scorer_of
from fxprune.scoring.engine.scope import mlp_groups
from fxprune.scoring.variance import Variance
from tests.models import small
from tests.models.libraries import transformer
from tests.support.formulas import copies
from tests.support.marks import but_slow
from tests.support.pruning import prepared


def _bert() -> tuple[nn.Module, tuple[Tensor, ...], int]:
    model = transformer("BertModel", {"add_pooling_layer": False}, hidden_size=16, num_attention_heads=2)
    return model, (torch.randint(30, (2, 6)),), 48


def _vit() -> tuple[nn.Module, tuple[Tensor, ...], int]:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3)
    return model, (torch.randn(2, 3, 16, 16, dtype=torch.float64),), 64


def _gated() -> tuple[nn.Module, tuple[Tensor, ...], int]:
    model = nn.Sequential(nn.Linear(4, 12), small.Block(inner=20), small.Block(inner=20), nn.Linear(12, 3))
    return model, (torch.randn(2, 5, 4, dtype=torch.float64),), 20


@pytest.mark.parametrize("build", but_slow([_bert, _vit, _gated], quick=(_gated,)))
def test_the_scope_finds_the_mlps_and_nothing_else(build: Any) -> None:
    torch.manual_seed(0)
    model, example, hidden = build()
    coupling = prepared(model, example)[1]
    found = mlp_groups(coupling)
    assert [len(group.units) for group in found] == [hidden, hidden] and len(coupling.groups) > 2
    scores = score(coupling, [example], "vbp")
    inside = {group.name for group in found}
    assert all((scores[g.name] == STAYS).all() == (g.name not in inside) for g in coupling.groups)
    solution = solve(coupling, scores, ratios=0.5)
    assert set(solution.units.tolist()) < set(itertools.chain(*(g.units.tolist() for g in found)))
    assert len(solution.units) == hidden


def test_a_network_without_mlp_has_nothing_in_scope() -> None:
    coupling, _, data = copies()
    assert not mlp_groups(coupling)
    with pytest.raises(NothingToPruneError, match=r"one linear layer makes .* use scope='all'"):
        score(coupling, data, Variance(scope="mlp"))
    with pytest.raises(ScorerError, match="scope must be one of all, mlp, got 'heads'"):
        Variance(scope="heads")


def test_vbp_is_raw_variance_over_all_mlps_at_once_with_its_mean_shift() -> None:
    vbp = scorer_of("vbp")
    assert vbp.defaults == {"recover": "mean_shift"} and not vbp.per_cost
    torch.manual_seed(0)
    model, example, _ = _gated()
    coupling = prepared(model, example)[1]
    plain, mine = score(coupling, [example], Variance(weighted=False)), score(coupling, [example], vbp)
    assert all(torch.equal(mine[g.name], plain[g.name]) for g in mlp_groups(coupling))


#: Share of hidden units removed, and the published change of MACs and parameters in percent (arXiv 2507.12988).
DEIT = [
    ("deit_tiny_patch16_224", 0.45, -25.2, -28.0),  # comes out as -25.0, -27.9
    ("deit_small_patch16_224", 0.5, -30.4, -32.2),  # -30.3, -32.1
    ("deit_base_patch16_224", 0.55, -34.9, -36.0),  # -34.9, -36.0
    ("deit_base_patch16_224", 0.2, -12.7, -13.1),  # -12.7, -13.1
]


@pytest.fixture(scope="module")
def deits() -> dict[str, Coupling]:
    return {}


@pytest.mark.parametrize(("name", "share", "macs", "params"), DEIT)
@pytest.mark.slow
def test_counts_are_those_published_for_deit(
    name: str, share: float, macs: float, params: float, deits: dict[str, Coupling]
) -> None:
    import timm

    from fxprune.capturing.captured import capture
    from fxprune.coupling.interpreter import couple

    if name not in deits:
        model = timm.create_model(name).eval()
        deits[name] = couple(capture(model, (torch.randn(2, 3, 224, 224),), dynamic_shapes={}))
    coupling = deits[name]
    units = {g.name: torch.arange(len(g.units)).double() for g in coupling.groups}
    ratios = {group.name: share for group in mlp_groups(coupling)}
    assert len(ratios) == 12
    solution = solve(coupling, units, ratios={**ratios, "default": 0.0})
    before, after = solution.before, solution.after
    assert 100 * (after.macs / before.macs - 1) == pytest.approx(macs, abs=0.25)
    assert 100 * (after.params / before.params - 1) == pytest.approx(params, abs=0.15)
