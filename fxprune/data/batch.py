"""One batch of calibration data: the forms it may come in, and the call of the model that it becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune._base.errors import CalibrationError

#: Makes a call out of a batch; what it may return is said at ``fxprune.data.batches.Batches``.
ForwardArgs: TypeAlias = Callable[[Any], Any]

Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any], Any]

#: Keys of a dict batch that are kept out of the model's call; the first one present becomes the targets.
TARGET_KEYS = ("labels", "label")

#: What a batch may hold besides tensors: values that a captured graph has written into it.
_CONSTANTS = (int, float, bool, str, type(None), torch.dtype, torch.device)

_FORMS = "a tensor, (inputs, targets) or a dict"


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
        both = {"args": self.args, "kwargs": self.kwargs}
        return [(_name(path), leaf) for path, leaf in pytree.tree_leaves_with_path(both)]

    def __str__(self) -> str:
        return ", ".join(f"{name} {shown(leaf)}" for name, leaf in self.leaves())


@dataclass(frozen=True, slots=True)
class Signature:
    """What every batch has in common with the first: its structure, and each leaf's dtype and rank."""

    structure: pytree.TreeSpec
    keywords: tuple[str, ...]
    marks: tuple[tuple[str, Any], ...]  # name, and (dtype, rank) or the constant itself
    shown: tuple[str, ...]  # for messages

    @classmethod
    def of(cls, batch: Batch, index: int) -> Signature:
        """Returns the signature of batch ``index``.

        Raises:
            CalibrationError: a leaf is neither a tensor nor a plain constant.
        """
        leaves = batch.leaves()
        for name, leaf in leaves:
            if not isinstance(leaf, (Tensor, *_CONSTANTS)):
                kind = type(leaf).__name__
                raise bad_batch(index, f"{name}: expected a tensor (or a plain number, string or None), got {kind}")
        marks = ((name, (leaf.dtype, leaf.ndim) if isinstance(leaf, Tensor) else leaf) for name, leaf in leaves)
        structure = pytree.tree_structure((batch.args, batch.kwargs))
        return cls(structure, tuple(batch.kwargs), tuple(marks), tuple(shown(leaf) for _, leaf in leaves))

    def check(self, other: Signature, index: int) -> None:
        """Makes sure that batch ``index`` is of this kind.

        Raises:
            CalibrationError: its structure, or a dtype, rank or constant, is another.
        """
        if self.structure != other.structure:
            expected, got = (", ".join(name for name, _ in one.marks) for one in (self, other))
            raise bad_batch(index, f"it is built unlike batch 0: expected {expected}; got {got}")
        for (name, mark), (_, found), want, got in zip(self.marks, other.marks, self.shown, other.shown, strict=True):
            if mark != found:
                raise bad_batch(index, f"{name}: expected what batch 0 has, {want}; got {got}")


def bad_batch(index: int, what: str) -> CalibrationError:
    """Returns the error for batch ``index``."""
    return CalibrationError(f"calibration data: batch {index}: {what}")


def read_batch(raw: Any, index: int, forward_args: ForwardArgs | None = None) -> Call:
    """Returns (args, kwargs, targets) of a batch in any of its forms (see ``fxprune.data.batches.Batches``).

    Raises:
        CalibrationError: a form that is none of them.
    """
    if forward_args is not None:
        return _read_call(forward_args(raw), raw, index)
    if not isinstance(raw, tuple | list):
        return _read_inputs(raw, index)
    if len(raw) == 2:
        args, kwargs, _ = _read_inputs(raw[0], index)
        return args, kwargs, raw[1]
    if len(raw) == 1 and isinstance(raw[0], Tensor | Mapping):
        return _read_inputs(raw[0], index)
    kind = f"a {type(raw).__name__} of {len(raw)}"
    raise bad_batch(index, f"expected {_FORMS}, got {kind}: if these are the inputs, pass forward_args=tuple")


def size_of(call: Call, index: int) -> int:
    """Returns the leading dimension of the first tensor of a call.

    Raises:
        CalibrationError: no tensor, or one without samples.
    """
    args, kwargs, _ = call
    leaves = pytree.tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        kinds = ", ".join(sorted({type(leaf).__name__ for leaf in leaves})) or "nothing"
        raise bad_batch(index, f"expected a tensor among its inputs, got {kinds}")
    size = next((int(tensor.shape[0]) for tensor in tensors if tensor.ndim), 1)
    if not size:
        raise bad_batch(index, f"no samples: its first tensor is {shown(tensors[0])}")
    return size


def shown(leaf: Any) -> str:
    """Returns a leaf as messages show it, e.g. ``float32 [8, 3, 32, 32]``."""
    return f"{short(leaf.dtype)} {list(leaf.shape)}" if isinstance(leaf, Tensor) else repr(leaf)


def short(dtype: torch.dtype) -> str:
    """Returns ``"float32"`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _read_inputs(inputs: Any, index: int) -> Call:
    if isinstance(inputs, Tensor):
        return (inputs,), {}, None
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}, None
    if not isinstance(inputs, Mapping):
        kind = type(inputs).__name__
        raise bad_batch(index, f"expected {_FORMS}, got {kind}: pass forward_args to make a call out of it")
    if strange := [key for key in inputs if not isinstance(key, str)]:
        raise bad_batch(index, f"expected argument names as keys, got {strange[0]!r}")
    targets = next((inputs[key] for key in TARGET_KEYS if key in inputs), None)
    return (), {key: inputs[key] for key in inputs if key not in TARGET_KEYS}, targets


def _read_call(call: Any, raw: Any, index: int) -> Call:
    """Reads what ``forward_args`` returned; the targets of a dict batch are its labels all the same."""
    targets = _read_inputs(raw, index)[2] if isinstance(raw, Mapping) else None
    if isinstance(call, Tensor):
        return (call,), {}, targets
    if isinstance(call, Mapping):
        return (), {key: call[key] for key in call}, targets
    if not isinstance(call, tuple | list):
        kind = type(call).__name__
        raise bad_batch(index, f"forward_args: expected a tuple, a dict or (args, kwargs), got {kind}")
    if len(call) in (2, 3) and isinstance(call[0], tuple | list) and isinstance(call[1], Mapping):
        return tuple(call[0]), dict(call[1]), call[2] if len(call) == 3 else targets
    return tuple(call), {}, targets


def _name(path: tuple[Any, ...]) -> str:
    return f"{path[0].key}{pytree.keystr(path[1:])}"
