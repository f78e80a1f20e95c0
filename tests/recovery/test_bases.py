"""Attention in closed form, against singular values found without us."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.compiler.by_hand import recover
from fxprune.coupling.selection import Selection
from fxprune.recovery.bases import rebased
from fxprune.recovery.protocol import RecoveryContext
from fxprune.twin.interpreter import Run
from tests.models.fn import Fn

HEADS, WIDTH = 2, 6


def apart(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, WIDTH)).transpose(1, 2)


def together(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def fused_scores(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
    return m.o(together(F.scaled_dot_product_attention(q, k, v, scale=0.4)))


def chunked(m: Any, x: Tensor) -> Tensor:
    q, k, v = (apart(y, HEADS) for y in m.qkv(x).chunk(3, -1))
    return m.o(together(F.scaled_dot_product_attention(q, k, v, scale=0.4)))


def written_out(m: Any, x: Tensor) -> Tensor:
    q, k, v = (apart(layer(x), HEADS) for layer in (m.q, m.k, m.v))
    return m.o(together((0.4 * q @ k.transpose(-1, -2) + 0.1).softmax(-1) @ v))


def keys_first(m: Any, x: Tensor) -> Tensor:
    q, k, v = (apart(layer(x), HEADS) for layer in (m.q, m.k, m.v))
    return m.o(together((v.mT @ (k @ q.mT * 0.4).softmax(-2)).mT))


def batched(m: Any, x: Tensor) -> Tensor:
    q, k, v = (apart(layer(x), HEADS).flatten(0, 1) for layer in (m.q, m.k, m.v))
    y = torch.bmm(torch.bmm(q, k.mT).div(2.5).softmax(-1), v)
    return m.o(together(y.unflatten(0, (-1, HEADS))))


def by_einsum(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (HEADS, WIDTH)) for layer in (m.q, m.k, m.v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k).mul(0.4).softmax(-1)
    return m.o(torch.einsum("bhij,bjhd->bihd", scores, v).flatten(2))


def grouped(m: Any, x: Tensor) -> Tensor:
    q, k, v = apart(m.q(x), HEADS), apart(m.key(x), 1), apart(m.value(x), 1)
    return m.o(together(F.scaled_dot_product_attention(q, k, v, scale=0.4, enable_gqa=True)))


def repeated(m: Any, x: Tensor) -> Tensor:
    q, k, v = apart(m.q(x), HEADS), apart(m.key(x), 1), apart(m.value(x), 1)
    k, v = k.repeat_interleave(HEADS, 1), v.expand(-1, HEADS, -1, -1)
    return m.o(together((q @ k.mT * 0.4).softmax(-1) @ v))


def crossed(m: Any, x: Tensor) -> Tensor:
    q, k, v = apart(m.q(x[:, :5]), HEADS), apart(m.k(x), HEADS), apart(m.v(x), HEADS)
    return m.o(together(F.scaled_dot_product_attention(q, k, v, scale=0.4)))


def over_maps(m: Any, x: Tensor) -> Tensor:
    y = x.mT.unflatten(-1, (1, -1))
    q, k, v = (layer(y).flatten(2).unflatten(1, (HEADS, WIDTH)) for layer in (m.cq, m.ck, m.cv))
    y = v @ (q.mT @ k).mul(0.4).softmax(-1).mT
    return m.co(y.flatten(1, 2).unflatten(-1, (1, -1)))


def two_layers(m: Any, x: Tensor) -> Tensor:
    return m.o(m.v(x))


WAYS = {
    way.__name__: way
    for way in (
        fused_scores,
        chunked,
        written_out,
        keys_first,
        batched,
        by_einsum,
        grouped,
        repeated,
        crossed,
        over_maps,
        two_layers,
    )
}
PARTS = {
    "qkv": lambda: nn.Linear(8, 3 * HEADS * WIDTH),
    **{name: lambda: nn.Linear(8, HEADS * WIDTH) for name in "qkv"},
    **{name: lambda: nn.Linear(8, WIDTH, bias=False) for name in ("key", "value")},
    "o": lambda: nn.Linear(HEADS * WIDTH, 9),
    **{f"c{name}": lambda: nn.Conv2d(8, HEADS * WIDTH, 1) for name in "qkv"},
    "co": lambda: nn.Conv2d(HEADS * WIDTH, 5, 1),
}


def model_of(way: str) -> nn.Module:
    torch.manual_seed(0)
    names = {name for name in WAYS[way].__code__.co_names if name in PARTS}
    return Fn(WAYS[way], **{name: PARTS[name]() for name in sorted(names)}).double().eval()


def batches(count: int = 3, size: int = 4, length: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    return [
        torch.randn(size, length, 8, generator=generator, dtype=torch.float64) @ mix / 3 + 0.3 for _ in range(count)
    ]


def without_half(model: nn.Module, data: list[Tensor], heads: bool = False) -> RecoveryContext:
    """Returns the context in which the first half of every head's channels goes, and of the heads."""
    sizes = {"dynamic_shapes": {}} if heads else {}  # free ones take long to capture
    coupling = fxprune.couple(fxprune.capture(model, (data[0],), **sizes))
    groups = [group for group in coupling.groups if heads or group.kind != "head"]
    gone = [unit for group in groups for unit in group.units[: len(group.units) // 2]]
    return RecoveryContext(Selection(coupling, coupling.removed_mask(gone)), [(x,) for x in data])


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_the_model_stays_the_same(way: str, heads: bool) -> None:
    model, data = model_of(way), batches()
    context = without_half(model, data, heads)
    changed, done = rebased(context)
    assert len(done) == (way != "two_layers")
    (got,) = Run(Selection.nothing(context.selection.coupling, changed))((data[-1],))
    torch.testing.assert_close(got, model(data[-1]), rtol=1e-9, atol=1e-9)
    same = [name for name, value in model.state_dict().items() if torch.equal(changed.get(name, value), value)]
    assert same == [name for name in model.state_dict() if name in ("o.bias", "co.bias")]


def logits(way: str, tensors: dict[str, Tensor], x: Tensor) -> list[np.ndarray]:
    """Returns the logits of each head of queries over one sequence, their mean over keys taken off, ``[queries, keys]``."""
    parts = ("q", "key" if "key.weight" in tensors else "k")
    q, k = ((x[0] @ tensors[f"{n}.weight"].T + tensors.get(f"{n}.bias", 0)).unflatten(-1, (-1, WIDTH)) for n in parts)
    q = q[:5] if way == "crossed" else q
    found = torch.einsum("ihd,jhd->hij", q, k.expand(-1, q.shape[1], -1) if k.shape[1] == 1 else k)
    return list((found - found.mean(-1, keepdim=True)).numpy())


@pytest.mark.parametrize("way", ["written_out", "crossed", "batched", "keys_first", "grouped", "repeated"])
def test_the_error_of_logits_is_the_least_that_so_many_channels_allow(way: str) -> None:
    model, data = model_of(way), batches(1, size=1, length=20)
    context = without_half(model, data)
    found = recover(context.selection.coupling, context.selection.removed, context.inputs, "covariance")
    tensors = {**{n: p.detach() for n, p in model.named_parameters()}, **found.tensors}
    dense = logits(way, {n: p.detach() for n, p in model.named_parameters()}, data[0])
    without = {n: x.clone() for n, x in tensors.items()}
    for name in ("q.weight", "q.bias"):
        without[name].unflatten(0, (HEADS, WIDTH))[:, : WIDTH // 2] = 0
    pruned = logits(way, without, data[0])
    shared = way in ("grouped", "repeated")
    if shared:
        dense, pruned = [np.concatenate(dense)], [np.concatenate(pruned)]
    for whole, rest in zip(dense, pruned, strict=True):
        least = (np.linalg.svd(whole.astype(np.float64), compute_uv=False)[WIDTH // 2 :] ** 2).sum()
        np.testing.assert_allclose(((whole - rest) ** 2).sum(), least, rtol=1e-4)


def test_the_error_behind_values_is_the_least_that_so_many_channels_allow() -> None:
    model, data = model_of("two_layers"), batches()
    context = without_half(model, data)
    found = recover(context.selection.coupling, context.selection.removed, context.inputs, "covariance", ridge=1e-9)
    pruned = fxprune.rewrite(context.selection.coupling, context.selection.removed, found.tensors)
    wanted, got = (torch.cat([f(x) for x in data]).flatten(0, 1).detach() for f in (model, lambda x: pruned(x)[0]))
    centred = (wanted - wanted.mean(0)).numpy()
    least = (np.linalg.svd(centred, compute_uv=False)[HEADS * WIDTH // 2 :] ** 2).sum()
    np.testing.assert_allclose(float((wanted - got).square().sum()), least, rtol=1e-4)


def also_read(m: Any, x: Tensor) -> Tensor:
    q, k, v = (apart(layer(x), HEADS) for layer in (m.q, m.k, m.v))
    y = m.o(together(F.scaled_dot_product_attention(q, k, v, scale=0.4)))
    return y + q.square().mean() + k.square().mean() + v.amax()


def heads_attend_to_heads(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (HEADS, WIDTH)) for layer in (m.q, m.k, m.v))
    return m.o(F.scaled_dot_product_attention(q, k, v, scale=0.4).flatten(2))


def one_attention_for_all_heads(m: Any, x: Tensor) -> Tensor:
    q, k, v = (layer(x).unflatten(-1, (HEADS, WIDTH)) for layer in (m.q, m.k, m.v))
    weights = torch.einsum("bihd,bjhd->bij", q, k).softmax(-1)
    return m.o(torch.einsum("bij,bjhd->bihd", weights, v).flatten(2))


def with_a_bias_inside(m: Any, x: Tensor) -> Tensor:
    q, k, v = (apart(layer(x), HEADS).flatten(0, 1) for layer in (m.q, m.k, m.v))
    weights = torch.baddbmm(torch.ones_like(q[..., :1]), q, k.mT, beta=0.5, alpha=0.4).softmax(-1)
    return m.o(together((weights @ v).unflatten(0, (-1, HEADS))))


def rounded(m: Any, x: Tensor) -> Tensor:
    return m.o((m.v(x) * 4).to(torch.int32).to(x.dtype))


def without_a_batch(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x.flatten(0, 1).mT).mT
    return m.end(y)


def channel_overwritten(m: Any, x: Tensor) -> Tensor:
    q, k, v = (apart(layer(x), HEADS) for layer in (m.q, m.k, m.v))
    k[..., 2] = 0.0
    return m.o(together((q @ k.mT).softmax(-1) @ v))


ODD = (
    heads_attend_to_heads,
    one_attention_for_all_heads,
    with_a_bias_inside,
    rounded,
    without_a_batch,
    channel_overwritten,
)


@pytest.mark.parametrize("forward", ODD)
def test_whatever_is_not_plain_attention_stays_right(forward: Any) -> None:
    torch.manual_seed(0)
    parts = {**{name: PARTS[name]() for name in "qkvo"}, "conv": nn.Conv1d(8, 6, 1), "end": nn.Linear(6, 5)}
    names = {name for name in forward.__code__.co_names if name in parts}
    model, data = Fn(forward, **{name: parts[name] for name in sorted(names)}).double().eval(), batches()
    context = without_half(model, data)
    changed, _ = rebased(context)
    (got,) = Run(Selection.nothing(context.selection.coupling, changed))((data[0],))
    torch.testing.assert_close(got, model(data[0]), rtol=1e-9, atol=1e-9)
    error = {}
    for how in (None, "covariance"):
        pruned = fxprune.compile(model, data, ratios=0.5, recover=how, method="l2", progress=False, dynamic_shapes={})
        error[how] = sum(float((pruned(x) - model(x)).detach().square().sum()) for x in data)
    assert max(error.values()) == error[None]


def test_what_is_read_otherwise_stays_in_its_basis_and_is_told() -> None:
    torch.manual_seed(0)
    model = Fn(also_read, **{name: PARTS[name]() for name in "qkvo"}).double().eval()
    assert rebased(without_half(model, batches())) == ({}, set())
    report = fxprune.report(
        fxprune.compile(model, batches(), ratios=0.5, units=("head_dim",), method="l2", progress=False)
    )
    assert report.verified and any("not made up for" in line for line in report.skipped)


def test_a_single_token_leaves_nothing_to_weigh_by() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part(x).unflatten(-1, (4, 4)).transpose(1, 2) for part in (self.q, self.k, self.v))
            return self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    pruned = fxprune.compile(Attention().eval(), [torch.randn(1, 1, 6)], 0.7, progress=False)
    assert fxprune.report(pruned).verified is not False
