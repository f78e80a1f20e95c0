"""The smallest networks that once went wrong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxprune.verify import verify
from tests.blocks_tokens import Encoder, Reduced
from tests.fuzzing import Case, Pruning, compiled, run
from tests.networks import Network


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
