"""Networks that Hypothesis draws, against the masked twin."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, note, settings

from tests.models.blocks_image import Conv, Dense, Residual
from tests.models.blocks_tokens import Attention, Mlp, TokenResidual
from tests.models.networks import Network
from tests.support.fuzzing import Case, Pruning, cases, run
from tests.support.marks import but_slow


@pytest.mark.parametrize(("kind", "count"), [("image", 50), ("tokens", 35), ("ids", 15)])
@pytest.mark.slow
def test_networks(kind: str, count: int) -> None:
    @settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(cases(most=2, kinds=(kind,)))
    def check(case: Case) -> None:
        outcome = run(case)
        note(f"{outcome.status}: {outcome.detail}")
        assert outcome.status not in ("wrong", "crash"), outcome.detail
        assert not outcome.missing, f"units found and expected: {outcome.missing}"

    check()


WRONG = [
    Network("image", 8, (Conv(8), Conv(6, groups=2)), "pool"),
    Network("image", 8, (Residual((Conv(8),)), Dense((4, 4))), "flatten"),
    Network("tokens", 8, (TokenResidual((Attention(),)), TokenResidual((Mlp(8, "glu"),))), "mean"),
    Network("ids", 8, (Attention(heads=4, how="matmul", qkv="unbind"),), "tied"),
]


@pytest.mark.parametrize("network", WRONG, ids=lambda n: type(n.blocks[0]).__name__ + "-" + n.kind)
@pytest.mark.parametrize("seed", but_slow([0, 1], quick=(0,)))
def test_a_wrong_plan_fails(network: Network, seed: int) -> None:
    outcome = run(Case(network, Pruning(ratio=0.4, seed=seed)), mutate=True)
    assert outcome.status == "verified", outcome.detail
    assert outcome.detected is True
