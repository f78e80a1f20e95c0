"""Which value of the graph a tensor in the original's forward is: that of the same shape that holds the same numbers."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from fxprune._base.graphs import Reading
from fxprune._base.pages import touched, written
from fxprune.capturing.captured import Captured

#: Numbers of a tensor that are looked at one by one; beyond, only their sum counts.
_LOOKED_AT = 1 << 16
_CLOSE = 1e-3
_PHASES = (1.7, 0.37, 0.0113)

Print = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Value:
    """A value of the graph: a node, or one of its several results."""

    node: str
    part: int | None = None


@dataclass(slots=True)
class Values:
    """All values of one run of the graph, by shape.

    Attributes:
        names: what they are called, and where they were made.
        prints: what shows which is which.
        even: of some nodes, the dimensions along which all that they hold is the same.
    """

    names: dict[tuple[int, ...], list[tuple[Value, str]]] = field(default_factory=dict)
    prints: dict[tuple[int, ...], list[Print]] = field(default_factory=dict)
    even: dict[str, frozenset[int]] = field(default_factory=dict)

    def add(self, value: Value, module: str, tensor: Tensor) -> None:
        """Notes a value, ``[...]``, made in the forward of a module."""
        shape = tuple(tensor.shape)
        self.names.setdefault(shape, []).append((value, module))
        self.prints.setdefault(shape, []).append(_print_of(tensor))

    def like(self, tensor: Tensor) -> list[tuple[Value, str]]:
        """Returns the values that hold what a tensor, ``[...]``, does, with the modules that made them."""
        shape = tuple(tensor.shape)
        if shape not in self.names:
            return []
        close = np.abs(np.stack(self.prints[shape]) - _print_of(tensor)).max(axis=1) < _CLOSE
        return [self.names[shape][int(i)] for i in np.flatnonzero(close)]


def values_of(captured: Captured, model: nn.Module, watched: Set[str] = frozenset()) -> Values:
    """Returns the values of the graph at the example, with the tensors of ``model``, a copy of the captured one.

    Args:
        captured: the captured model.
        model: whose tensors are taken.
        watched: names of the nodes to be told of whether they are even.
    """
    run = _Run(captured, {**dict(model.named_parameters()), **dict(model.named_buffers())}, watched)
    with torch.no_grad():
        run.run(*captured.example)
    return run.values


def varied(model: nn.Module) -> None:
    """Makes constant tensors (biases of zero, gains of one) different, so that no two values are equal by chance."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            touched(tensor)
            if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
                noise = torch.rand(tensor.shape, generator=generator).to(tensor)
                written(tensor, tensor + (0.1 * tensor.abs().clamp_min(0.1)) * (noise + 0.1))


def _is_even(tensor: Tensor, dim: int) -> bool:
    return bool((tensor == tensor.narrow(dim, 0, 1)).all()) if tensor.numel() else True


def _print_of(tensor: Tensor) -> Print:
    """Returns a few numbers, ``[4]``, that two tensors of one shape share only if they are the same but for rounding."""
    flat = tensor.detach().cpu()
    flat = (torch.view_as_real(flat.resolve_conj()) if flat.is_complex() else flat).reshape(-1).double()
    flat = torch.nan_to_num(flat, 0.0, 1e6, -1e6).clamp(-1e6, 1e6)
    if not flat.numel():
        return np.zeros(1 + len(_PHASES))
    largest = float(flat.abs().max()) or 1.0
    head = flat[:_LOOKED_AT] / largest
    scale = len(head) ** 0.5
    seen = [float((head * wave[: len(head)]).sum()) / scale for wave in _waves()]
    return np.array([float(flat.sum()) / largest / len(flat) ** 0.5, *seen])


@functools.cache
def _waves() -> list[Tensor]:
    places = torch.arange(1, _LOOKED_AT + 1, dtype=torch.float64)
    return [torch.cos(places * phase) for phase in _PHASES]


class _Run(Reading):
    def __init__(self, captured: Captured, tensors: Mapping[str, Tensor], watched: Set[str]) -> None:
        super().__init__(captured.module, garbage_collect_values=True)
        self.watched = watched
        self.tensors = {name: tensor for name, tensor in tensors.items() if name not in captured.folded}
        self.values = Values()

    def fetch_attr(self, target: str) -> Any:
        found = self.tensors.get(target)
        return super().fetch_attr(target) if found is None else found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        module = n.meta.get("module") or ""
        if isinstance(result, Tensor):
            touched(result)
            self.values.add(Value(n.name), module, result)
            if n.name in self.watched:
                self.values.even[n.name] = frozenset(dim for dim in range(result.dim()) if _is_even(result, dim))
        elif isinstance(result, (tuple, list)) and n.op != "output":
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self.values.add(Value(n.name, i), module, part)
        return result
