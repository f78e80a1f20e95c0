"""Operations: the distinct layer shapes of a model, and what runs one of them alone at any width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.runtimes.setting import Setting


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a dimension: a coefficient times some of the operation's widths.

    Attributes:
        coefficient: what is not removable.
        widths: positions among the operation's widths.
    """

    coefficient: int
    widths: tuple[int, ...] = ()

    def at(self, widths: Sequence[int]) -> int:
        """Returns the size at given widths."""
        return self.coefficient * math.prod(widths[i] for i in self.widths)


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor argument: its sizes and dtype."""

    sizes: tuple[Size, ...]
    dtype: torch.dtype

    def elements(self, widths: Sequence[int]) -> int:
        """Returns the number of elements at given widths."""
        return math.prod(size.at(widths) for size in self.sizes)

    def tensor(self, widths: Sequence[int], device: str) -> Tensor:
        """Returns one, ``[*sizes]``, with random values, or with zeros if it holds integers (indices: all are valid)."""
        shape = [size.at(widths) for size in self.sizes]
        if self.dtype.is_floating_point:
            own = torch.Generator(device).manual_seed(0)  # the user's stays where it is
            return torch.rand(shape, device=device, generator=own).to(self.dtype)
        return torch.zeros(shape, dtype=self.dtype, device=device)


@dataclass(frozen=True)
class Operation:
    """An operator with its arguments, all but the widths fixed: what layers of one shape have in common.

    Attributes:
        name: the operator, e.g. ``aten.conv2d.default``.
        arguments: by schema name: `Operand`, `Size` or a literal, in tuples.
        results: what it returns.
        widths: the kept counts that its sizes depend on, in the full model.
        contracts: whether it sums products: its time grows with each width, not with the memory that it touches alone.
    """

    name: str
    arguments: tuple[tuple[str, Any], ...]
    results: tuple[Operand, ...]
    widths: tuple[int, ...]
    contracts: bool

    @cached_property
    def key(self) -> str:
        """The operation as text, the same in every process."""
        return repr((self.name, self.arguments, self.widths))

    def runner(self, widths: Sequence[int], setting: Setting) -> Callable[[], Any]:
        """Returns what runs it once at given widths, on tensors of its own."""
        target: Any = reduce(getattr, self.name.split("."), torch.ops)
        arguments = {name: _value(value, widths, setting.device) for name, value in self.arguments}
        schema = target._schema.arguments
        args = [arguments[a.name] for a in schema if not a.kwarg_only]
        kwargs = {a.name: arguments[a.name] for a in schema if a.kwarg_only}
        return lambda: target(*args, **kwargs)

    def work(self, widths: Sequence[int]) -> float:
        """Returns how much there is to do, as a share of what the full widths ask for.

        Products grow with each width, all else with the elements that are read and written.
        """
        if self.contracts:
            return math.prod(w / full for w, full in zip(widths, self.widths, strict=True))
        operands = [x for x in pytree.tree_leaves((self.results, self.arguments)) if isinstance(x, Operand)]
        left, whole = (sum(operand.elements(at) for operand in operands) for at in (widths, self.widths))
        return left / max(whole, 1)


def _value(value: Any, widths: Sequence[int], device: str) -> Any:
    if isinstance(value, Operand):
        return value.tensor(widths, device)
    if isinstance(value, Size):
        return value.at(widths)
    return [_value(item, widths, device) for item in value] if isinstance(value, tuple) else value


def literal(value: Any, convert: Callable[[Any], Any]) -> Any:
    """Returns an argument with ``convert`` applied to its leaves, lists as tuples."""
    if isinstance(value, (list, tuple)):
        return tuple(literal(item, convert) for item in value)
    return convert(value)
