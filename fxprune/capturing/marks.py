"""The identity operator that stands in the graph where an eval-mode no-op module was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

torch.library.define("fxprune::mark", "(Tensor x, str path) -> Tensor")


@torch.library.impl("fxprune::mark", "CompositeExplicitAutograd")
def _mark(x: Tensor, path: str) -> Tensor:
    return x.clone()


def _mark_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return grad, None


torch.library.register_autograd("fxprune::mark", _mark_backward)

MARK = torch.ops.fxprune.mark.default


def mark_silent(module: nn.Module, path: str, versions: tuple[int, ...], args: tuple[Any, ...], out: Any) -> Any:
    """Return ``out``, marked with ``path`` if ``module`` let its input through untouched.

    Stochastic depth, drop path and drop block vanish from an eval-mode graph: they return the very tensor
    that they were given. PyTorch's own modules need no mark, because dropout stays visible as an operator.

    Args:
        module: The module that has just run.
        path: Its dotted name in the model.
        versions: The version counters of the tensors in ``args`` before the call: an in-place activation
            returns its input as well, but not unchanged.
        args: Its positional arguments.
        out: What it returned.
    """
    if not args or out is not args[0] or not isinstance(out, Tensor):
        return out
    idle = not (module._modules or module._parameters or module._buffers) and versions == tensor_versions(args)
    return MARK(out, path) if idle and not type(module).__module__.startswith("torch.nn.") else out


def tensor_versions(args: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the version counters of the tensors among ``args``."""
    return tuple(arg._version for arg in args if isinstance(arg, Tensor))
