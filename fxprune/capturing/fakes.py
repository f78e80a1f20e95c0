"""A model's tensors as fake ones, each made once; norms on them without the steps that torch takes, and numbers read of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


class Fakes:
    """Makes one fake tensor of each tensor.

    Attributes:
        mode: in which they are used.
    """

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._known: dict[int, Tensor] = {}

    def __call__(self, value: Any) -> Any:
        """Return the fake tensor of a tensor, ``[...]``; anything else as it is."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._known:
            self._known[id(value)] = self.mode.from_tensor(value, static_shapes=True)
        return self._known[id(value)]


#: Loggers of torch's, and how what they say begins where a run on fake tensors fails, a condition is not simplified, and a file is
#: read of a program in which a size came and went.
_OF_TRIALS = {
    "torch._subclasses.fake_tensor": "",
    "torch.fx.experimental.symbolic_shapes": "Failed to reduce inequalities",
    "torch._export.serde.serialize": "Symbol %s did not appear in the graph",
}


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep torch from logging, with tracebacks, what trials run into: it is in the error, where anybody is to know."""
    with ExitStack() as stack:
        for name, start in _OF_TRIALS.items():
            logger, tells = logging.getLogger(name), partial(_tells, start)
            logger.addFilter(tells)
            stack.callback(logger.removeFilter, tells)
        yield


def _tells(start: str, record: logging.LogRecord) -> bool:
    """Returns whether a record is to be logged."""
    return not str(record.msg).startswith(start)


class Outcomes(TorchDispatchMode):
    """Gives what operators do by `outcome`: to be entered after the mode that makes tensors fake."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make a result of the right sizes, or run the operator."""
        return outcome(func, args, kwargs or {})


def outcome(func: Any, args: Any, kwargs: Any) -> Any:
    """Returns what an operator gives, of norms only the sizes and dtypes; a number that is read of a tensor may be any."""
    if func is aten._local_scalar_dense.default:
        return _number(args[0].dtype)
    quick = _QUICK.get(func)
    if quick is None or kwargs or args[0].dtype.itemsize < 4:  # the statistics of small ones are as the device likes
        return func(*args, **kwargs)
    return quick(func, *args)


def _number(dtype: torch.dtype) -> bool | int | float:
    if dtype is torch.bool:
        return False  # as the one decision that models leave to chance, whether to skip a layer, is taken
    return 1.0 if dtype.is_floating_point or dtype.is_complex else 1


def _batch_norm(func: Any, x: Tensor, *rest: Any) -> Any:
    training = rest[4]
    if training and x.numel() <= x.shape[1]:
        return func(x, *rest)  # which says what is wrong
    channels = [x.shape[1] if training else 0]
    return torch.empty_like(x), x.new_empty(channels), x.new_empty(channels)


def _layer_norm(func: Any, x: Tensor, shape: Any, *rest: Any) -> Any:
    normalized, outer = list(shape), list(x.shape[: x.dim() - len(shape)])
    held = [p for p in rest[:2] if p is not None]
    if list(x.shape) != outer + normalized or any(list(p.shape) != normalized for p in held):
        return func(x, shape, *rest)  # which says what is wrong
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    kept = [*outer, *[1] * len(normalized)]
    return y, x.new_empty(kept), x.new_empty(kept)


_QUICK: dict[Any, Callable[..., Any]] = {
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
}
