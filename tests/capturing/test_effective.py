"""Computed weights: what acts is judged, sliced and recovered; removing what is always zero changes nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

import fxprune


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.triu() + weight.triu(1).mT


class LowRank(nn.Module):
    """Its weight is a product: no parameter has the weight's shape."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return weight[:, :4].detach().clone(), torch.randn(4, weight.shape[1])


def _parametrized(step: nn.Module) -> Callable[[nn.Module], nn.Module]:
    return lambda layer: parametrize.register_parametrization(layer, "weight", step)


def _masked(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.3)
    return prune.l1_unstructured(layer, "bias", 0.3)


def _both(layer: nn.Module) -> nn.Module:
    return parametrizations.spectral_norm(parametrizations.weight_norm(layer))


KINDS: dict[str, Callable[[Any], Any]] = {
    "weight norm": parametrizations.weight_norm,
    "weight norm by hook": nn.utils.weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm by hook": nn.utils.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "one's own": _parametrized(Symmetric()),
    "low rank": _parametrized(LowRank()),
    "one upon another": _both,
    "masks": _masked,
}

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def _network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), KINDS[kind](nn.Linear(12, 12)), nn.ReLU(), nn.Linear(12, 3)
    ).eval()


def _plain(kind: str) -> nn.Sequential:
    """Returns the same network with plain weights, by torch's own means."""
    plain = _network(kind)
    layer = plain[2]
    if parametrize.is_parametrized(layer):
        for name in list(layer.parametrizations):
            parametrize.remove_parametrizations(layer, name, leave_parametrized=True)
    for hook in list(layer._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(layer, hook._tensor_name)
        elif "Spectral" in type(hook).__name__:
            nn.utils.remove_spectral_norm(layer)
        else:
            nn.utils.remove_weight_norm(layer)
    return plain


X = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(3, (64,), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["fpgm", "variance", "taylor"])
def test_the_weight_that_acts_is_judged(kind: str, method: str) -> None:
    data: Any = [(X, LABELS)] if method == "taylor" else [X]
    mine, usual = (
        fxprune.report(fxprune.compile(model, data, 0.6, method=method, progress=False, dynamic_shapes={}))
        for model in (_network(kind), _plain(kind))
    )
    assert mine.verified
    assert mine.params == usual.params
    assert mine.plan is not None and usual.plan is not None
    for name in ("0.weight", "4.weight"):
        assert mine.plan.keep.get(name) == usual.plan.keep.get(name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recover", [None, "covariance", "sequential"])
def test_removing_what_is_always_zero_changes_nothing(kind: str, recover: str | None) -> None:
    network = _network(kind)
    with torch.no_grad():
        network[0].weight[:6] = 0
        network[0].bias[:6] = 0
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = fxprune.compile(
        network, [X], ratios={"0": 0.5, "default": 0.0}, recover=recover, progress=False, dynamic_shapes={}
    )
    report = fxprune.report(found)
    assert report.plan is not None and report.plan.keep["0.weight"][0] == tuple(range(6, 12))
    assert report.skipped == ()
    assert relative_error(found(X), network(X)) < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_layer_is_plain_and_the_report_says_so(kind: str) -> None:
    network = _network(kind)
    found = fxprune.compile(network, [X], 0.6, progress=False, dynamic_shapes={})
    assert type(found.get_submodule("2")) is nn.Linear
    assert sorted(name for name in found.state_dict() if name.startswith("2")) == ["2.bias", "2.weight"]
    assert any("2.weight" in note and "plain" in note for note in fxprune.report(found).notes)
    assert fxprune.report(found).dropped == 0


@pytest.mark.parametrize("kind", KINDS)
def test_recovery_reaches_the_layer(kind: str) -> None:
    network = _network(kind)
    errors = [
        relative_error(
            fxprune.compile(network, [X], 0.6, recover=recover, ridge=1e-2, progress=False, dynamic_shapes={})(X),
            network(X),
        )
        for recover in (None, "sequential")
    ]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_of_it_applies_to_the_original(kind: str) -> None:
    network = _network(kind)
    found = fxprune.compile(network, [X], 0.6, recover=None, progress=False, dynamic_shapes={})
    plan = fxprune.report(found).plan
    assert plan is not None
    again = fxprune.apply(network, fxprune.Plan.from_json(plan.to_json()))
    assert torch.equal(again(X), found(X))
    stepped = fxprune.compile(network, [X], 0.5, steps=2, recover=None, progress=False, dynamic_shapes={})
    assert fxprune.report(stepped).verified


def test_a_plan_names_the_masked_parameter() -> None:
    network = _network("masks")
    report = fxprune.report(fxprune.compile(network, [X], 0.6, progress=False, dynamic_shapes={}))
    assert report.plan is not None
    assert {"2.weight_orig", "2.bias_orig"} <= report.plan.shapes.keys()
    assert "2.weight_orig" in report.plan.keep


def test_what_is_read_elsewhere_too_stays_computed() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = parametrizations.weight_norm(nn.Linear(6, 6)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu() + self.a.parametrizations.weight.original1.sum(0))

    captured = fxprune.capture(Tied().eval(), (X,))
    assert not captured.folded
    assert "a.parametrizations.weight.original1" in captured.persistent


def test_what_has_no_values_stays_computed() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(6, 6), parametrizations.weight_norm(nn.Linear(6, 2)))
    captured = fxprune.capture(network.eval(), (X.to("meta"),))
    assert not captured.folded


def test_a_layer_that_is_called_twice_has_one_weight() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = parametrizations.weight_norm(nn.Linear(6, 6)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(self.a(x).relu()))

    captured = fxprune.capture(Twice().eval(), (X,))
    assert list(captured.folded) == ["a.weight"]
    names = [str(node.target) for node in captured.module.graph.find_nodes(op="get_attr")]
    assert sorted(names) == ["a.bias", "a.weight", "b.bias", "b.weight"]


class Standardised(nn.Linear):
    """Its forward makes the weight that acts, in one of several ways."""

    def __init__(self, how: str, inputs: int = 12, outputs: int = 12) -> None:
        super().__init__(inputs, outputs)
        self.how, self.gain = how, nn.Parameter(torch.rand(outputs) + 0.5)
        self.u, self.v = nn.Parameter(torch.randn(outputs)), nn.Parameter(torch.randn(inputs))

    def made(self) -> Tensor:
        if self.how == "batch norm":
            return F.batch_norm(self.weight[None], None, None, weight=self.gain, training=True)[0]
        if self.how == "variance":
            spread, mean = torch.var_mean(self.weight, dim=1, keepdim=True, correction=0)
            return (self.weight - mean) / (spread + 1e-5).sqrt()
        if self.how == "length":
            return F.normalize(self.weight)
        if self.how == "singular value":
            return self.weight / torch.vdot(self.u, self.weight @ self.v)
        return self.weight * self.gain[:, None]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.made(), self.bias)


OWN = ["batch norm", "variance", "length", "singular value"]


def _standardising(how: str) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), Standardised(how), nn.ReLU(), nn.Linear(12, 3)).eval()
    with torch.no_grad():
        network[0].weight[:6] = 0
        network[0].bias[:6] = 0
    return network


def _without_zeros(network: nn.Module, recover: str | None = None) -> nn.Module:
    return fxprune.compile(
        network, [X], ratios={"0": 0.5, "default": 0.0}, recover=recover, progress=False, dynamic_shapes={}
    )


@pytest.mark.parametrize("how", OWN)
@pytest.mark.parametrize("recover", [None, "covariance", "sequential"])
def test_a_weight_that_forward_standardises_stays_what_it_was(how: str, recover: str | None) -> None:
    network = _standardising(how)
    found = _without_zeros(network, recover)
    report = fxprune.report(found)
    assert report.verified and report.plan is not None and report.plan.keep["0.weight"][0] == tuple(range(6, 12))
    assert report.plan.keep["2.weight"] == {1: tuple(range(6, 12))}
    assert relative_error(found(X), network(X)) < 1e-5
    assert any("2.weight (Standardised)" in note and "plain" in note for note in report.notes)
    layer = found.get_submodule("2")
    assert type(layer) is nn.Linear
    torch.testing.assert_close(layer.weight, network[2].made()[:, 6:]) if recover is None else None
    assert [*found.get_submodule("2").state_dict()] == ["weight", "bias"]
    torch.testing.assert_close(fxprune.apply(network, report.plan)(X), _without_zeros(network)(X))


def test_a_standardised_weight_is_judged_as_it_acts() -> None:
    network = _standardising("length")
    with torch.no_grad():
        network[2].weight[0] *= 100  # whose length does not count
        network[2].bias.zero_()
    plain = copy.deepcopy(network)
    plain[2] = nn.Linear(12, 12)
    plain[2].load_state_dict({"weight": network[2].made(), "bias": network[2].bias})
    kept = [
        fxprune.report(fxprune.compile(model, [X], 0.6, method="l2", progress=False, dynamic_shapes={})).plan
        for model in (network, plain)
    ]
    assert kept[0] is not None and kept[1] is not None and kept[0].keep["2.weight"] == kept[1].keep["2.weight"]


def test_what_needs_no_statistic_stays_computed() -> None:
    found = _without_zeros(_standardising("gain"))
    assert {"2.weight", "2.gain"} <= found.state_dict().keys()
    assert not any("computed" in note for note in fxprune.report(found).notes)


def test_a_statistic_that_stays_is_announced() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = Standardised("variance")

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + F.linear(x, self.layer.weight)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), Read(), nn.Linear(12, 3)).eval()
    report = fxprune.report(fxprune.compile(network, [X], 0.6, recover=None, progress=False, dynamic_shapes={}))
    assert report.verified
    assert any("2.layer" in note and "statistics over what stays" in note for note in report.notes)


def test_a_weight_that_is_turned_about_stays_computed() -> None:
    class Turned(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, F.normalize(self.weight, dim=0).T, self.bias)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), Turned(12, 12), nn.Linear(12, 3)).eval()
    report = fxprune.report(fxprune.compile(network, [X], 0.6, recover=None, progress=False, dynamic_shapes={}))
    assert report.verified and report.plan is not None
    assert report.plan.keep["2.weight"][0] == report.plan.keep["0.weight"][0], "its rows read, as in the original"
    assert any("'2'" in note or " 2 " in note for note in report.notes)
