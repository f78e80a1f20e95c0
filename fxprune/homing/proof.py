"""The proof of a restored model: it computes what its graph does, within rounding, and nothing of the original's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune._base.errors import RestoreError, brief
from fxprune._base.modes import lent, random_states_kept
from fxprune.capturing.captured import Captured, TensorInfo
from fxprune.data.calls import Call, tensors_of
from fxprune.results.tables import few

#: The largest relative difference between module and graph.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_COARSE = 2e-2
#: More than this share of an output's size is no rounding.
_MOST_NOISE = 0.25

#: Calls a model: ``f(model, *args, **kwargs)``.
Called: TypeAlias = Callable[..., Any]


def difference(
    home: nn.Module, pruned: nn.Module, call: Call, way: Called = nn.Module.__call__, allowed: float | None = None
) -> str | None:
    """Returns in what a restored model, called in some way, differs from its graph on a call, None if they are equal.

    Args:
        home: the model.
        pruned: the graph.
        call: of both.
        way: how the model is called.
        allowed: the largest relative difference that rounding may make, and more where rounding grows; by default that of each
            output's dtype alone.
    """
    call = pytree.tree_map_only(Tensor, torch.clone, call)
    with random_states_kept(), lent(pruned, call):
        want = tensors_of(pruned(*call[0], **call[1]))
    with random_states_kept(), lent(home, call):
        try:
            got = tensors_of(way(home, *call[0], **call[1]))
        except Exception as error:  # whatever its forward raises
            return f"it raises {brief(error)}"
    if [x.shape for x in got] != [x.shape for x in want]:
        return f"it gives {[tuple(x.shape) for x in got]}, the graph {[tuple(x.shape) for x in want]}"
    worst = max((_apart(x, y, allowed) for x, y in zip(got, want, strict=True)), default=0.0)
    if worst > 1 and allowed is not None:
        noise = _noise(pruned, call, want)
        worst = max(_apart(x, y, max(allowed, n)) for x, y, n in zip(got, want, noise, strict=True))
    return f"its outputs differ from the graph's by {worst:.2g} of their size" if worst > 1 else None


def _noise(pruned: nn.Module, call: Call, want: Sequence[Tensor]) -> list[float]:
    """Returns by what share of its size rounding may move each output: four times what a last bit of the inputs moves it by, a quarter at most.

    Networks that go over an image again and again (optical flow) have outputs in which rounding grows.
    """
    generator = torch.Generator().manual_seed(0)

    def moved(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        signs = torch.randint(0, 2, x.shape, generator=generator).to(x) * 2 - 1
        return x * (1 + torch.finfo(x.dtype).eps * signs)

    near = pytree.tree_map_only(Tensor, moved, call)
    with random_states_kept(), lent(pruned, near):
        others = tensors_of(pruned(*near[0], **near[1]))
    if [x.shape for x in others] != [x.shape for x in want]:
        return [0.0] * len(want)
    return [min(4 * _share(other, own), _MOST_NOISE) for other, own in zip(others, want, strict=True)]


def _share(other: Tensor, own: Tensor) -> float:
    if not own.is_floating_point() or not own.numel():
        return 0.0
    size = float(own.nan_to_num(0, 0, 0).abs().max())
    return float((other - own).abs().nan_to_num(0).max()) / size if size else 0.0


def _apart(got: Tensor, want: Tensor, allowed: float | None) -> float:
    """Returns how far apart two outputs, ``[...]``, are, in tolerances."""
    if not (want.is_floating_point() or want.is_complex()):
        return 0.0 if torch.equal(got, want) else float("inf")
    least = TOLERANCE.get(want.dtype, _COARSE)
    allowed = max(least, allowed or 0.0) * float(want.nan_to_num(0, 0, 0).abs().max() if want.numel() else 0)
    same = torch.isclose(got, want, rtol=0.0, atol=allowed, equal_nan=True)
    if bool(same.all()):
        return 0.0
    return float((got - want).abs().nan_to_num(float("inf")).max()) / max(allowed, 1e-300)


def tolerance_of(captured: Captured) -> float:
    """Returns the relative difference that rounding may make: of the coarsest floating dtype that the graph computes in."""
    used = {
        info.dtype for info in captured.info.values() if isinstance(info, TensorInfo) and info.dtype.is_floating_point
    }
    return max((TOLERANCE.get(dtype, _COARSE) for dtype in used), default=TOLERANCE[torch.float32])


def takes(model: nn.Module, call: Call) -> bool:
    """Returns whether a model can be called so."""
    try:
        with random_states_kept(), lent(model, call):
            model(*call[0], **call[1])
    except Exception:  # whatever a model raises at sizes that it does not take
        return False
    return True


def check_apart(home: nn.Module, model: nn.Module, call: Call) -> None:
    """Makes sure that a copy computes with nothing of the original, as a function that an attribute holds may do.

    Raises:
        RestoreError: it does.
    """
    seen = _Seen({id(tensor): name for name, tensor in (*model.named_parameters(), *model.named_buffers())})
    with random_states_kept(), lent(home, call), seen:
        home(*call[0], **call[1])
    if seen.found:
        raise RestoreError(
            f"a copy of the model still computes with the original's {few(sorted(seen.found), 3)}: a function that it holds (a lambda, "
            "a closure, a hook) has the original in it; make it a method"
        )


class _Seen(TorchFunctionMode):
    """Notes which of some tensors, by their ids, are computed with."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names, self.found = names, set[str]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (*args, *(kwargs or {}).values())
        self.found.update(self.names[id(value)] for value in given if id(value) in self.names)
        return func(*args, **(kwargs or {}))
