"""Models emitted without a cut, once for all tests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.capturing.captured import Captured, capture
from fxprune.rewriting.emission import emit
from fxprune.rewriting.pruned import PrunedModule
from tests.models.calls import CASES
from tests.support.weights import randomise


class Emitted(NamedTuple):
    model: nn.Module
    captured: Captured
    pruned: PrunedModule
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@cache
def emitted(name: str) -> Emitted:
    """Returns one case, captured and emitted once for all tests in float64; copy before changing it."""
    case = CASES[name]
    torch.manual_seed(0)
    model = randomise(case.model()).double().eval()
    args, kwargs = pytree.tree_map_only(Tensor, double, (case.args, case.kwargs))
    captured = capture(model, args, kwargs)
    return Emitted(model, captured, emit(captured, captured.module), args, kwargs)


def emit_of(model: nn.Module, *args: Any) -> PrunedModule:
    captured = capture(model, args)
    return emit(captured, captured.module)


def double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
