"""Hooks on gradients: no graph has them, so that a result has none of them."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Set
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune.capturing.blame import Watch

_ON_MODULES = ("_backward_hooks", "_backward_pre_hooks")
_ON_PARAMETERS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_PUT = (Tensor.register_hook, Tensor.register_post_accumulate_grad_hook)


def lost_hooks(model: nn.Module, hooking: Set[str]) -> Iterator[str]:
    """Yield a sentence for each kind of hooks on gradients that a model has.

    Args:
        model: The model.
        hooking: Modules whose forward pass puts hooks on tensors, by name.
    """
    modules = {path for path, module in model.named_modules() if _has(module, _ON_MODULES)}
    whole = type(model).__name__
    if modules:
        yield f"the result has no backward hooks, which the model has on {listed({path or whole for path in modules})}"
    if hooking:
        where = listed({path or whole for path in hooking})
        yield f"the result has no hooks on the gradients of tensors, which the forward pass of {where} puts there"
    parameters = {name for name, parameter in model.named_parameters() if _has(parameter, _ON_PARAMETERS)}
    if parameters:
        yield f"the result has no hooks on the gradients of parameters, which the model has on {listed(parameters)}"


def _has(owner: nn.Module | Tensor, kinds: tuple[str, ...]) -> bool:
    return any(getattr(owner, kind, None) for kind in kinds)


def listed(names: Set[str]) -> str:
    """Return the first of some names, quoted, and how many more there are."""
    found = sorted(names)
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return ", ".join(map(repr, found[:5])) + more


class HookWatch(TorchFunctionMode):
    """Sees what a forward pass puts hooks on: it must record gradients, as tensors without one have none.

    Attributes:
        modules: Those that do so, by name.
    """

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch = watch
        self.modules: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make the call, and take note of the module that makes it if a hook is put on a tensor."""
        result = func(*args, **(kwargs or {}))
        if func in _PUT or (getattr(func, "__self__", None) is Tensor.grad_fn and result is not None and _is_user()):
            self.modules.add(self._watch.running[-1] if self._watch.running else "")
        return result


def _is_user() -> bool:
    """Say whether it is not torch, for the hooks of modules, that asks for a node of autograd's: it is of use for hooks alone."""
    return sys._getframe(2).f_globals.get("__name__") not in ("torch.nn.modules.module", "torch.utils.hooks")
