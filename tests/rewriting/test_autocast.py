"""Regions under autocast, on or off, are pruned through, and cast in the result as they do in the original."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.capturing.regions import enter_autocast, exit_autocast
from tests.models.fn import Fn


def on(m: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = F.relu(m.b(F.relu(m.a(x))))
    return m.o(h.float()), h.sum(-1)


def off(m: Any, x: Tensor) -> Any:
    h = F.relu(m.a(x))
    with torch.autocast("cpu", enabled=False):
        h = F.relu(m.b(h.float()))
    return m.o(h), h.exp().sum(-1)


def within(m: Any, x: Tensor) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h = m.a(x)
        with torch.autocast("cpu", enabled=False):
            h = m.b(h.float())
        return m.o(h), torch.cat([h, m.b(h)], -1).mean(-1)


def casts_at_the_end(m: Any, x: Tensor) -> Any:
    """Casts to the dtype that is there anyway, but for autocast."""
    h = F.relu(m.a(x))
    return m.o(h).float(), m.b(h).to(x.dtype).softmax(-1), m.b(h.type_as(x)).type_as(x).sum(-1), m.o(h)


def model(forward: Callable[..., Any]) -> nn.Module:
    torch.manual_seed(0)
    return Fn(forward, a=nn.Linear(6, 24), b=nn.Linear(24, 24), o=nn.Linear(24, 3)).eval()


def x() -> Tensor:
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


def dtypes(net: nn.Module, casts: bool) -> list[torch.dtype]:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=casts):
        return [out.dtype for out in net(x())]


@pytest.mark.parametrize("forward", [on, off, within, casts_at_the_end], ids=lambda forward: forward.__name__)
def test_dtypes_are_the_originals(forward: Callable[..., Any], tmp_path: Path) -> None:
    net = model(forward)
    pruned = fxprune.compile(net, [x()], 0.6, progress=False)
    report = fxprune.report(pruned)
    assert report.params[1] < report.params[0]
    assert report.verified is True
    assert report.notes == ()
    fxprune.save(pruned, tmp_path / "saved")
    again = [copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), fxprune.load(tmp_path / "saved")]
    exported = torch.export.export(pruned, (x(),), strict=False).module()
    assert dtypes(exported, False) == dtypes(net, False)
    for casts in (False, True):
        assert dtypes(pruned, casts) == dtypes(net, casts)
        for other in again:
            assert dtypes(other, casts) == dtypes(net, casts)
    for a, b in zip(pruned(x()), torch.compile(pruned, backend="eager", fullgraph=True)(x()), strict=True):
        assert torch.equal(a, b)


def test_an_error_leaves_no_autocast_behind() -> None:
    pruned = fxprune.compile(model(within), [x()], 0.6, recover=None, progress=False)
    before = torch.get_autocast_dtype("cpu")
    with pytest.raises(RuntimeError):
        pruned(torch.randn(3, 6, dtype=torch.float64))
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_autocast_dtype("cpu") == before
    assert torch.autocast_increment_nesting() == 1
    assert torch.autocast_decrement_nesting() == 0


def test_a_file_cannot_leave_an_autocast_on(tmp_path: Path) -> None:
    pruned = fxprune.compile(model(on), [x()], 0.6, recover=None, progress=False)
    (entered,) = [node for node in pruned.graph.nodes if node.target is enter_autocast]
    (left,) = [node for node in pruned.graph.nodes if node.target is exit_autocast]
    assert left.args == (entered,)
    pruned.graph.erase_node(left)
    fxprune.save(pruned, tmp_path / "saved")
    with pytest.raises(fxprune.PlanError, match="entered and left in turn"):
        fxprune.load(tmp_path / "saved")


def test_gradients_pass_through(tmp_path: Path) -> None:
    net = model(on)
    pruned = fxprune.compile(net, [x()], ratios={"b": 0.5, "default": 0.0}, recover=None, progress=False)
    kept = fxprune.report(pruned).plan.keep["b.weight"][0]
    with torch.no_grad():
        net.o.weight[:, [i for i in range(24) if i not in kept]] = 0
    for each in (net, pruned):
        each(x())[0].sum().backward()
    assert torch.allclose(net.a.weight.grad, pruned.get_parameter("a.weight").grad, rtol=0.05, atol=0.05)
