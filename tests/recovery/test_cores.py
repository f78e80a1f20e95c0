"""Factors for units of queries, where rotary positions forbid another basis: against least squares without us."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.coupling.selection import Selection
from fxprune.recovery.cores import refitted
from fxprune.recovery.protocol import RecoveryContext
from tests.models.fn import Fn

HEADS, WIDTH = 2, 8
HALF = WIDTH // 2


def turned(y: Tensor) -> Tensor:
    """Rotates pairs of channels by the position, as in LLaMA; positions lie next to last."""
    speed = torch.logspace(0, -1, HALF, dtype=y.dtype).repeat(2)
    angle = torch.arange(y.shape[-2], dtype=y.dtype)[:, None] * speed
    return y * angle.cos() + torch.cat([-y[..., HALF:], y[..., :HALF]], -1) * angle.sin()


def apart(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, WIDTH)).transpose(1, 2)


def attend(m: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    k, v = (y.repeat_interleave(HEADS // y.shape[1], 1) for y in (k, v))
    return m.o(F.scaled_dot_product_attention(q, k, v, scale=0.4).transpose(1, 2).flatten(2))


def rotary(m: Any, x: Tensor) -> Tensor:
    return attend(m, turned(apart(m.q(x))), turned(apart(m.k(x))), apart(m.v(x)))


def written_out(m: Any, x: Tensor) -> Tensor:
    q, k, v = turned(apart(m.q(x))), turned(apart(m.k(x))), apart(m.v(x))
    return m.o(((q @ k.mT * 0.4).softmax(-1) @ v).transpose(1, 2).flatten(2))


def grouped(m: Any, x: Tensor) -> Tensor:
    return attend(m, turned(apart(m.q(x))), turned(apart(m.key(x))), apart(m.value(x)))


def fused(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, -1)
    return attend(m, turned(apart(q)), turned(apart(k)), apart(v))


def normed(m: Any, x: Tensor) -> Tensor:
    q, k = (F.rms_norm(apart(layer(x)), (WIDTH,)) for layer in (m.q, m.k))
    return attend(m, turned(q), turned(k), apart(m.v(x)))


def also_returned(m: Any, x: Tensor) -> Any:
    q, k = turned(apart(m.q(x))), turned(apart(m.k(x)))
    return attend(m, q, k, apart(m.v(x))), q.square().mean() + k.square().mean()


PARTS = {
    "qkv": lambda: nn.Linear(6, 3 * HEADS * WIDTH),
    **{name: lambda: nn.Linear(6, HEADS * WIDTH) for name in "qkv"},
    **{name: lambda: nn.Linear(6, WIDTH, bias=False) for name in ("key", "value")},
    "o": lambda: nn.Linear(HEADS * WIDTH, 5),
}


def case(forward: Callable[..., Any]) -> tuple[nn.Module, RecoveryContext]:
    """Returns a model, and the context in which the first half of all pairs goes."""
    torch.manual_seed(0)
    names = {"o", *(name for name in forward.__code__.co_names if name in PARTS)}
    model = Fn(forward, **{name: PARTS[name]() for name in sorted(names)}).double().eval()
    mix = torch.randn(6, 6, dtype=torch.float64)
    x = torch.randn(1, 20, 6, dtype=torch.float64) @ mix + 0.3
    coupling = fxprune.couple(fxprune.capture(model, (x,)))
    pairs = [
        g
        for g in coupling.groups
        if g.kind == "head_dim" and {"q", "key", "k", "qkv"} & {*g.producers} and len(g.units) == HALF
    ]
    gone = [unit for group in pairs for unit in group.units[: HALF // 2]]
    assert len(gone) == HALF // 2
    return model, RecoveryContext(Selection(coupling, coupling.removed_mask(gone)), [(x,)], ridge=1e-12)


def heads(x: Tensor, weight: Tensor, bias: Tensor | None) -> np.ndarray:
    """Returns queries or keys of one sequence as the product sees them, ``[heads, places, channels]``."""
    return turned(apart(F.linear(x, weight, bias)))[0].detach().numpy()


@pytest.mark.parametrize("forward", [rotary, written_out, grouped, fused])
def test_factors_are_least_squares(forward: Callable[..., Any]) -> None:
    model, context = case(forward)
    own = {name: p.detach() for name, p in model.named_parameters()}
    changed, reached = refitted(context, {}, set())
    assert len(reached) == 1
    stays = np.tile(np.arange(HALF) >= HALF // 2, 2)
    ((x,),) = context.inputs

    def sides(tensors: dict[str, Tensor]) -> list[np.ndarray]:
        if forward is fused:
            rows = zip(*(tensors[f"qkv.{kind}"].chunk(3) for kind in ("weight", "bias")), strict=True)
            return [heads(x, *pair) for pair in list(rows)[:2]]
        key = "key" if forward is grouped else "k"
        return [heads(x, tensors[f"{name}.weight"], tensors.get(f"{name}.bias")) for name in ("q", key)]

    (q, k), (new_q, new_k) = sides(own), sides({**own, **changed})
    assert (new_q != q).any() and (new_k == k).all()
    k = np.broadcast_to(k - k.mean(axis=1, keepdims=True), q.shape)  # a softmax over keys follows
    for head in range(HEADS):
        parts = [np.outer(q[head, :, c], np.ones(20)) * k[head, :, c] for c in range(WIDTH)]
        units = [(parts[u] + parts[u + HALF]).ravel() for u in range(HALF)]
        kept, whole = np.stack(units[HALF // 2 :], axis=1), sum(units)
        best = ((kept @ np.linalg.lstsq(kept, whole, rcond=None)[0] - whole) ** 2).sum()
        got = (((new_q[head] * stays) @ (k[head] * stays).T).ravel() - whole) ** 2
        np.testing.assert_allclose(got.sum(), best, rtol=1e-6)
        assert best < ((kept.sum(axis=1) - whole) ** 2).sum()


@pytest.mark.parametrize("forward", [normed, also_returned])
def test_what_scaling_does_not_go_through_or_what_is_read_otherwise_stays(forward: Callable[..., Any]) -> None:
    _, context = case(forward)
    assert refitted(context, {}, set()) == ({}, set())


def beside_content(m: Any, x: Tensor) -> Tensor:
    """Rotary channels and others, of layers that lose nothing, in one head."""
    q = torch.cat([turned(apart(m.q(x))), apart(m.qc(x))], -1)
    k = torch.cat([turned(apart(m.k(x))), apart(m.kc(x))], -1)
    return attend(m, q, k, apart(m.v(x)))


@pytest.mark.parametrize("unit", range(HALF))
def test_channels_of_other_layers_are_no_unit_s(unit: int) -> None:
    torch.manual_seed(0)
    names = ("q", "k", "v", "o", "qc", "kc")
    model = Fn(beside_content, **{name: PARTS[name[0]]() for name in names}).double().eval()
    x = torch.randn(2, 12, 6, dtype=torch.float64)
    coupling = fxprune.couple(fxprune.capture(model, (x,)))
    group = next(g for g in coupling.groups if g.kind == "head_dim" and "q" in g.producers)
    context = RecoveryContext(Selection(coupling, coupling.removed_mask([group.units[unit]])), [(x,)])
    assert refitted(context, {}, set()) == ({}, set())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_are_found_in_any_precision(dtype: torch.dtype) -> None:
    _, context = case(rotary)
    wanted, _ = refitted(context, {}, set())
    torch.manual_seed(0)
    model = Fn(rotary, **{name: PARTS[name]() for name in ("k", "o", "q", "v")}).to(dtype).eval()
    x = context.inputs[0][0].to(dtype)  # type: ignore[index]
    coupling = fxprune.couple(fxprune.capture(model, (x,)))
    group = next(g for g in coupling.groups if g.kind == "head_dim" and "q" in g.producers)
    selection = Selection(coupling, coupling.removed_mask(group.units[: HALF // 2]))
    changed, reached = refitted(RecoveryContext(selection, [(x,)]), {}, set())
    assert len(reached) == 1 and changed.keys() == wanted.keys()
    assert all(value.dtype == dtype and value.isfinite().all() for value in changed.values())


def test_more_than_a_thousand_units_are_told_apart() -> None:
    torch.manual_seed(0)
    heads = 300
    parts = {name: nn.Linear(6, heads * WIDTH, bias=False) for name in "qkv"}

    def wide(m: Any, x: Tensor) -> Tensor:
        q, k = turned(apart(m.q(x))), turned(apart(m.k(x)))
        return m.o(F.scaled_dot_product_attention(q, k, apart(m.v(x)), scale=0.4).transpose(1, 2).flatten(2))

    model = Fn(wide, **parts, o=nn.Linear(heads * WIDTH, 5)).eval()
    x = torch.randn(1, 5, 6)
    coupling = fxprune.couple(fxprune.capture(model, (x,)))
    group = next(g for g in coupling.groups if g.kind == "head_dim" and "q" in g.producers)
    context = RecoveryContext(Selection(coupling, coupling.removed_mask(group.units[:2])), [(x,)])
    changed, reached = refitted(context, {}, set())
    assert len(reached) == 1 and not torch.equal(changed["q.weight"], model.q.weight)


def test_a_compilation_uses_them() -> None:
    model, context = case(rotary)
    data = [x for (x,) in context.inputs]
    options: dict[str, Any] = {"ratios": 0.5, "units": ("head_dim",), "method": "l2", "progress": False}
    error = {}
    for recover in (None, "covariance"):
        pruned = fxprune.compile(model, data, recover=recover, **options)
        error[recover] = float((pruned(data[0]) - model(data[0])).detach().square().sum())
        assert pruned.certificate.verified and not pruned.report.skipped
    assert error["covariance"] < error[None] / 1.5
