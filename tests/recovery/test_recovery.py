"""What the kept weights take over from the removed channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxprune.algebra.channels import Mask
from fxprune.capturing.captured import capture
from fxprune.compiler.by_hand import recover, verify
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.recovery.moments import Moments, ridge_solve
from fxprune.recovery.sequential import find_drift
from fxprune.rewriting.emission import emit
from fxprune.rewriting.slicing import slice_graph
from tests.support.pruning import Fn, removal

TINY = 1e-10

METHODS = ("mean_shift", "covariance", "sequential", "reconstruct")


@dataclass(frozen=True, eq=False)
class Pair:
    """A producer ``a`` and a consumer ``b`` around it, with what was decided to go."""

    model: nn.Module
    coupling: Coupling
    removed: Mask
    batches: list[tuple[Tensor, ...]]

    def error(self, method: str | None, **options: Any) -> float:
        """Returns how far the recovered network is from the dense one, relative to its spread."""
        recovery = recover(self.coupling, self.removed, self.batches, method, **options)
        pruned = emit(self.coupling.captured, slice_graph(Selection(self.coupling, self.removed, recovery.tensors)))
        dense, got = (torch.cat([m(*batch) for batch in self.batches]).detach() for m in (self.model, pruned))
        assert verify(
            self.coupling, self.removed, pruned, (self.batches[0], {}), tensors=recovery.tensors
        ).verified is not False  # fmt: skip
        return float((dense - got).norm() / (dense - dense.mean(0)).norm())


def pair(
    build: Callable[[], nn.Module], shape: tuple[int, ...], prepare: Callable[[nn.Module], None],
    gone: list[int], count: int = 3,
) -> Pair:  # fmt: skip
    """Captures a model in float64; ``gone`` are coordinates of the first layer's output."""
    torch.manual_seed(0)
    model = build().double().eval()
    with torch.no_grad():
        prepare(model)
    batches = [(torch.randn(shape, dtype=torch.float64),) for _ in range(count)]
    coupling = couple(capture(model, batches[0]))
    (first,) = [a for a in coupling.axes if a.tensor == "a.weight" and a.dim == 0]
    removed = np.zeros(len(coupling.channels), bool)
    removed[first.labels[gone].ravel()] = True
    removed[0] = False
    return Pair(model, coupling, removed, batches)


def chain(a: nn.Module, b: nn.Module, norm: nn.Module | None = None) -> nn.Module:
    """``b(relu(a(x)))``, with a norm behind ``b`` if one is given."""
    tail = nn.Identity() if norm is None else norm
    return Fn(lambda m, x: m.norm(m.b(m.a(x).relu())), a=a, b=b, norm=tail)


def twice(model: nn.Module) -> None:
    """Makes the second half of the first layer's channels copies of the first half."""
    for tensor in (model.a.weight, model.a.bias):
        half = len(tensor) // 2
        tensor[half:] = tensor[:half]


def constant(model: nn.Module) -> None:
    """Makes the second half of the first layer's channels constants."""
    half = len(model.a.weight) // 2
    model.a.weight[half:] = 0
    model.a.bias[half:] = torch.rand(half, dtype=torch.float64) + 0.5


def statistics(model: nn.Module) -> None:
    """Gives the norm statistics of its own."""
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: chain(nn.Linear(5, 8), nn.Linear(8, 3)), (32, 5)),
    "tokens": (lambda: chain(nn.Linear(5, 8), nn.Linear(8, 3)), (8, 4, 5)),
    "1x1": (lambda: chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)), (4, 3, 5, 5)),
    "3x3": (lambda: chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, padding=1)), (8, 3, 6, 6)),
    "strided, dilated": (
        lambda: chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, stride=2, dilation=2, padding=(1, 2))), (9, 3, 9, 8)),
    "1d, same": (lambda: chain(nn.Conv1d(3, 8, 1), nn.Conv1d(8, 4, 3, padding="same")), (8, 3, 9)),
    "3d": (lambda: chain(nn.Conv3d(3, 8, 1), nn.Conv3d(8, 2, 2)), (8, 3, 4, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("method", ["covariance", "sequential"])
@pytest.mark.parametrize("layer", LAYERS)
def test_copies_are_taken_over_exactly(layer: str, method: str) -> None:
    case = pair(*LAYERS[layer], twice, [4, 5, 6, 7])
    assert case.error(None) > 0.1
    assert case.error(method, ridge=TINY) < 1e-6


def test_a_grouped_consumer_takes_over_within_each_group() -> None:
    def prepare(model: nn.Module) -> None:
        for tensor in (model.a.weight, model.a.bias):
            tensor[1::2] = tensor[::2]  # channels 2i and 2i + 1 are in one group

    build = lambda: chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 3, groups=2))  # noqa: E731
    case = pair(build, (8, 3, 6, 6), prepare, [1, 3, 5, 7])
    assert case.error(None) > 0.1
    assert case.error("covariance", ridge=TINY) < 1e-6
    assert case.error("sequential", ridge=TINY) < 1e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("home", ["bias", "batch norm"])
def test_constants_go_into_the_bias_or_the_running_mean(home: str, method: str) -> None:
    if home == "bias":
        case = pair(*LAYERS["1x1"], constant, [4, 5, 6, 7])
    else:
        build = lambda: chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4))  # noqa: E731
        both = lambda model: (constant(model), statistics(model))  # noqa: E731
        case = pair(build, (4, 3, 5, 5), both, [4, 5, 6, 7])
    assert case.error(None) > 0.1
    assert case.error(method, ridge=TINY) < 1e-9


def test_a_shift_without_a_home_is_skipped_and_named() -> None:
    case = pair(lambda: chain(nn.Linear(5, 8), nn.Linear(8, 3, bias=False)), (32, 5), constant, [4, 5, 6, 7])
    recovery = recover(case.coupling, case.removed, case.batches, "mean_shift")
    assert recovery.skipped == ("b.weight: no bias or batch norm takes its shift",)
    assert torch.equal(recovery.tensors["b.weight"], case.model.b.weight)
    assert case.error("covariance") < case.error(None)  # what is kept carries some of the constant


def test_mean_shift_is_the_formula() -> None:
    case = pair(*LAYERS["linear"], lambda _: None, [1, 6])
    hidden = torch.cat([case.model.a(*batch).relu() for batch in case.batches])
    weight = case.model.b.weight
    want = case.model.b.bias + weight[:, [1, 6]] @ hidden.mean(0)[[1, 6]]
    recovery = recover(case.coupling, case.removed, case.batches, "mean_shift")
    assert torch.allclose(recovery.tensors["b.bias"], want, rtol=1e-12)
    assert torch.equal(recovery.tensors["b.weight"], weight)


def test_covariance_is_the_formula() -> None:
    case = pair(*LAYERS["linear"], lambda _: None, [1, 6])
    hidden = torch.cat([case.model.a(*batch).relu() for batch in case.batches]).detach()
    weight, bias = case.model.b.weight.detach(), case.model.b.bias.detach()
    kept, gone = [0, 2, 3, 4, 5, 7], [1, 6]
    mean = hidden.mean(0)
    c = (hidden - mean).T @ (hidden - mean)
    ridge = 0.03
    damped = c[kept][:, kept] + ridge * c[kept][:, kept].diagonal().mean() * torch.eye(6, dtype=torch.float64)
    b = c[gone][:, kept] @ torch.linalg.inv(damped)
    recovery = recover(case.coupling, case.removed, case.batches, "covariance", ridge=ridge)
    new = recovery.tensors["b.weight"]
    assert torch.allclose(new[:, kept], weight[:, kept] + weight[:, gone] @ b, rtol=1e-9)
    shift = weight[:, gone] @ (mean[gone] - b @ mean[kept])
    assert torch.allclose(recovery.tensors["b.bias"], bias + shift, rtol=1e-9)


def test_methods_do_better_in_the_order_of_what_they_know() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 6, 3, padding=1))
                for _ in range(4)
            )

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in self.blocks:
                x = x + block(x)
            return x

    torch.manual_seed(0)
    model = Residual().double().eval()
    batches = [(torch.randn(8, 3, 8, 8, dtype=torch.float64),) for _ in range(4)]
    coupling = couple(capture(model, batches[0]))
    case = Pair(model, coupling, removal(coupling, 0, 0.4), batches)
    errors = [case.error(method, ridge=1e-6) for method in (None, *METHODS)]
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.9 * errors[2], errors


def test_drift_is_the_other_operand_of_the_addition_behind_a_layer() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.conv(x))
        return (x + y).relu() + m.other(x) * 2

    parts = {"conv": nn.Conv2d(3, 3, 1, bias=False), "norm": nn.BatchNorm2d(3), "other": nn.Conv2d(3, 3, 1)}
    captured = capture(Fn(forward, **parts).eval(), (torch.randn(2, 3, 4, 4),))
    nodes = {n.args[1].target: n for n in captured.module.graph.nodes if n.target is torch.ops.aten.conv2d.default}
    drift = find_drift(nodes["conv.weight"])
    assert drift is not None and drift.skip.op == "placeholder"
    assert drift.norm is not None and drift.norm.target is torch.ops.aten.batch_norm.default
    assert find_drift(nodes["other.weight"]) is None  # it is scaled before it is added


@pytest.mark.parametrize("method", ["covariance", "sequential"])
def test_less_memory_gives_the_same_or_blocks_of_it(method: str) -> None:
    case = pair(*LAYERS["linear"], lambda _: None, [1, 6], count=4)
    rich, poor = (
        recover(case.coupling, case.removed, case.batches, method, memory_limit=limit).tensors
        for limit in (1 << 30, 4096)
    )
    assert all(torch.allclose(rich[name], poor[name], rtol=1e-9) for name in rich)
    starved = case.error("covariance", memory_limit=600)  # two blocks of columns, each for itself
    assert case.error("covariance") < starved < case.error("mean_shift")


@pytest.mark.parametrize(
    ("model", "shape", "note"),
    [
        (lambda: chain(nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 3, 2)), (4, 3, 4, 4), "no compensation for aten.conv_t"),
        (lambda: Fn(lambda m, x: m.b(m.a(x)) + m.b(m.a(x).relu()), a=nn.Linear(5, 8), b=nn.Linear(8, 3)), (4, 5), "used more"),
        (lambda: chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)), (4, 3, 4, 4), None),
    ],
)  # fmt: skip
def test_what_cannot_take_over_stays_and_says_so(model: Any, shape: tuple[int, ...], note: str | None) -> None:
    case = pair(model, shape, lambda _: None, [])
    removed = removal(case.coupling, 0, 0.5)
    assert removed.any()
    recovery = recover(case.coupling, removed, case.batches, "covariance")
    assert "b.weight" not in recovery.tensors
    assert any(note in text for text in recovery.skipped) if note else not recovery.skipped


def test_nothing_removed_changes_nothing_and_the_model_is_never_touched() -> None:
    case = pair(*LAYERS["3x3"], twice, [4, 5])
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    for method in METHODS:
        recover(case.coupling, case.removed, case.batches, method)
        assert not recover(case.coupling, case.removed & False, case.batches, method).tensors
    assert all(torch.equal(tensor, before[name]) for name, tensor in case.model.state_dict().items())


def test_unusable_arguments() -> None:
    case = pair(*LAYERS["linear"], twice, [4])
    with pytest.raises(ValueError, match="one of mean_shift, covariance, sequential, reconstruct"):
        recover(case.coupling, case.removed, case.batches, "magic")
    for ridge in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="ridge must be a positive share"):
            recover(case.coupling, case.removed, case.batches, "covariance", ridge=ridge)


def test_moments_do_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    x, t = torch.randn(60, 2, 5, dtype=torch.float64) + 100, torch.randn(60, 2, 3, dtype=torch.float64)
    whole, parts = Moments(), Moments()
    whole.add(x, t)
    for a, b in ((0, 1), (1, 20), (20, 20), (20, 60)):
        parts.add(x[a:b], t[a:b])
    for name in ("count", "mean_x", "mean_t", "xx", "tx"):
        assert torch.allclose(torch.as_tensor(getattr(whole, name)), torch.as_tensor(getattr(parts, name)), rtol=1e-9)
    assert torch.allclose(whole.xx[0] / 60, x[:, 0].T.cov(correction=0), rtol=1e-9)
    whole.raw()
    assert torch.allclose(whole.xx[1], x[:, 1].T @ x[:, 1], rtol=1e-12)


def test_a_ridge_holds_where_the_covariance_does_not() -> None:
    gram = torch.ones(3, 3, dtype=torch.float64)  # rank one
    gain = ridge_solve(gram, torch.ones(2, 3, dtype=torch.float64), 1e-6)
    assert torch.allclose(gain, torch.full((2, 3), 1 / 3, dtype=torch.float64), atol=1e-6)
    assert not ridge_solve(torch.zeros(3, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64), 1e-6).any()


def test_reconstruct_teaches_the_layers_before_as_well() -> None:
    """A kept unit of ``a`` can move towards a removed one only if ``a`` itself learns."""
    build = lambda: chain(nn.Linear(6, 8), nn.Linear(8, 5))  # noqa: E731
    case = pair(build, (64, 6), lambda model: None, [5, 6, 7], count=16)
    found = recover(case.coupling, case.removed, case.batches, "reconstruct")
    before = recover(case.coupling, case.removed, case.batches, "sequential")
    assert "a.weight" in found.tensors and "a.weight" not in before.tensors
    assert case.error("reconstruct") < case.error("sequential")


def test_reconstruct_takes_as_many_steps_from_one_large_batch() -> None:
    build = lambda: chain(nn.Linear(6, 8), nn.Linear(8, 5))  # noqa: E731
    case = pair(build, (512, 6), lambda model: None, [5, 6, 7], count=1)
    whole = recover(case.coupling, case.removed, case.batches, "reconstruct").tensors
    parts = [(x,) for x in case.batches[0][0].split(32)]
    small = recover(case.coupling, case.removed, parts, "reconstruct").tensors
    assert case.error("reconstruct") < case.error("sequential")
    assert all(torch.allclose(whole[name], small[name]) for name in small)


def test_reconstruct_keeps_what_it_started_from_where_held_out_batches_do_not_gain() -> None:
    """Seven batches of one function and one of its inputs' negatives, which is held out: nothing learnt helps there."""
    build = lambda: chain(nn.Linear(6, 8), nn.Linear(8, 5))  # noqa: E731
    case = pair(build, (32, 6), lambda model: None, [5, 6, 7], count=8)
    with torch.no_grad():
        case.batches[:7] = [(x.abs() * 10,) for (x,) in case.batches[:7]]
        case.batches[7] = (-case.batches[7][0].abs(),)
    found = recover(case.coupling, case.removed, case.batches, "reconstruct").tensors
    before = recover(case.coupling, case.removed, case.batches, "sequential").tensors
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], before[name]) for name in before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reconstruct_leaves_gradients_and_precision_alone(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = chain(nn.Linear(6, 8), nn.Linear(8, 5)).to(dtype).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [(torch.randn(32, 6, dtype=dtype),) for _ in range(3)]
    coupling = couple(capture(model, batches[0]))
    removed = np.zeros(len(coupling.channels), bool)
    removed[coupling.units[:3]] = True
    found = recover(coupling, removed, batches, "reconstruct").tensors
    assert all(value.dtype == dtype and not value.requires_grad for value in found.values())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_reconstruct_goes_through_branches_that_meet_behind_a_target() -> None:
    """The value before both branches is read again behind the first branch's sum: its part of the graph is gone then."""

    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.a(x).relu()
        y = x + m.b(h)
        return y + m.c(h * 2) + m.b2(m.a2(y).relu())

    layers = {
        "a": nn.Linear(6, 8),
        "b": nn.Linear(8, 6),
        "c": nn.Linear(8, 6),
        "a2": nn.Linear(6, 8),
        "b2": nn.Linear(8, 6),
    }
    case = pair(lambda: Fn(forward, **layers), (64, 6), lambda model: None, [5, 6, 7], count=16)
    assert case.error("reconstruct") <= case.error("sequential") + 1e-12
