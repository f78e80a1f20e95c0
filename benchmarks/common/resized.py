"""A pruned architecture at two other sizes, beside the original's, with zeros where something is gone (tests/support/zeroed.py)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.runtimes.sizes import repeated
from tests.support.zeroed import Kept, as_pruned, differing, leaves, plain

from .architectures import Call

TOLERANCE = 1e-4  # of outputs: some work in float32 inside, whatever they are given

#: The batch, and the factor of the other sizes.
SIZES = ((3, 1.5), (1, 0.75))

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def at_other_sizes(call: Call, keep: Kept, pruned: nn.Module) -> str:
    """Returns how often the result was equal to the original, or refused in words, at two other sizes: ``"1 equal, 1 refused"``.

    ``"WRONG ..."`` and what, if it was neither; ``"no zeros"`` where the original has no such setting (a softmax over what is
    gone); and sizes that the original does not take either count as such.
    """
    original, keep, _ = plain(copy.deepcopy(call.model).double(), keep)
    original, pruned = as_pruned(original, keep).eval(), pruned.double().eval()
    own = _doubled((call.args, dict(call.kwargs)))
    want, got = _taken(original, own), _taken(pruned, own)
    if want is None or got is None or differing(want, got, TOLERANCE):
        return "no zeros" if want and got else "no double precision"
    found: Counter[str] = Counter()
    for batch, factor in SIZES:
        what = _compare(original, pruned, own, batch, factor)
        if what.startswith("WRONG"):
            return what
        found[what] += 1
    return ", ".join(f"{count} {what}" for what, count in found.items())


def runs_at_other_sizes(original: nn.Module, model: nn.Module, own: Inputs) -> str:
    """Returns at how many of the sizes that the original takes a pruned model runs and gives its shapes: ``"1 of 2 run"``."""
    calls = [call for call in (_first_taken(original, own, *size) for size in SIZES) if call is not None]
    pairs = [(_taken(original, call), _taken(model, call)) for call in calls]
    good = sum(got is not None and _shapes_of(want) == _shapes_of(got) for want, got in pairs)
    return f"{good} of {len(calls)} run"


def _compare(original: nn.Module, pruned: nn.Module, own: Inputs, batch: int, factor: float) -> str:
    call = _first_taken(original, own, batch, factor)
    if call is None:
        return "taken by neither"
    want = _run(original, call)
    try:
        got = _run(pruned, call)
    except fxprune.FxpruneError:
        return "refused"
    except Exception as error:  # a raw error is what must not be
        return f"WRONG {type(error).__name__} at {_shapes(call)}: {str(error).partition(chr(10))[0]:.80}"
    text = differing(want, got, TOLERANCE)
    return f"WRONG {text} at {_shapes(call)}" if text else "equal"


def _first_taken(model: nn.Module, own: Inputs, batch: int, factor: float) -> Inputs | None:
    """Returns a call at another size that a model takes: rather all sizes than the batch alone."""
    return next((call for call in _others(own, batch, factor) if _taken(model, call) is not None), None)


def _others(own: Inputs, batch: int, factor: float) -> Iterator[Inputs]:
    for dims in ((2, 3, 4), (1,), (1, 2), ()):
        yield pytree.tree_map_only(Tensor, lambda x, dims=dims: _other(x, dims, batch, factor), own)
    yield pytree.tree_map_only(Tensor, lambda x: _other(x, (2, 3, 4), x.shape[0], factor) if x.ndim else x, own)


def _other(x: Tensor, dims: tuple[int, ...], batch: int, factor: float) -> Tensor:
    """Returns a tensor, ``[batch, ...]``, with another batch, and some of its sizes times a factor, by 32 where they were."""
    for dim, size in enumerate(x.shape):
        if dim == 0:
            x = repeated(x, 0, batch)
        elif dim in dims and size > 1:
            unit = 32 if size % 32 == 0 else 1
            x = repeated(x, dim, max(unit, round(size * factor / unit) * unit))
    return x


def _doubled(call: Inputs) -> Inputs:
    def double(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    return pytree.tree_map_only(Tensor, double, call)


def _taken(model: nn.Module, call: Inputs) -> list[Tensor] | None:
    try:
        return _run(model, call)
    except Exception:  # of any library
        return None


def _run(model: nn.Module, call: Inputs) -> list[Tensor]:
    with torch.no_grad():
        return leaves(model(*call[0], **call[1]))


def _shapes(call: Inputs) -> str:
    return ", ".join(map(str, _shapes_of(leaves(call))))


def _shapes_of(tensors: list[Tensor] | None) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors or ()]
