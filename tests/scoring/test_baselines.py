"""Baseline criteria, each against its formula written out with loops or by autograd on the original model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune._base.errors import BudgetError, CalibrationError, NothingToPruneError, ScorerError
from fxprune.capturing.inputs import PlainInputs
from fxprune.coupling.coupling import Coupling
from fxprune.scoring import score
from fxprune.scoring.chip import ChannelIndependence, norm_changes
from fxprune.scoring.engine.shares import layers_that, remaining_share
from fxprune.scoring.fpgm import distances
from fxprune.scoring.hrank import FeatureRank
from fxprune.scoring.scorer import Context, registered
from fxprune.scoring.taylor import Taylor
from tests.models import small
from tests.scoring.engine.test_gradients import Attention
from tests.support.pruning import Fn, prepared
from tests.support.weights import randomise

METHODS = sorted(registered())
BASELINES = ["bn_scale", "chip", "fpgm", "hrank", "nisp", "taylor"]


class Conv(nn.Module):
    """A map that a convolution reads, and one that is flattened for a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3)
        self.norm, self.c = nn.BatchNorm2d(5), nn.Linear(5 * 16, 4)

    def first(self, x: Tensor) -> Tensor:
        return self.a(x).relu()

    def second(self, x: Tensor) -> Tensor:
        return self.norm(self.b(x)).relu()

    def last(self, x: Tensor) -> Tensor:
        return self.c(x.flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)))


class Mlp(nn.Module):
    """Two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(7, 6), nn.Linear(6, 5), nn.Linear(5, 4)

    def first(self, x: Tensor) -> Tensor:
        return self.a(x).relu()

    def second(self, x: Tensor) -> Tensor:
        return self.b(x).relu()

    def last(self, x: Tensor) -> Tensor:
        return self.c(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x)))


def _random(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _built(name: str) -> tuple[Coupling, Any, Tensor, Tensor]:
    """Returns coupling, model, inputs and targets; unit 2 of the first layer is dead."""
    model, x = {"conv": (Conv(), _random(5, 3, 6, 6)), "mlp": (Mlp(), _random(9, 7))}[name]
    coupling = prepared(model, (x,))[1]
    with torch.no_grad():
        model.a.weight[2], model.a.bias[2] = 0, -1
    return coupling, model, x, torch.arange(len(x)) % 4


def _inputs(x: Tensor, y: Tensor) -> PlainInputs:
    return PlainInputs([(x[:2],), (x[2:],)], [y[:2], y[2:]])


def _ranked(coupling: Coupling, raw: dict[str, Tensor], *, read: bool) -> dict[str, Tensor]:
    """Returns what the scorer must give, from plain scores of groups with one maker and one reader."""
    shares = {name: s / s.sum() for name, s in raw.items()}
    return remaining_share(shares, layers_that(Context(coupling, PlainInputs(())), read=read))


def _same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.detach().double(), rtol=1e-7, atol=1e-9)


# -- formulas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_taylor_is_the_mean_of_activation_times_gradient(name: str) -> None:
    coupling, model, x, y = _built(name)
    a = model.first(x)
    b = model.second(a)
    loss = F.cross_entropy(model.last(b), y, reduction="sum")
    expected = {}
    for layer, value in (("a", a), ("b", b)):
        (gradient,) = torch.autograd.grad(loss, value, retain_graph=True)
        change = (value * gradient).flatten(2).sum(2) if value.dim() > 2 else value * gradient
        expected[layer] = change.abs().mean(0)
    found = score(coupling, _inputs(x, y), Taylor(normalise=False))
    _same(found, expected)
    assert found["a"].argmin() == 2 and found["a"][2] == 0
    _same(score(coupling, _inputs(x, y), "taylor"), {k: v / v.norm() for k, v in expected.items()})


def test_taylor_needs_targets() -> None:
    coupling, _, x, _ = _built("mlp")
    with pytest.raises(CalibrationError, match="'taylor' needs targets"):
        score(coupling, [(x,)], "taylor")


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_fpgm_is_the_sum_of_distances(name: str) -> None:
    coupling, model, _, _ = _built(name)
    expected = {}
    for layer in ("a", "b"):
        filters = getattr(model, layer).weight.detach()
        sums = [sum(float((f - g).square().sum() ** 0.5) for g in filters) for f in filters]
        expected[layer] = torch.tensor(sums, dtype=torch.float64)
    _same(score(coupling, [], "fpgm"), _ranked(coupling, expected, read=True))


def test_fpgm_compares_units_with_several_rows() -> None:
    coupling = prepared(Attention(), (_random(2, 5, 8),))[1]
    weight = dict(coupling.captured.model.named_parameters())["qkv.weight"].detach()
    heads = weight.unflatten(0, (3, 2, 4)).transpose(0, 1).flatten(1)  # q, k and v of each of two heads
    name = next(g.name for g in coupling.groups if g.kind == "head")
    found = score(coupling, [], "fpgm")[name]
    assert found[0] > 0
    both = distances(heads, 1 << 20)
    torch.testing.assert_close(both, (heads[0] - heads[1]).norm().expand(2))
    with torch.no_grad():
        weight.unflatten(0, (3, 2, 4))[:, 1] = weight.unflatten(0, (3, 2, 4))[:, 0].clone()
    assert torch.equal(score(coupling, [], "fpgm")[name], torch.zeros(2, dtype=torch.float64))


def test_fpgm_takes_filters_that_most_others_equal_first() -> None:
    coupling, model, _, _ = _built("conv")
    with torch.no_grad():
        model.a.weight[:] = _random(*model.a.weight.shape)
        model.a.weight[[1, 4, 5]] = model.a.weight[0].clone()
    assert set(score(coupling, [], "fpgm")["a"].argsort()[:4].tolist()) == {0, 1, 4, 5}


@pytest.mark.parametrize("limit", [1, 1 << 12, 1 << 30])
def test_distances_do_not_depend_on_the_memory_limit(limit: int) -> None:
    filters = _random(30, 20) + 100
    expected = (filters[:, None] - filters).norm(dim=2).sum(1)
    torch.testing.assert_close(distances(filters, limit), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_hrank_is_the_mean_rank_of_the_maps(name: str) -> None:
    coupling, model, x, y = _built(name)
    a = model.first(x).detach()
    expected = {}
    for layer, value in (("a", a), ("b", model.second(a).detach())):
        maps = value if value.dim() > 2 else value[:, :, None, None]
        ranks = [[int(torch.linalg.matrix_rank(m)) for m in sample] for sample in maps]
        expected[layer] = torch.tensor(ranks, dtype=torch.float64).mean(0)
    found = score(coupling, _inputs(x, y), "hrank")
    _same(found, _ranked(coupling, expected, read=False))
    assert found["a"].argmin() == 2 and found["a"][2] == 0
    assert len(set(expected["b"].tolist())) > 1


def test_hrank_of_a_head_is_that_of_tokens_by_dimensions() -> None:
    x = _random(3, 5, 8)
    coupling = prepared(Attention(), (x,))[1]
    name = next(g.name for g in coupling.groups if g.kind == "head")
    weight = dict(coupling.captured.model.named_parameters())["qkv.weight"]
    bias = dict(coupling.captured.model.named_parameters())["qkv.bias"]
    with torch.no_grad():  # the second head's values are two numbers a token, each given twice
        weight[22:24], bias[22:24] = weight[20:22].clone(), bias[20:22].clone()
    found = score(coupling, [(x,)], "hrank")[name]
    torch.testing.assert_close(found[1] / found[0], torch.tensor(2 / 6, dtype=torch.float64))  # LAMP: 2/6, 4/4


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_chip_is_the_change_of_the_nuclear_norm(name: str) -> None:
    coupling, model, x, y = _built(name)
    a = model.first(x).detach()
    expected = {}
    for layer, value in (("a", a), ("b", model.second(a).detach())):
        change = torch.zeros(value.shape[1], dtype=torch.float64)
        for sample in value.reshape(*value.shape[:2], -1):
            for unit in range(len(sample)):
                masked = sample.clone()
                masked[unit] = 0
                norms = [torch.linalg.matrix_norm(m, "nuc") for m in (sample, masked)]
                change[unit] += (norms[0] - norms[1]).abs()
        expected[layer] = change / len(value)
    found = score(coupling, _inputs(x, y), ChannelIndependence(samples=100))
    _same(found, _ranked(coupling, expected, read=False))
    assert found["a"][2] == 0


@pytest.mark.parametrize("shape", [(7, 30), (30, 7)])
@pytest.mark.parametrize("limit", [1, 1 << 30])
def test_nuclear_norms_with_several_rows_zeroed(shape: tuple[int, int], limit: int) -> None:
    matrix = _random(*shape)
    rows = [torch.tensor([0]), torch.tensor([1, 4]), torch.arange(7)]
    expected = []
    for chosen in rows:
        left = matrix.clone()
        left[chosen] = 0
        norms = [torch.linalg.matrix_norm(m, "nuc") for m in (matrix, left)]
        expected.append(norms[0] - norms[1])
    torch.testing.assert_close(norm_changes(matrix, rows, limit), torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_no_more_samples_than_asked_for() -> None:
    coupling, _, x, _ = _built("conv")
    for scorer in (FeatureRank, ChannelIndependence):
        found = score(coupling, [(x[:2],), (x[2:],)], scorer(samples=3))
        _same(found, score(coupling, [(x[:3],)], scorer()))
        assert not torch.equal(found["a"], score(coupling, [(x,)], scorer(samples=5))["a"])


def test_what_is_not_finite_is_refused() -> None:
    coupling, _, x, _ = _built("mlp")
    with pytest.raises(ScorerError, match=r"'hrank' expects finite activations, got NaN"):
        score(coupling, [(x * float("inf"),)], "hrank")


def _propagated(coupling: Coupling, raw: dict[str, Tensor]) -> dict[str, Tensor]:
    context = Context(coupling, PlainInputs(()))
    read, made = layers_that(context, read=True), layers_that(context, read=False)
    return remaining_share({k: v / v.sum() for k, v in raw.items()}, {k: read[k] + made[k] - 1 for k in raw})


@pytest.mark.parametrize("name", ["conv", "mlp"])
def test_nisp_propagates_through_absolute_weights(name: str) -> None:
    coupling, model, _, _ = _built(name)
    last, middle = model.c.weight.detach().abs().sum(0), model.b.weight.detach().abs()
    b = last.reshape(5, -1).sum(1)
    a = torch.stack([sum(middle[o, i].sum() * b[o] for o in range(5)) for i in range(6)])  # type: ignore[misc]
    _same(score(coupling, [], "nisp"), _propagated(coupling, {"a": a, "b": b}))


def test_nisp_of_a_residual_channel_is_the_sum_over_its_readers() -> None:
    model = Fn(
        lambda m, x: m.d((h := m.a(x)) + m.c(m.b(h).relu())),
        a=nn.Linear(5, 6), b=nn.Linear(6, 4), c=nn.Linear(4, 6), d=nn.Linear(6, 3),
    )  # fmt: skip
    coupling = prepared(model, (_random(4, 5),))[1]
    b, c, d = (layer.weight.detach().abs() for layer in (model.b, model.c, model.d))
    behind = d.sum(0)  # what c adds is read by d alone
    inner = c.T @ behind
    _same(score(coupling, [], "nisp"), _propagated(coupling, {"a": behind + b.T @ inner, "b": inner}))


class Stream(nn.Module):
    """Grouped, transposed and depthwise convolutions around a skip; linear, for sizes and kernels of one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 12, 1, groups=2, bias=False)
        self.c = nn.ConvTranspose2d(12, 8, 1, groups=4, bias=False)
        self.depth, self.up = nn.Conv2d(8, 8, 1, groups=8, bias=False), nn.Conv2d(8, 5, 1, bias=False)
        self.down, self.last = nn.ConvTranspose2d(5, 8, 1, bias=False), nn.Conv2d(8, 2, 1, bias=False)

    def forward(self, x: Tensor, read: Callable[[str, Tensor], Tensor] = lambda _, value: value) -> Tensor:
        x = self.b(read("a", self.a(x)))
        x = self.c(read("b", x))
        x = x + self.down(read("up", self.up(read("c", self.depth(read("c", x))))))
        return self.last(read("c", x))


def test_nisp_through_groups_transposed_and_depthwise_convolutions() -> None:
    model, x = Stream(), _random(2, 3, 1, 1)
    coupling = prepared(model, (x,))[1]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()  # then the importance of what is read is the gradient of the outputs' sum
    reads: list[tuple[str, Tensor]] = []

    def read(maker: str, value: Tensor) -> Tensor:
        reads.append((maker, value * 1))
        return reads[-1][1]

    gradients = torch.autograd.grad(model(x[:1], read).sum(), [value for _, value in reads])
    labels = {a.tensor: a.labels for a in coupling.axes if a.makes and a.dim == 0}
    labels["c.weight"] = labels["depth.weight"]
    total = torch.zeros(len(coupling.channels), dtype=torch.float64)
    for (maker, _), gradient in zip(reads, gradients, strict=True):
        for row, value in zip(labels[f"{maker}.weight"], gradient.flatten(), strict=True):
            for label in row:
                total[label] += value
    raw = {g.name: total[coupling.units[g.units]] for g in coupling.groups}
    assert len(raw) >= 4 and all(value.min() > 0 for value in raw.values())
    _same(score(coupling, [], "nisp"), _propagated(coupling, raw))


def test_nisp_of_attention() -> None:
    coupling = prepared(Attention(), (_random(2, 5, 8),))[1]
    weights = dict(coupling.captured.model.named_parameters())
    values = weights["out.weight"].detach().abs().T @ weights["head.weight"].detach().abs().sum(0)
    found = score(coupling, [], "nisp")
    (group,) = (g for g in coupling.groups if g.kind == "head")
    expected = _propagated(coupling, {group.name: values.reshape(2, 4).sum(1)})
    torch.testing.assert_close(found[group.name], expected[group.name])
    query, value = (g.name for g in coupling.groups if g.kind == "head_dim")
    expected = _propagated(coupling, {query: torch.ones(4).double(), value: values.reshape(2, 4).sum(0)})
    torch.testing.assert_close(found[value], expected[value])
    torch.testing.assert_close(found[query], expected[query])  # no weight reads them: they share their heads'


def test_nisp_does_not_overflow() -> None:
    coupling = small.linear(4, *[4] * 40, 2)
    with torch.no_grad():
        for parameter in coupling.captured.model.parameters():
            parameter.mul_(1e12)
    assert all(torch.isfinite(s).all() and s.min() > 0 for s in score(coupling, [], "nisp").values())


def test_bn_scale_is_the_mean_of_the_scales() -> None:
    model = Fn(
        lambda m, x: m.c((m.na(m.a(x)) + m.nb(m.b(x))).relu()) + m.e(m.d(x)),
        a=nn.Conv2d(3, 4, 1), na=nn.BatchNorm2d(4), b=nn.Conv2d(3, 4, 1), nb=nn.BatchNorm2d(4),
        c=nn.Conv2d(4, 2, 1), d=nn.Conv2d(3, 5, 1), e=nn.Conv2d(5, 2, 1),
    )  # fmt: skip
    coupling = prepared(model, (_random(2, 3, 4, 4),))[1]
    with torch.no_grad():
        model.na.weight[1] *= -1
    mean = (model.na.weight.abs() + model.nb.weight.abs()).detach() / 2
    _same(score(coupling, [], "bn_scale"), {"a": mean, "d": mean.max().expand(5)})


def test_bn_scale_without_batch_norm() -> None:
    with pytest.raises(ScorerError, match=r"expects batch norms .* use another method"):
        score(small.linear(4, 6, 2), [], "bn_scale")


# -- all of them --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_and_zero_weights(method: str, dtype: torch.dtype) -> None:
    model = Conv().to(dtype).eval()
    captured = fxprune.capture(model, (_random(5, 3, 6, 6).to(dtype),))
    coupling = fxprune.couple(captured)
    with torch.no_grad():
        model.b.weight.zero_()
        model.norm.weight[1:] = 0
    inputs = PlainInputs([(_random(5, 3, 6, 6).to(dtype),)], [torch.arange(5) % 4])
    found = score(coupling, inputs, method)
    assert all(torch.isfinite(s).all() and (s >= 0).all() for s in found.values())
    assert len(found["a"]) == 6 and (method in ("nisp", "taylor") or float(found["a"].max()) > 0)


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("name", small.NETWORKS)
def test_every_unit_of_every_group_gets_a_finite_score(name: str, method: str) -> None:
    coupling, flat = small.network(name), small.example(name)

    def loss(outputs: Any, targets: Tensor) -> Tensor:
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        return (first.flatten(1).sum(1) * targets).mean()

    targets = torch.linspace(-1, 1, len(flat[0]), dtype=torch.float64)
    if method == "bn_scale" and name != "residual":
        with pytest.raises(ScorerError, match="expects batch norms"):
            score(coupling, [flat], method)
        return
    found = score(coupling, PlainInputs([flat], [targets]), method, loss=loss)
    assert {name: len(s) for name, s in found.items()} == {g.name: len(g.units) for g in coupling.groups}
    assert all(torch.isfinite(s).all() and (s >= 0).all() for s in found.values())


def _image() -> tuple[nn.Module, Tensor]:
    return torchvision.models.resnet18(num_classes=10), torch.randn(4, 3, 32, 32)


def _tokens() -> tuple[nn.Module, Tensor]:
    return Fn(lambda m, x: m.body(x).mean(1), body=Attention()), torch.randn(4, 5, 8)


#: What says clearly that it has nothing to go by, or too little to prune, in these networks.
REFUSED = {
    ("bn_scale", _tokens): (ScorerError, "expects batch norms"),
    ("vbp", _image): (NothingToPruneError, "hidden units of an MLP"),  # it prunes MLPs alone
    ("vbp", _tokens): (BudgetError, "cannot be reached"),
}


#: Takes minutes for a network of resnet18's width.
SLOW = {("joint", _image)}
CASES = [(method, build) for method in METHODS for build in (_image, _tokens) if (method, build) not in SLOW]


@pytest.mark.parametrize(("method", "build"), CASES)
def test_every_method_compiles(method: str, build: Callable[[], tuple[nn.Module, Tensor]]) -> None:
    torch.manual_seed(0)
    model, x = build()
    randomise(model.eval(), 0, (x,))
    data = [(x, torch.tensor([0, 1, 2, 1]))]
    if (method, build) in REFUSED:
        error, message = REFUSED[method, build]
        with pytest.raises(error, match=message):
            fxprune.compile(model, data, 0.6, method=method, progress=False)
        return
    pruned = fxprune.compile(model, data, 0.6, method=method, recover=None, progress=False)
    kept = sum(p.numel() for p in pruned.parameters()) / sum(p.numel() for p in model.parameters())
    assert fxprune.report(pruned).verified is True
    assert 0.3 < kept <= 0.6
