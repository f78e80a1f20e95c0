"""What stands in an emitted graph for a module of the original that the graph does not call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from torch import nn

from fxprune._base.errors import CallError, FxpruneWarning

F = TypeVar("F", bound=Callable[..., Any])

_HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "register_backward_hook",
)


class Place(nn.Module):
    """A block of the original in a graph: it holds tensors and layers by their names, and is never called.

    A hook on it is registered, with a warning that nothing will call it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Says that a graph has no blocks to call.

        Raises:
            CallError: always.
        """
        raise CallError(
            "expected a call of the whole model: a graph has the tensors of this module, not its computation; "
            "fxprune.compile(..., form='module') or fxprune.restore(pruned, model) gives a model whose blocks can be called"
        )


def _telling(register: F) -> F:
    def registered(self: Place, *args: Any, **kwargs: Any) -> Any:
        paths = ", ".join(name for name, _ in self.named_children()) or "tensors alone"
        warnings.warn(
            f"{register.__name__}: a graph does not call this module (it holds {paths}), so nothing will call the hook: put it "
            "on a layer that the graph calls, or take the model in its own class, by fxprune.compile(..., form='module') or "
            "fxprune.restore(pruned, model)",
            FxpruneWarning,
            stacklevel=2,
        )
        return register(self, *args, **kwargs)

    registered.__name__, registered.__doc__ = register.__name__, register.__doc__
    return registered  # type: ignore[return-value]


for _name in _HOOKS:
    setattr(Place, _name, _telling(getattr(nn.Module, _name)))


def as_places(root: nn.Module) -> None:
    """Makes places of the plain modules below a root."""
    for module in root.modules():
        if type(module) is nn.Module and module is not root:
            module.__class__ = Place
