"""A model lent for a while: in evaluation or training mode, and afterwards exactly as it was."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def untouched(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Set all training flags to ``training``; restore every module's attributes, and what requires gradients, on leaving.

    The flags are set one by one, since a model's own ``train()`` may do more than that.
    """
    modules = list(model.modules())
    before = [_snapshot(module) for module in modules]
    try:
        for module in modules:
            module.__dict__["training"] = training
        with requiring_the_same(model):
            yield
    finally:
        for module, state in zip(modules, before, strict=True):
            _restore(module, state)


@contextmanager
def requiring_the_same(model: nn.Module) -> Iterator[set[str]]:
    """Restores on leaving which parameters require gradients; what it yields then names those that had changed."""
    before = [(name, parameter, parameter.requires_grad) for name, parameter in model.named_parameters()]
    changed: set[str] = set()
    try:
        yield changed
    finally:
        for name, parameter, required in before:
            if parameter.requires_grad != required:
                changed.add(name)
                parameter.requires_grad_(required)


def _snapshot(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Return a module's attributes, each with a copy of its content if it is a dict or a list."""
    return {
        name: (value, copy(value) if isinstance(value, (dict, list)) else None) for name, value in vars(module).items()
    }


def _restore(module: nn.Module, state: Mapping[str, tuple[Any, Any]]) -> None:
    attributes = vars(module)
    for name in attributes.keys() - state.keys():
        del attributes[name]
    for name, (value, content) in state.items():
        if attributes.get(name) is not value:
            attributes[name] = value
        if isinstance(value, dict) and not _same(list(value.items()), list(content.items())):
            value.clear()
            value.update(content)
        elif isinstance(value, list) and not _same(list(enumerate(value)), list(enumerate(content))):
            value[:] = content


def _same(a: list[tuple[Any, Any]], b: list[tuple[Any, Any]]) -> bool:
    """Say whether two lists of items have the same keys and the very same values, in order."""
    return len(a) == len(b) and all(k == other and v is w for (k, v), (other, w) in zip(a, b, strict=True))


@contextmanager
def evaluating(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """Has a model run in evaluation mode, or training mode, without gradients; whatever it writes, it is as it was on leaving.

    Its buffers are copies meanwhile (a batch norm does not say that it writes to them), flags and attributes are restored.
    """
    with untouched(model, training=training), torch.no_grad():
        copies = {id(buffer): buffer.clone() for buffer in model.buffers()}
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = copies[id(buffer)]
        yield


@contextmanager
def lent(model: nn.Module, *given: Any, training: bool = False) -> Iterator[None]:
    """Has a model run as `evaluating` does on what is given to it: parameters and inputs are as they were on leaving, too."""
    with evaluating(model, training=training), guarded([*model.parameters(), *_tensors(given)]):
        yield


@contextmanager
def at_full_speed(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
    """As `lent`, to be timed: what a call writes is found by a first one, and nothing watches those that follow."""
    with evaluating(model):
        guard = _Guard([*model.parameters(), *_tensors(args, kwargs)])
        try:
            with guard:
                model(*args, **kwargs)
            yield
        finally:
            guard.put_back()


@contextmanager
def guarded(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Puts back what is written to tensors, ``[...]`` each, meanwhile; nothing is copied before the first write."""
    guard = _Guard(tensors)
    try:
        with guard:
            yield
    finally:
        guard.put_back()


class _Guard(TorchDispatchMode):
    """Copies a guarded storage right before an operator that writes to it."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.guarded = {_place(tensor) for tensor in tensors if not tensor.is_meta}
        self.before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for argument, value in zip(func._schema.arguments, args, strict=False):
            self._keep(argument, value)
        for argument in func._schema.arguments:
            if argument.name in kwargs:
                self._keep(argument, kwargs[argument.name])
        return func(*args, **kwargs)

    def _keep(self, argument: torch.Argument, value: Any) -> None:
        if argument.alias_info is None or not argument.alias_info.is_write:
            return
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if (
                isinstance(tensor, Tensor)
                and not tensor.is_meta
                and _place(tensor) in self.guarded - self.before.keys()
            ):
                storage = tensor.untyped_storage()
                self.before[_place(tensor)] = storage, storage.clone()

    def put_back(self) -> None:
        """Gives every storage that was written to its content again."""
        for storage, before in self.before.values():
            storage.copy_(before)


def _tensors(*given: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@contextmanager
def plain_modes() -> Iterator[None]:
    """Records gradients, and casts nothing by itself, whatever mode the caller is in: what is made here has values and can be trained."""
    with ExitStack() as stack:
        if torch.get_default_device().type == "meta":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device_type in ("cpu", "cuda", "mps", "xpu"):
            if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Puts the random states of torch, Python and numpy back on leaving; numpy's if it is there."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.callback(random.setstate, random.getstate())
        if numpy := sys.modules.get("numpy"):
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        yield
