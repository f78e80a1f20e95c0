"""Recoveries by name and of one's own: what is refused, and what compile does with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune.recovery import protocol


class Nothing(fxprune.Recovery):
    """Changes nothing, and says so."""

    name = "nothing"

    def recover(self, context: fxprune.RecoveryContext) -> fxprune.Recovered:
        return fxprune.Recovered({}, ("nothing was done",))

    def finish(self, pruned: nn.Module, seed: int) -> tuple[str, ...]:
        with torch.no_grad():
            next(pruned.parameters()).add_(1.0)
        return (f"drawn with {seed}",)


class Duck:
    """No class of fxprune's, but all it takes."""

    name, anew = "duck", False

    def __init__(self, tensors: Any) -> None:
        self.tensors = tensors

    def recover(self, context: fxprune.RecoveryContext) -> Any:
        return self.tensors

    def finish(self, pruned: nn.Module, seed: int) -> tuple[str, ...]:
        return ()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def compiled(recover: Any) -> nn.Module:
    return fxprune.compile(network(), [torch.randn(6, 4)], 0.6, recover=recover, seed=3, progress=False)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol.recovery_of(None)
    monkeypatch.setattr(protocol, "_RECOVERIES", dict(protocol._RECOVERIES))


def test_one_s_own_is_asked_and_may_change_what_was_verified() -> None:
    found = fxprune.report(compiled(Nothing()))
    assert found.skipped == ("nothing was done", "drawn with 3") and found.verified
    plain, moved = compiled(None), compiled(Nothing())
    assert torch.equal(next(moved.parameters()), next(plain.parameters()) + 1)


def test_under_a_name() -> None:
    fxprune.register_recovery("nothing", Nothing)
    assert fxprune.report(compiled("nothing")).skipped[0] == "nothing was done"
    with pytest.raises(fxprune.RecoveryError, match="a recovery named 'nothing' is registered already"):
        fxprune.register_recovery("nothing", Nothing)
    with pytest.raises(fxprune.RecoveryError, match="registered under a name, got 'auto'"):
        fxprune.register_recovery("auto", Nothing)


@pytest.mark.parametrize(
    ("recover", "message"),
    [
        (
            "magic",
            r"recover must be one of mean_shift, covariance, sequential, reconstruct, reinit or None, got 'magic'",
        ),
        (Nothing, r"recover must be a name, None or an object with \.name, \.anew, .* got <class"),
        (object(), r"recover must be a name, None or an object"),
        (Duck(None), r"recovery 'duck': expected fxprune\.Recovered, got NoneType"),
        (Duck(fxprune.Recovered({"0.weight": torch.zeros(3)})), r"0\.weight: expected .* shape \[8, 4\], got \[3\]"),
        (Duck(fxprune.Recovered({"nowhere": torch.zeros(3)})), r"the graph has no tensor 'nowhere' to replace"),
    ],
)
def test_what_cannot_be_used_is_refused(recover: Any, message: str) -> None:
    with pytest.raises(fxprune.RecoveryError, match=message):
        compiled(recover)


def test_replacements_are_what_is_verified() -> None:
    changed = fxprune.Recovered({"2.bias": torch.tensor([5.0, 6.0, 7.0])})
    pruned = compiled(Duck(changed))
    assert fxprune.report(pruned).verified and torch.equal(pruned.get_parameter("2.bias"), changed.tensors["2.bias"])


def test_all_that_come_with_fxprune_are_in_the_type() -> None:
    protocol.recovery_of(None)
    assert set(protocol._RECOVERIES) == set(protocol.RecoveryName.__args__)  # type: ignore[attr-defined]
