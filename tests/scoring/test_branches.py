"""Branches: what they give beside the stream that they are added to, where norms read it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.scoring.engine.branches import sums_behind, weights
from tests.models.fn import Fn


def rms(x: Tensor) -> Tensor:
    return x * (x.float().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()


def branch() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


#: How a stream of eight channels is read before its branches, and after them.
NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "layer norm": lambda x: F.layer_norm(x, (8,)),
    "rms norm": lambda x: F.rms_norm(x, (8,)),
    "written out": rms,
    "by its deviation": lambda x: x / x.std(-1, keepdim=True),
}


def net(norm: Callable[[Tensor], Tensor], scale: float = 1.0) -> Any:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.stem(x)
        h = h + m.a(norm(h))
        h = h + F.dropout(scale * m.b(norm(h)), 0.1, m.training)
        return m.out(norm(h))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    return Fn(forward, stem=nn.Linear(5, 8), a=branch(), b=branch(), out=nn.Linear(8, 3)).eval()


@pytest.mark.parametrize("name", NORMS)
def test_shares_are_of_the_sum_that_norms_read(name: str) -> None:
    model, x = net(NORMS[name]), torch.randn(9, 5)
    coupling = fxprune.couple(fxprune.capture(model, (x,)))
    found = weights(coupling, coupling.contractions, (x,))
    by_layer = {str(node.meta.get("module")): share for node, share in found.items()}
    with torch.no_grad():
        h = model.stem(x)
        for part in ("a", "b"):
            given = model.get_submodule(part)(NORMS[name](h))
            h = h + given
            expected = (given.square().sum(-1) / h.square().sum(-1)).median()
            for layer in ("0", "2"):
                assert by_layer[f"{part}.{layer}"] == pytest.approx(min(float(expected), 1.0), rel=1e-4)
    assert set(by_layer) == {"a.0", "a.2", "b.0", "b.2"}


@pytest.mark.parametrize("norm", [lambda x: x, lambda x: x.relu(), lambda x: x.mean(0, keepdim=True)])
def test_sums_that_nothing_normalises_do_not_count(norm: Callable[[Tensor], Tensor]) -> None:
    coupling = fxprune.couple(fxprune.capture(net(norm), (torch.randn(9, 5),)))
    assert sums_behind(coupling, coupling.contractions) == {}


def test_batch_norms_do_not_normalise_in_an_evaluation() -> None:
    from torchvision.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5).eval()
    coupling = fxprune.couple(fxprune.capture(model, (torch.randn(2, 3, 32, 32),)))
    assert sums_behind(coupling, coupling.contractions) == {}


@pytest.mark.parametrize("name", ["layer norm", "written out"])
def test_a_branch_that_gives_little_loses_more(name: str) -> None:
    data = [torch.randn(64, 5) for _ in range(3)]
    alike, small = (
        fxprune.compile(net(NORMS[name], scale), data, 0.8, ignore=("stem", "a.2", "b.2"), progress=False)
        for scale in (1.0, 0.03)
    )
    kept = [
        [fxprune.report(p).plan.keep.get(f"{part}.0.weight", {0: range(16)}) for part in "ab"] for p in (alike, small)
    ]  # type: ignore[union-attr]
    (a, b), (a_small, b_small) = [[len(axes[0]) for axes in each] for each in kept]
    assert b_small < a_small and b_small < b and a_small > a


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    logits = q @ k.mT * q.shape[-1] ** -0.5
    if causal:
        logits = logits.masked_fill(torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return logits.softmax(-1) @ v


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_errors_of_logits_count_by_how_far_these_are_apart(fused: bool, causal: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        given = F.scaled_dot_product_attention(q, k, v, is_causal=causal) if fused else attention(q, k, v, causal)
        return m.out(given.movedim(1, 2).flatten(-2))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Fn(forward, qkv=nn.Linear(6, 24), out=nn.Linear(8, 3)).eval(), 3 * torch.randn(1, 7, 6).repeat(2, 1, 1)
    coupling = fxprune.couple(fxprune.capture(model, (x,)))
    found = weights(coupling, coupling.contractions, (x,))
    with torch.no_grad():
        q, k, _ = model.qkv(x[:1]).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
    logits = (q @ k.mT / 2).squeeze(0)
    rows = [row[: i + 1] if causal else row for head in logits for i, row in enumerate(head)]
    expected = torch.stack([row.var(correction=0) for row in rows if len(row) > 1]).mean()
    assert list(found.values()) == [pytest.approx(float(expected), rel=1e-4)]


def test_masks_of_any_size_are_no_spread() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        logits = q @ k.mT + torch.where(torch.arange(x.shape[1]) < 4, 0.0, m.mask)
        return m.out((logits.softmax(-1) @ v).movedim(1, 2).flatten(-2))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Fn(forward, qkv=nn.Linear(6, 24), out=nn.Linear(8, 3)).eval(), torch.randn(2, 7, 6)
    found = []
    for mask in (-100.0, -1e4, -1e30):
        model.mask = mask
        coupling = fxprune.couple(fxprune.capture(model, (x,)))
        found.append(list(weights(coupling, coupling.contractions, (x,)).values()))
    assert all(each == pytest.approx(found[0]) for each in found)
    assert found[0][0] < 10


def test_branches_of_lower_rank_are_spread_over_places() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = m.stem(x) + m.b(x[0])
        return m.out(h * (h.pow(2).mean(2, keepdim=True) + 1e-6).rsqrt())  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Fn(
        forward,
        stem=nn.Linear(5, 8),
        b=nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 8)),
        out=nn.Linear(8, 3),
    )
    pruned = fxprune.compile(model.eval(), [torch.randn(4, 6, 5)], 0.7, progress=False)
    assert fxprune.report(pruned).verified
