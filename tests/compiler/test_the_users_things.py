"""Whatever a model does when it is called, compile leaves it, the data, the random state and the global flags alone."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils import _pytree as pytree

import fxprune
from tests.models.fn import Fn


class Counting(nn.Module):
    """Writes to a buffer in place, to a parameter, and to an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 12), nn.Linear(12, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.scale = nn.Parameter(torch.ones(12))
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        with torch.no_grad():
            self.scale.clamp_(0.0, 0.5)
        self.last = x.shape
        out: Tensor = self.c(F.relu(self.a(x) * self.scale))
        return out


def normalised() -> nn.Module:
    """Statistics of the batch, in evaluation too."""
    model = Fn(
        lambda m, x: m.c(F.relu(F.batch_norm(m.a(x), m.n.running_mean, m.n.running_var, training=True))),
        a=nn.Linear(6, 12),
        n=nn.BatchNorm1d(12, affine=False),
        c=nn.Linear(12, 3),
    )
    return model.eval()


def in_place(m: Any, x: Tensor) -> Tensor:
    x.sub_(0.5).mul_(2)
    x[:, 0] = 1
    return m.c(F.relu(m.a(x)))


def noisy(m: Any, x: Tensor) -> Tensor:
    return m.c(F.relu(m.a(x) + 1e-3 * torch.rand_like(x[:, :1])))


def tokens() -> list[Any]:
    return [torch.randint(0, 40, (5, 7)) for _ in range(2)]


def vectors() -> list[Any]:
    return [torch.randn(8, 6) + 1 for _ in range(2)]


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Any]]]] = {
    "a buffer, a parameter, an attribute": (Counting, vectors),
    "statistics of the batch": (normalised, vectors),
    "the input": (lambda: Fn(in_place, a=nn.Linear(6, 12), c=nn.Linear(12, 3)), vectors),
    "random numbers": (lambda: Fn(noisy, a=nn.Linear(6, 12), c=nn.Linear(12, 3)), vectors),
    "max_norm": (
        lambda: nn.Sequential(nn.Embedding(40, 16, max_norm=0.5), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)),
        tokens,
    ),
    "a weight that steps what it is made of": (
        lambda: nn.Sequential(spectral_norm(nn.Linear(6, 24)), nn.ReLU(), nn.Linear(24, 3)),
        vectors,
    ),
}


def flags() -> list[Any]:
    return [
        torch.is_grad_enabled(),
        str(torch.get_default_dtype()),
        torch.get_num_threads(),
        torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cudnn.benchmark,
        torch.is_autocast_enabled("cpu"),
    ]


def found(model: nn.Module, data: list[Any]) -> dict[str, Any]:
    """Returns copies of all that must stay as it is."""
    attributes = {k: repr(v) for k, v in vars(model).items() if not k.startswith("_") or k == "training"}
    return copy.deepcopy(
        {
            "state": model.state_dict(),
            "data": data,
            "attributes": attributes,
            "flags": flags(),
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": np.random.get_state(),
        }
    )


def changed(now: Any, before: Any) -> list[str]:
    """Returns what differs in its bits."""
    names = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(before)[0]]
    pairs = zip(names, pytree.tree_leaves(now), pytree.tree_leaves(before), strict=True)
    return [name for name, a, b in pairs if not np.array_equal(np.asarray(a), np.asarray(b))]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_compile_leaves_the_user_s_things_alone(name: str, training: bool) -> None:
    torch.manual_seed(0)
    build, batches = CASES[name]
    model, data = build().train(training), batches()
    before = found(model, data)
    fxprune.compile(model, data, 0.6, recover="sequential", progress=False)
    assert changed(found(model, data), before) == []


@pytest.mark.slow
def test_a_sweep_that_times_leaves_them_alone_too() -> None:
    torch.manual_seed(0)
    build, batches = CASES["max_norm"]
    model, data = build(), batches()
    before = found(model, data)
    fxprune.sweep(model, data, [0.8], ["l2"], latency=True, recover=None, progress=False)
    assert changed(found(model, data), before) == []


@pytest.mark.slow
def test_what_the_result_does_not_write_is_told() -> None:
    torch.manual_seed(0)
    build, batches = CASES["the input"]
    pruned = fxprune.compile(build(), batches(), 0.6, progress=False)
    assert any("changes its input" in note for note in pruned.report.notes)
    x = torch.randn(4, 6)
    before = x.clone()
    pruned(x)
    assert torch.equal(x, before)


def test_verifying_leaves_the_buffers_of_the_result_as_the_original_s() -> None:
    torch.manual_seed(0)
    model = normalised()
    pruned = fxprune.compile(model, vectors(), 0.6, recover=None, progress=False)
    assert torch.equal(pruned.get_buffer("n.running_mean"), torch.zeros(len(pruned.get_buffer("n.running_mean"))))
