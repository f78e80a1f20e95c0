"""IPPRO: the formulas, the offset against a real injected parameter, where targets are found, and whole compiles."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune._base.errors import CalibrationError, ScorerError
from fxprune.capturing.inputs import PlainInputs
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.scoring import score, scorer_of
from fxprune.scoring.engine.targets import find_targets
from fxprune.scoring.ippro import (
    READINGS,
    BatchStatistics,
    Filters,
    Ippro,
    collect,
    combine,
    first_order,
    measure,
    offset_of,
    read,
    tangent,
)
from fxprune.scoring.scorer import Context
from fxprune.twin.interpreter import Run
from tests.models import small
from tests.models.fn import Fn
from tests.support.marks import but_slow
from tests.support.pruning import coupling_of, prepared
from tests.support.tensors import random


def _filters(count: int = 6) -> Filters:
    return measure(random(count, 3, 2), random(count, 3, 2, seed=1), random(count, seed=2))


# -- formulas -----------------------------------------------------------------------------------------------------


def test_the_tangent_is_that_of_the_moved_point() -> None:
    f, g, d = random(6, 4), random(6, 4, seed=1), random(6, seed=2)
    expected = (f - 0.1 * g).norm(dim=1) / (f.norm(dim=1) - 0.1 * d).abs()
    torch.testing.assert_close(tangent(measure(f, g, d), 0.1), expected)


def test_without_a_step_every_nonzero_filter_scores_one() -> None:
    f = random(6, 4)
    f[2] = 0
    found = tangent(measure(f, random(6, 4, seed=1), random(6, seed=2)), 0.0)
    torch.testing.assert_close(found, (f != 0).any(1).double())


@pytest.mark.parametrize("scale", [1e-3, 7.0])
def test_a_scaled_filter_is_the_same_projective_point(scale: float) -> None:
    f = random(5, 4)
    point, scaled = (torch.cat([g, offset_of(g.square().sum(1))[:, None]], 1) for g in (f, scale * f))
    torch.testing.assert_close(scaled / scaled.norm(dim=1, keepdim=True), point / point.norm(dim=1, keepdim=True))
    assert offset_of(torch.zeros(1)).tolist() == [1]


def test_the_tangent_approaches_the_first_order_form() -> None:
    filters = _filters()
    errors = [((tangent(filters, e) - 1) / e - first_order(filters)).abs().max() for e in (1e-3, 1e-4, 1e-5)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]  # linear in the step
    assert errors[2] < 1e-3


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("step", [0.0, 0.1])
def test_a_zero_filter_goes_first(reading: str, step: float) -> None:
    f = random(6, 4)
    f[2] = 0
    found = read(measure(f, random(6, 4, seed=1), random(6, seed=2)), reading, step)
    assert int(found.argmin()) == 2 and torch.isfinite(found).all()
    if (reading, step) == ("literal", 0.1):
        assert found[2] == 0


def test_readings() -> None:
    filters = _filters()
    s, d = first_order(filters), filters.offset / filters.square.sqrt()
    for reading, expected in zip(READINGS, (s, -s, s.abs(), d, d.abs()), strict=True):
        torch.testing.assert_close(read(filters, reading), expected)
    torch.testing.assert_close(read(filters, "absolute", 0.1), (tangent(filters, 0.1) - 1).abs())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "bias"}, "target must be one of gamma"),
        ({"reading": "best"}, "reading must be one of literal"),
        ({"aggregate": "min"}, "aggregate must be one of mean"),
        ({"step": -1.0}, "step must be a size"),
        ({"step": float("nan")}, "step must be a size"),
    ],
)
def test_what_is_no_setting(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ScorerError, match=message):
        Ippro(**arguments)


# -- the offset, against a parameter that is really there ---------------------------------------------------------


class Injected(nn.Module):
    """``sigma(x) + D x - D~ x`` with D = D~ per channel; D is a parameter, D~ a constant."""

    def __init__(self, sigma: nn.Module, start: Tensor, dim: int) -> None:
        super().__init__()
        self.sigma, self.dim = sigma, dim
        self.offset = nn.Parameter(start.clone())
        self.register_buffer("constant", start.clone())

    def forward(self, x: Tensor) -> Tensor:
        shape = [1] * x.dim()
        shape[self.dim] = -1
        return self.sigma(x) + self.offset.view(shape) * x - self.constant.view(shape) * x


class ConvNormRelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.sigma = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.sigma(self.norm(self.conv(x))).mean((2, 3)))


class ConvNormAdd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.sigma, self.head = nn.Identity(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.sigma(self.norm(self.conv(x)))).relu().mean((2, 3)))


class LinearGelu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.sigma, self.head = nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.sigma(self.conv(x))).mean(1)


CASES = {
    "conv-bn-relu": (ConvNormRelu, random(5, 3, 6, 6), 1, "norm.weight"),
    "conv-bn-add": (ConvNormAdd, random(5, 3, 6, 6), 1, "norm.weight"),
    "linear-gelu": (LinearGelu, random(5, 7, 8), -1, "conv.weight"),
}


def _context(coupling: Coupling, x: Tensor, parts: int = 1) -> Context:
    labels = torch.arange(len(x)) % 4
    return Context(coupling, PlainInputs([(part,) for part in x.chunk(parts)], labels.chunk(parts)))


@pytest.mark.parametrize("case", but_slow(CASES, quick=("linear-gelu",)))
def test_the_offset_is_the_gradient_of_an_injected_parameter(case: str) -> None:
    build, x, dim, name = CASES[case]
    model = build()
    coupling = prepared(model, (x,))[1]
    weight = dict(model.named_parameters())[name]
    plain = F.cross_entropy(model(x), torch.arange(len(x)) % 4)
    (slope,) = torch.autograd.grad(plain, weight)
    injected = copy.deepcopy(model)
    injected.sigma = Injected(
        model.sigma, weight.detach().flatten(1).norm(dim=1) if weight.dim() > 1 else weight.detach().abs(), dim
    )
    loss = F.cross_entropy(injected(x), torch.arange(len(x)) % 4)
    torch.testing.assert_close(injected(x), model(x))
    same, offset = torch.autograd.grad(loss, [dict(injected.named_parameters())[name], injected.sigma.offset])
    torch.testing.assert_close(same, slope)
    for parts in (1, 2):
        found = {t.filters: f for t, f in collect(_context(coupling, x, parts), Ippro())}
        filters = found[((name, 0),)]
        torch.testing.assert_close(filters.offset, offset)
        expected = measure(weight.detach().reshape(6, -1), slope.reshape(6, -1), offset)
        for part in ("square", "slope", "product"):
            torch.testing.assert_close(getattr(filters, part), getattr(expected, part))


@pytest.mark.parametrize("target", ["gamma_beta", "weight"])
def test_behind_the_identity_the_offset_is_the_product(target: str) -> None:
    model, x = ConvNormAdd(), random(5, 3, 6, 6)
    model.conv.bias = None
    found = collect(_context(prepared(model, (x,))[1], x), Ippro(target=target))
    (filters,) = [f for t, f in found if t.axes[0].tensor == "conv.weight"]
    torch.testing.assert_close(filters.offset, filters.product)
    assert filters.product.abs().max() > 1e-4


# -- batch norm in training mode ----------------------------------------------------------------------------------


def test_in_training_mode_a_conv_before_batch_norm_has_no_slope_along_itself() -> None:
    model, x = ConvNormRelu(), random(5, 3, 6, 6)
    model.norm.eps = 1e-30  # torch 2.11 wants it positive
    coupling = prepared(model, (x,))[1]
    ((_, evaluated),) = collect(_context(coupling, x), Ippro(target="weight"))
    ((_, trained),) = collect(_context(coupling, x), Ippro(target="weight", batch_statistics=True))
    assert trained.product.abs().max() < 1e-12 < evaluated.product.abs().max()
    assert trained.slope.max() > 1e-6  # across itself there is
    assert first_order(trained).abs().max() < 1e-12  # so nothing is left to rank


def test_the_training_pass_is_the_model_in_training_mode_and_changes_nothing() -> None:
    model, x = ConvNormRelu(), random(5, 3, 6, 6)
    coupling = prepared(model, (x,))[1]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (found,) = BatchStatistics(Selection.nothing(coupling))((x,))
    score(coupling, PlainInputs([(x,)], [torch.arange(5) % 4]), Ippro(batch_statistics=True))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(found, copy.deepcopy(model).train()(x))
    assert not torch.allclose(found, Run(Selection.nothing(coupling))((x,))[0])


def test_a_batch_without_variance_is_refused() -> None:
    model = Fn(lambda m, x: m.b(m.n(m.a(x)).relu()), a=nn.Linear(3, 4), n=nn.BatchNorm1d(4), b=nn.Linear(4, 4))
    coupling = prepared(model, (random(5, 3),))[1]
    with pytest.raises(CalibrationError, match="more than one value a channel"):
        score(coupling, PlainInputs([(random(1, 3),)], [torch.tensor([1])]), Ippro(batch_statistics=True))


# -- where targets are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "filters"),
    [
        ("gamma", {("norm.weight",), ("stem.weight",)}),
        ("gamma_beta", {("norm.weight", "norm.bias"), ("stem.weight",)}),
        ("weight", {("conv.weight",), ("stem.weight",)}),
    ],
)
def test_the_target_is_the_batch_norm_behind_a_layer_else_its_weight(kind: str, filters: set[Any]) -> None:
    coupling = prepared(ConvNormAdd(), (random(5, 3, 6, 6),))[1]
    assert {tuple(name for name, _ in t.filters) for t in find_targets(coupling, kind)} == filters


def test_a_gate_is_not_taken_for_an_activation() -> None:
    model = Fn(lambda m, x: m.b((lambda y: y * y.sigmoid())(m.a(x))), a=nn.Linear(3, 4), b=nn.Linear(4, 4))
    (target,) = find_targets(prepared(model, (random(5, 3),))[1], "weight")
    (site,) = target.sites
    assert site.psi is site.x  # two readers: the identity


def test_a_layer_used_twice_has_two_sites() -> None:
    model = Fn(lambda m, x: m.b(m.a(x).relu() * m.a(x + 1).tanh()), a=nn.Linear(3, 4), b=nn.Linear(4, 4))
    (target,) = find_targets(prepared(model, (random(5, 3),))[1], "gamma")
    assert [str(site.psi.target) for site in target.sites] == ["aten.relu.default", "aten.tanh.default"]


def test_a_grouped_transposed_convolution_sums_over_its_groups() -> None:
    model = Fn(
        lambda m, x: m.b(m.a(x).relu()), a=nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), b=nn.Conv2d(6, 2, 1)
    )
    x = random(3, 4, 5, 5)
    coupling = prepared(model, (x,))[1]
    (found,) = [
        (t, f) for t, f in collect(_labelled(coupling, x, (3, 2, 6, 6)), Ippro()) if t.axes[0].tensor == "a.weight"
    ]
    assert found[0].size == 3
    y = model.a(x).detach().requires_grad_()
    psi = y.relu()
    loss = F.mse_loss(model.b(psi), torch.zeros(3, 2, 6, 6, dtype=torch.float64))
    (slope,) = torch.autograd.grad(loss, psi)
    torch.testing.assert_close(found[1].offset, (y * slope).sum((0, 2, 3)).detach().view(2, 3).sum(0))


def _labelled(coupling: Coupling, x: Tensor, shape: tuple[int, ...]) -> Context:
    return Context(coupling, PlainInputs([(x,)], [torch.zeros(shape, dtype=torch.float64)]))


# -- units --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("aggregate", "reduce"), [("mean", torch.mean), ("sum", torch.sum), ("max", torch.amax)])
def test_coupled_layers_are_aggregated(aggregate: str, reduce: Any) -> None:
    model, x = ConvNormAdd(), random(5, 3, 6, 6)
    coupling = prepared(model, (x,))[1]
    context = _context(coupling, x)
    scorer = Ippro(reading="literal", aggregate=aggregate)
    collected = collect(context, scorer)
    assert {t.axes[0].tensor for t, _ in collected} == {"stem.weight", "conv.weight"}
    (found,) = combine(context, collected, scorer).values()
    members = torch.stack([read(filters, "literal") for _, filters in collected])
    torch.testing.assert_close(found, reduce(members, dim=0))


@pytest.mark.parametrize("settings", [{}, {"target": "weight", "step": 0.1}, {"batch_statistics": True}])
@pytest.mark.parametrize("name", small.NETWORKS)
def test_every_unit_gets_a_finite_score(name: str, settings: dict[str, Any]) -> None:
    coupling, (x,) = coupling_of(name), small.example(name)

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        return F.cross_entropy(first.flatten(1), targets)

    inputs = PlainInputs([(x,)], [torch.arange(len(x)) % 3])
    found = score(coupling, inputs, Ippro(**settings), loss=loss)
    assert {name: len(s) for name, s in found.items()} == {g.name: len(g.units) for g in coupling.groups}
    assert all(torch.isfinite(s).all() for s in found.values())
    assert all(len(s) < 2 or s.unique().numel() > 1 for s in found.values())


@pytest.mark.parametrize(
    "method", but_slow(["ippro", "ippro-literal", Ippro(target="weight", step=0.01)], quick=("ippro",))
)
@pytest.mark.slow
def test_a_compile_from_end_to_end(method: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3),
        nn.BatchNorm2d(10),
        nn.ReLU(),
        nn.Conv2d(10, 20, 3),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 4),
    ).eval()
    before = copy.deepcopy(model.state_dict())
    data = [(torch.randn(8, 3, 8, 8), torch.randint(0, 4, (8,))) for _ in range(2)]
    pruned = fxprune.compile(model, data, ratios={"0": 0.3, "3": 0.5}, method=method, progress=False)
    shapes = {k: list(v.shape) for k, v in pruned.state_dict().items() if k.endswith("weight")}
    assert shapes["0.weight"][0] == 7 and shapes["3.weight"][:2] == [10, 7] and shapes["8.weight"] == [4, 10]
    assert fxprune.report(pruned).verified is True
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(CalibrationError, match="targets"):
        fxprune.compile(model, [x for x, _ in data], 0.5, method=method, progress=False)


def test_the_registered_names() -> None:
    assert scorer_of("ippro-literal").reading == "literal"  # type: ignore[attr-defined]
    assert scorer_of("ippro-literal").defaults["recover"] is None
    assert scorer_of("ippro") == Ippro()
