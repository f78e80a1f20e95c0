"""One batch of calibration data: the forms it may come in, and the call of the model that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune._base.errors import CalibrationError, raised_as

#: Makes a call out of a batch; what it may return is said at ``fxprune.data.batches.Batches``.
ForwardArgs: TypeAlias = Callable[[Any], Any]

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any], Any]

#: Keys of a dict batch that are kept out of the model's call; the first one present becomes the targets.
TARGET_KEYS = ("labels", "label")

#: What a batch may hold besides tensors: values that a captured graph has written into it.
_CONSTANTS = (int, float, bool, str, type(None), torch.dtype, torch.device)

_FORMS = "a tensor, (inputs, targets) or a dict"

#: How a batch is made one argument, for messages.
WHOLE = "forward_args=lambda b: ((b,), {})"


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One call of the model: ``model(*args, **kwargs)``.

    Attributes:
        args: positional arguments, tensors on the model's device.
        kwargs: keyword arguments, likewise.
        targets: what a loss compares with (any structure of tensors), or None.
        size: the number of samples, i.e. the leading dimension of the first tensor.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: Any
    size: int

    def leaves(self) -> list[tuple[str, Any]]:
        """Returns every leaf of the arguments with its name, e.g. ``args[0]`` or ``kwargs['input_ids']``."""
        found = pytree.tree_leaves_with_path({"args": self.args, "kwargs": self.kwargs})
        return [(f"{path[0].key}{pytree.keystr(path[1:])}", leaf) for path, leaf in found]  # type: ignore[attr-defined]

    def __str__(self) -> str:
        return ", ".join(f"{name} {shown(leaf)}" for name, leaf in self.leaves())


@dataclass(frozen=True, slots=True)
class Signature:
    """What every batch has in common with the first: its structure, and each leaf's dtype and rank."""

    structure: pytree.TreeSpec
    keywords: tuple[str, ...]
    leaves: tuple[tuple[str, Any, str], ...]  # name, (dtype, rank) or the constant itself, and what messages show

    @classmethod
    def of(cls, batch: Batch, index: int) -> Signature:
        """Returns the signature of batch ``index``.

        Raises:
            CalibrationError: a leaf is neither a tensor nor a plain constant.
        """
        leaves = []
        for name, leaf in batch.leaves():
            if not isinstance(leaf, (Tensor, *_CONSTANTS)):
                expected = "expected a tensor (or a plain number, string or None)"
                raise bad_batch(index, f"{name}: {expected}, got {type(leaf).__name__}")
            if isinstance(leaf, Tensor) and (kind := _odd(leaf)):
                raise bad_batch(index, f"{name}: expected a dense tensor, got a {kind} one: convert it")
            leaves.append((name, (leaf.dtype, leaf.ndim) if isinstance(leaf, Tensor) else leaf, shown(leaf)))
        return cls(pytree.tree_structure((batch.args, batch.kwargs)), tuple(batch.kwargs), tuple(leaves))

    def check(self, other: Signature, index: int) -> None:
        """Makes sure that batch ``index`` is of this kind.

        Raises:
            CalibrationError: its structure, or a dtype, rank or constant, is another.
        """
        if self.structure != other.structure:
            names = [[name for name, _, _ in one.leaves] for one in (self, other)]
            expected, got = (", ".join(each) for each in names)
            longer = {*names[0]} <= {*names[1]} or {*names[1]} <= {*names[0]}
            hint = ". A list of as many in every batch: drop_last=True of a DataLoader" if longer and "]" in got else ""
            raise bad_batch(index, f"it is built unlike batch 0: expected {expected}; got {got}{hint}")
        for (name, mark, want), (_, found, got) in zip(self.leaves, other.leaves, strict=True):
            if mark != found:
                raise bad_batch(index, f"{name}: expected what batch 0 has, {want}; got {got}")


def bad_batch(index: int, what: str) -> CalibrationError:
    """Returns the error for batch ``index``."""
    return CalibrationError(f"calibration data: batch {index}: {what}")


def read_batch(raw: Any, index: int, forward_args: ForwardArgs | None = None) -> Call:
    """Returns (args, kwargs, targets) of a batch in any of its forms (see ``fxprune.data.batches.Batches``).

    Raises:
        CalibrationError: a form that is none of them, or ``forward_args`` raises.
    """
    if forward_args is not None:
        with raised_as(CalibrationError, f"calibration data: batch {index}: forward_args fails on it"):
            call = forward_args(raw)
        return _read_call(call, raw, index)
    if not isinstance(raw, tuple | list):
        return _read_inputs(raw, index)
    if len(raw) == 2:
        args, kwargs, _ = _read_inputs(raw[0], index)
        return args, kwargs, raw[1]
    if len(raw) == 1 and isinstance(raw[0], Tensor | Mapping):
        return _read_inputs(raw[0], index)
    got = f"a {type(raw).__name__} of {len(raw)}"
    way = f"if these are the inputs, pass forward_args=tuple; if they are one, such as a list of images, {WHOLE}"
    raise bad_batch(index, f"expected {_FORMS}, got {got}: {way}")


def size_of(call: Call, index: int) -> int:
    """Returns the leading dimension of the first tensor of a call.

    Raises:
        CalibrationError: no tensor, or one without samples.
    """
    leaves = pytree.tree_leaves(call[:2])
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        raise bad_batch(index, f"expected a tensor among its inputs, got {kinds}")
    size = next((int(tensor.shape[0]) for tensor in tensors if tensor.ndim), 1)
    if not size:
        raise bad_batch(index, f"no samples: its first tensor is {shown(tensors[0])}")
    return size


def _odd(tensor: Tensor) -> str:
    """Returns what a tensor ``[...]`` is instead of numbers side by side; empty if it is just that."""
    kinds = {"nested": tensor.is_nested, "quantized": tensor.is_quantized, "sparse": tensor.layout != torch.strided}
    return next((kind for kind, holds in kinds.items() if holds), "")


def shown(leaf: Any) -> str:
    """Returns a leaf as messages show it, e.g. ``float32 [8, 3, 32, 32]``."""
    return f"{short(leaf.dtype)} {list(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)


def short(dtype: torch.dtype) -> str:
    """Returns ``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _arguments(value: Any) -> tuple[tuple[Any, ...], dict[Any, Any]] | None:
    """Returns (args, kwargs) of a tensor, a sequence or a mapping; None for anything else."""
    if isinstance(value, Mapping):
        return (), {key: value[key] for key in value}
    if isinstance(value, tuple | list):
        return tuple(value), {}
    return ((value,), {}) if isinstance(value, Tensor) else None


def _read_inputs(inputs: Any, index: int) -> Call:
    if (found := _arguments(inputs)) is None:
        way = "pass forward_args to make a call out of it"
        raise bad_batch(index, f"expected {_FORMS}, got {type(inputs).__name__}: {way}")
    args, kwargs = found
    if strange := [key for key in kwargs if not isinstance(key, str)]:
        raise bad_batch(index, f"expected argument names as keys, got {strange[0]!r}")
    targets = next((kwargs[key] for key in TARGET_KEYS if key in kwargs), None)
    return args, {key: value for key, value in kwargs.items() if key not in TARGET_KEYS}, targets


def _read_call(call: Any, raw: Any, index: int) -> Call:
    """Reads what ``forward_args`` returned; the targets of a dict batch are its labels all the same."""
    targets = _read_inputs(raw, index)[2] if isinstance(raw, Mapping) else None
    match call:
        case [tuple() | list() as args, Mapping() as kwargs, *rest] if len(rest) < 2:
            return tuple(args), dict(kwargs), rest[0] if rest else targets
    if (found := _arguments(call)) is None:
        expected = "expected a tuple, a dict or (args, kwargs)"
        raise bad_batch(index, f"forward_args: {expected}, got {type(call).__name__}")
    return *found, targets
