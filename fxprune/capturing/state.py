"""The model's tensors by name: which are tied, which persist, and how they hang in the captured module."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from fxprune._base.names import place


@dataclass(frozen=True, slots=True)
class State:
    """The parameters and buffers of a model, each tensor once.

    Attributes:
        tensors: Every name, tied ones included, to its tensor.
        canonical: Every name to the first name of the same tensor.
        persistent: Names of parameters and of buffers that are in the state dict.
        parameters: Names of parameters.
        modules: Every path of a module to its first path.
    """

    tensors: dict[str, Tensor]
    canonical: dict[str, str]
    persistent: frozenset[str]
    parameters: frozenset[str]
    modules: dict[str, str]

    @property
    def ties(self) -> dict[str, str]:
        """Every other name of a tied tensor to its canonical name."""
        return {name: first for name, first in self.canonical.items() if name != first}


def read_state(model: nn.Module) -> State:
    """Return the model's parameters and buffers, with ties recovered by tensor identity."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    fleeting = {
        f"{path}.{name}" if path else name
        for path, module in model.named_modules(remove_duplicate=False)
        for name in module._non_persistent_buffers_set
    }
    tensors: dict[str, Tensor] = {**parameters, **buffers}
    first: dict[int, str] = {}
    canonical = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
    owner: dict[int, str] = {}
    modules = {path: owner.setdefault(id(m), path) for path, m in model.named_modules(remove_duplicate=False)}
    return State(
        tensors, canonical, frozenset(parameters) | (frozenset(buffers) - fleeting), frozenset(parameters), modules
    )


def hang(tensors: Iterable[tuple[str, Tensor]], persistent: frozenset[str]) -> nn.Module:
    """Return a tree of plain modules that holds the given tensors, ``[...]``, themselves under their dotted names."""
    root = nn.Module()
    for name, tensor in tensors:
        place(root, name, tensor, persistent=name in persistent)
    return root
