"""Recoveries by name and of one's own: what is refused, and what compile does with them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fxprune
from fxprune.recovery import protocol
from fxprune.recovery.consumers import Replacements
from tests.models.fn import Fn
from tests.support.zeroed import sliced


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

    def __init__(self, tensors: Any, finish: Any = lambda pruned, seed: (), **parts: Any) -> None:
        self.tensors, self.finish = tensors, finish
        vars(self).update({"name": "duck", "anew": False, **parts})

    def recover(self, context: fxprune.RecoveryContext) -> Any:
        return self.tensors


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


@pytest.mark.parametrize(
    ("name", "factory", "message"),
    [
        ("auto", Nothing, "a recovery is registered under a name, got 'auto'"),
        (None, Nothing, "under a name, got None"),
        ("\ud800", Nothing, r"under a name, got '\\ud800'"),
        ("own", Nothing(), r"recovery 'own': what makes it, such as its class: expected a function of \(\), got <"),
        ("own", None, r"expected a function of \(\), got None"),
        ("own", Duck, r"expected a function of \(\), got one of \(tensors: .*missing a required argument: 'tensors'"),
    ],
)
def test_what_cannot_make_a_recovery_is_not_registered(name: Any, factory: Any, message: str) -> None:
    with pytest.raises(fxprune.RecoveryError, match=message):
        fxprune.register_recovery(name, factory)


def test_what_a_factory_makes_is_checked() -> None:
    fxprune.register_recovery("five", lambda: 5)  # type: ignore[arg-type, return-value]
    with pytest.raises(fxprune.RecoveryError, match=r"recover='five': what is registered gives none: .* 5 lacks"):
        compiled("five")


@dataclass(slots=True)
class Named(fxprune.Recovery):
    """Has its name as a field, without a default."""

    name: str

    def recover(self, context: fxprune.RecoveryContext) -> fxprune.Recovered:
        return fxprune.Recovered({}, (self.name,))


class Set(Nothing):
    """Sets what it is called when it is made."""

    def __init__(self, name: str) -> None:
        self.name, self.anew = name, False


@pytest.mark.parametrize("kind", [Named, Set])
def test_a_name_may_be_a_field_or_set_when_it_is_made(kind: Any) -> None:
    assert fxprune.report(compiled(kind("its own"))).verified
    with pytest.raises(TypeError, match="name"):
        kind()


class Nameless(fxprune.Recovery):
    """Says nothing of itself."""

    def recover(self, context: fxprune.RecoveryContext) -> fxprune.Recovered:
        return fxprune.Recovered()


def replaced(tensor: Any) -> Duck:
    return Duck(fxprune.Recovered({"0.weight": tensor}))


def spoiling(pruned: nn.Module, seed: int) -> None:
    next(pruned.parameters()).fill_(torch.nan)


FULL = torch.ones(8, 4)


@pytest.mark.parametrize(
    ("recover", "message"),
    [
        (
            "magic",
            r"recover must be one of mean_shift, covariance, sequential, reconstruct, reinit or None, got 'magic'",
        ),
        (Nothing, r"recover: expected a name, None or a recovery, got the class Nothing: give Nothing\(\)"),
        (
            object(),
            r"a name, None or a recovery with name, anew, recover, finish; .* lacks name, anew, recover, finish",
        ),
        (Nameless(), "lacks name$"),
        (Duck(None, name=5), "name: expected a str, got 5"),
        (Duck(None, name=""), "name: expected text, got ''"),
        (Duck(None, recover=5), r"recovery 'duck': recover: expected a function of \(context\), got 5"),
        (Duck(None, recover=lambda: None), r"recover: expected a function of \(context\), got one of \(\): too many"),
        (Duck(None, finish=lambda pruned: None), r"finish: expected a function of \(pruned, seed\), got one of"),
        (Duck(None), r"recovery 'duck': expected fxprune\.Recovered, got NoneType"),
        (
            Duck(fxprune.Recovered({"0.weight": torch.zeros(3)})),
            r"'duck': 0\.weight: expected a dense tensor float32 \[8, 4\] with values, got float32 \[3\]",
        ),
        (Duck(fxprune.Recovered({"nowhere": torch.zeros(3)})), r"the graph has no tensor 'nowhere' to replace"),
        (Duck(fxprune.Recovered({5: torch.zeros(3)})), "the graph has no tensor 5 to replace"),  # type: ignore[dict-item]
        (Duck(fxprune.Recovered([("0.weight", FULL)])), r"tensors: expected replacements by name, got \["),  # type: ignore[arg-type]
        (Duck(fxprune.Recovered(None)), "tensors: expected replacements by name, got None"),  # type: ignore[arg-type]
        *(
            (Duck(fxprune.Recovered({}, lines)), "skipped: expected lines of text in a tuple, got")
            for lines in (5, "abc", (5,), ("\ud800",))
        ),
        *(
            (replaced(value), r"0\.weight: .*, got (ndarray|list|NoneType)$")
            for value in (np.ones((8, 4)), [[1.0]], None)
        ),
        *(
            (replaced(FULL.to(kind)), r"got \w+ \[8, 4\], torch.strided on cpu$")
            for kind in (torch.int64, torch.bool, torch.complex64)
        ),
        (replaced(FULL.to_sparse()), r"got float32 \[8, 4\], torch\.sparse_coo on cpu"),
        (replaced(FULL.to("meta")), r"got float32 \[8, 4\], torch\.strided on meta"),
        (replaced(FULL * torch.nan), r"'duck': 0\.weight: expected finite numbers where the model's own are, got NaN"),
        (replaced(FULL.double() * 1e300), r"finite numbers where the model's own are, got Inf"),
        (
            Duck(fxprune.Recovered(), finish=spoiling),
            r"'duck': finish: 0\.weight: expected finite numbers, it left NaN",
        ),
        (Duck(fxprune.Recovered(), finish=lambda pruned, seed: (5,)), "finish: expected lines of text in a tuple"),
    ],
)
def test_what_cannot_be_used_is_refused(recover: Any, message: str) -> None:
    with pytest.raises(fxprune.RecoveryError, match=message):
        compiled(recover)


def test_replacements_are_what_is_verified() -> None:
    bias = torch.tensor([5.0, 6.0, 7.0])
    for given in (bias, bias.double(), bias.half(), nn.Parameter(bias)):
        pruned = compiled(Duck(fxprune.Recovered({"2.bias": given}), finish=lambda pruned, seed: None))
        assert fxprune.report(pruned).verified and torch.equal(pruned.get_parameter("2.bias"), bias)


def test_all_that_come_with_fxprune_are_in_the_type() -> None:
    protocol.recovery_of(None)
    assert set(protocol._RECOVERIES) == set(protocol.RecoveryName.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("update", "shift", "message"),
    [
        (torch.zeros(1, 3, 8), None, r"2\.weight: shift: expected a tensor \[1, 3\], got None"),
        (torch.zeros(1, 3, 8), torch.zeros(3), r"2\.weight: shift: expected a tensor \[1, 3\], got \[3\]"),
        (torch.zeros(3, 8), torch.zeros(1, 3), r"2\.weight: update: expected a tensor \[1, 3, 8\], got \[3, 8\]"),
    ],
)
def test_a_replacement_of_another_shape_is_refused(update: Any, shift: Any, message: str) -> None:
    class Adds(Nothing):
        def recover(self, context: fxprune.RecoveryContext) -> fxprune.Recovered:
            found = Replacements(context.selection.coupling)
            found.add(context.consumers[0], update, shift)
            return fxprune.Recovered(found.tensors)

    with pytest.raises(fxprune.RecoveryError, match=message):
        compiled(Adds())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_are_drawn_anew(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model = Fn(lambda m, x: m.o(m.r(x)[0][:, -1]), r=kind(6, 16, batch_first=True), o=nn.Linear(16, 3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxprune.RecoverySkippedWarning)
        pruned = fxprune.compile(model, [torch.randn(4, 5, 6)], 0.6, method="l2", recover="reinit", progress=False)
    found = dict(pruned.named_parameters())
    keep = fxprune.report(pruned).plan.keep
    bound = found["r.weight_hh_l0"].shape[1] ** -0.5
    for name, before in model.r.named_parameters():
        assert not torch.equal(found[f"r.{name}"], sliced(before, keep[f"r.{name}"]))
        assert bound / 2 < found[f"r.{name}"].abs().max() <= bound


def test_what_no_module_draws_anew_is_warned_of() -> None:
    model = Fn(lambda m, x: m.b((m.a(x) * m.gain).relu()), a=nn.Linear(6, 16), gain=nn.Parameter(torch.ones(16)))
    model.b = nn.Linear(16, 3)
    with pytest.warns(fxprune.RecoverySkippedWarning, match="leaves parameters as they are: gain"):
        fxprune.compile(model.eval(), [torch.randn(4, 6)], 0.6, method="l2", recover="reinit", progress=False)
