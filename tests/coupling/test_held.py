"""What must stay is held, and says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.capturing.captured import capture
from fxprune.coupling.blocks import with_blocks
from fxprune.coupling.interpreter import couple
from tests.models.fn import Fn
from tests.support.compiling import couple_fn
from tests.support.pruning import certify, groups_of, removal
from tests.support.tensors import random


def test_an_unknown_op_holds_what_it_touches_and_strict_names_it() -> None:
    torch.manual_seed(0)
    model = Fn(
        lambda m, x: m.c(m.b(torch.renorm(m.a(x), 2, 0, 1.0)).relu()),
        a=nn.Linear(5, 6),
        b=nn.Linear(6, 8),
        c=nn.Linear(8, 2),
    ).eval()
    captured = capture(model, (torch.randn(4, 5),))
    coupling = couple(captured)
    assert groups_of(coupling) == ["8 channel: b.weight[0] b.bias[0] c.weight[1]"]
    assert [op for op, _ in coupling.unsupported] == ["aten.renorm.default"]
    assert "an op without a rule, of aten.renorm.default" in coupling.explain("a")
    with pytest.raises(fxprune.UnsupportedOpError, match=r"aten\.renorm\.default in module .* line \d+, in forward"):
        couple(captured, strict=True)
    with pytest.raises(fxprune.UnsupportedOpError):
        fxprune.compile(model, [((torch.randn(4, 5),), torch.zeros(4))], 0.8, strict=True, progress=False)


def _prefix(m: Any, x: Tensor) -> Tensor:
    k, v = (torch.cat([p.expand(len(x), -1, -1), f(x)], 1) for p, f in ((m.pk, m.k), (m.pv, m.v)))
    return m.o(F.scaled_dot_product_attention(m.q(x), k, v))


HELD: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], dict[str, Any], str, int, str]] = {
    "token rows": (lambda m, x: m.b(m.t(x)), (torch.arange(12).reshape(3, 4),), {"t": nn.Embedding(12, 6), "b": nn.Linear(6, 2)},
                   "t.weight", 0, "rows"),
    "position rows": (lambda m, x: m.b(m.a(x) + m.t[: x.shape[1]]), (random(3, 4, 5),),
                      {"a": nn.Linear(5, 6), "t": nn.Parameter(torch.randn(9, 6)), "b": nn.Linear(6, 2)}, "t", 0, "aten.slice"),
    "rows of an indexed table": (lambda m, x: m.b(m.t[torch.tensor([[0, 1], [2, 0]])]).sum() * x, (random(3, 5),),
                                 {"t": nn.Parameter(torch.randn(4, 6)), "b": nn.Linear(6, 2)}, "t", 0, "index"),
    "key length": (_prefix, (random(3, 4, 5),), {"q": nn.Linear(5, 6), "k": nn.Linear(5, 6), "v": nn.Linear(5, 6), "o": nn.Linear(6, 2),
                   "pk": nn.Parameter(torch.randn(1, 3, 6)), "pv": nn.Parameter(torch.randn(1, 3, 6))}, "pk", 1, "aten.cat"),
    "softmax": (lambda m, x: m.b(x @ m.t.softmax(-1)), (random(3, 5),), {"t": nn.Parameter(torch.randn(5, 6)), "b": nn.Linear(6, 2)},
                "t", 1, "normalised"),
    "a selected coordinate": (lambda m, x: m.b(m.a(x)) + m.a(x)[:, 2, None], (random(3, 5),), {"a": nn.Linear(5, 6), "b": nn.Linear(6, 2)},
                              "a.weight", 0, "select"),
    "the result": (lambda m, x: m.a(x), (random(3, 5),), {"a": nn.Linear(5, 6)}, "a.weight", 0, "the result"),
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_what_must_stay_is_held_and_says_why(name: str) -> None:
    function, args, parts, tensor, dim, words = HELD[name]
    coupling = couple_fn(function, *args, **parts)
    held = {(f.tensor, f.dim): f for f in coupling.frozen()}
    assert words in held[tensor, dim].reason
    assert held[tensor, dim].reason in coupling.explain(tensor)
    for share in (0.4, 0.9) if coupling.groups else ():
        assert certify(coupling, args, removal(coupling, 0, share)).verified is True


@pytest.mark.parametrize("held", ["c.bias", "c.weight", "b.bias"])
def test_a_tensor_that_is_held_stays_and_so_does_its_branch(held: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x)
        found: Tensor = m.d(y + m.c(m.b(y).relu()))
        return found

    layers = {"a": nn.Linear(5, 6), "b": nn.Linear(6, 8), "c": nn.Linear(8, 6), "d": nn.Linear(6, 2)}
    captured = capture(Fn(forward, **layers).eval(), (random(3, 5),))
    assert any(group.kind == "block" for group in with_blocks(couple(captured)).groups)
    coupling = couple(replace(captured, held={held: "it is wanted elsewhere"}))
    assert "it is wanted elsewhere" in coupling.explain(held)
    assert not any(held.startswith(coupling.axes[i].tensor) for group in coupling.groups for i, _ in group.axes)
    assert not any(group.kind == "block" for group in with_blocks(coupling).groups)
