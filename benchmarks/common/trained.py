"""One training step of a pruned architecture beside the original's, with zeros where something is gone (tests/support/zeroed.py)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Set
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.zeroed import (
    Kept,
    Step,
    as_pruned,
    differing,
    evaluate,
    other_buffers,
    other_gradients,
    plain,
    shaken,
    step,
)

from .architectures import Call

TOLERANCE = 1e-4  # of outputs: some work in float32 inside, whatever they are given
aten = torch.ops.aten

#: Parameters of a model that is trained for a step: four copies in float64, with gradients.
LARGEST = 400_000_000


def trained(
    call: Call,
    keep: Kept,
    pruned: nn.Module,
    computed: Set[str] = frozenset(),
    moved: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Returns what came of one training step in float64, without randomness.

    Of the layers ``computed``, whose weights a model computes in its forward and the result holds as they act, no gradients are
    compared: a note tells of them. ``moved`` says where the original's modules are in ``pruned``, if not where they were.

    ``"equal"``; ``"not run: too large"``; ``"WRONG ..."`` and what; ``"no zeros"`` where the original has no such setting (a softmax over what is gone); or
    ``"original: ..."``, the error with which the original itself does not train.
    """
    if sum(parameter.numel() for parameter in call.model.parameters()) > LARGEST:
        return "not run: too large"
    args, kwargs = pytree.tree_map_only(torch.Tensor, _double, (call.args, dict(call.kwargs)))
    original, made = copy.deepcopy(call.model).double(), set[str]()
    if any(isinstance(module, _SpectralNorm) for module in pruned.modules()):  # which has the original's norm, cut
        keep = {_source(original, name): axes for name, axes in keep.items()}
    else:
        original, keep, made = plain(original, keep)
    original, pruned = _at(as_pruned(original, keep), kwargs), _at(pruned.double(), kwargs)
    with _Certain():
        try:
            before, want = evaluate(original, args), step(original, args)
        except Exception as error:  # of any library
            return f"original: {type(error).__name__}: {str(error).partition(chr(10))[0]:.80}"
        try:
            if differing(before, evaluate(pruned, args), TOLERANCE):
                return "no zeros"
            got = _back(step(pruned, args), moved)
        except Exception as error:
            return f"WRONG {type(error).__name__}: {str(error).partition(chr(10))[0]:.80}"
        found = _first(want, got, keep, made | computed, {})
        if found.startswith("gradient"):  # of large terms that cancel?
            found = _first(want, got, keep, made | computed, shaken(original, args, want))
    return f"WRONG {found}" if found else "equal"


def _source(model: nn.Module, name: str) -> str:
    """Returns the parameter that a weight is made of, or its own name."""
    path, _, attribute = name.rpartition(".")
    source = f"{path}.parametrizations.{attribute}.original"
    return source if source in dict(model.named_parameters()) else name


def _back(got: Step, moved: Mapping[str, str]) -> Step:
    """Returns a step by the original's names."""
    old = {new: path for path, new in moved.items()}

    def named(found: Any) -> Any:
        parts = {name: name.rpartition(".") for name in found}
        return {
            f"{old.get(path, path)}.{leaf}".removeprefix("."): found[name] for name, (path, _, leaf) in parts.items()
        }

    return replace(got, gradients=named(got.gradients), buffers=named(got.buffers))


def _first(want: Step, got: Step, keep: Kept, made: set[str], rounding: Mapping[str, float]) -> str:
    if text := differing(want.outputs, got.outputs, TOLERANCE):
        return f"outputs: {text}"
    gradients = other_gradients(want, got, keep, made, 10 * TOLERANCE, rounding)
    buffers = other_buffers(want, got, keep, made, TOLERANCE)
    return next((f"gradient of {text}" for text in gradients), next((f"buffer {text}" for text in buffers), ""))


def _double(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.is_floating_point() else x


def _at(model: nn.Module, kwargs: dict[str, Any]) -> nn.Module:
    """Returns the model, always called with these keyword arguments."""
    forward = model.forward
    model.forward = lambda *args: forward(*args, **kwargs)  # type: ignore[method-assign]
    return model


class _Certain(TorchDispatchMode):
    """Dropout drops nothing, and what is drawn is the same for any shape: no two models draw alike."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is aten.native_dropout.default:
            return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
        if func is aten.bernoulli_.float:
            return args[0].fill_(args[1] if len(args) > 1 else 0.5)
        found = func(*args, **kwargs)
        if (
            torch.Tag.nondeterministic_seeded in func.tags
            and isinstance(found, torch.Tensor)
            and found.is_floating_point()
        ):
            return found.fill_(0.5)
        return found
