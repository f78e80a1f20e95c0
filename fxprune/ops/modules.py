"""Calls that are modules again: which ``torch.nn`` class an op stands for, and how to build it.

A recipe never touches weights: it builds a module on the meta device from the sizes of the (sliced) tensors and the
literals of the call, and asks the original module only for what a call in eval mode cannot say (``momentum``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Site:
    """A call of an op on tensors that one module of the original owns.

    Attributes:
        owner: the original module; read only.
        values: every argument of the op by its schema name, defaults included.
        tensors: the sliced tensors by attribute name of the owner (``weight``, ``running_mean``); absent means None.
        rank: number of dimensions of the op's result, if it is known.
    """

    owner: nn.Module
    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    rank: int | None

    def sizes(self, name: str, count: int) -> tuple[int, ...]:
        """Returns an int-list argument of the op as ``count`` ints: ``2`` and ``[2]`` mean ``[2, 2]``."""
        value = self.values[name]
        sizes = (value,) if isinstance(value, int) else tuple(value)
        return sizes * count if len(sizes) == 1 else sizes


@dataclass(frozen=True, slots=True)
class Layer:
    """How the calls of one op on somebody's parameters become modules.

    Attributes:
        owners: classes of the original module that the op may stand for.
        build: returns the module on the meta device, or None if no plain module does what the call does.
        roles: argument of the op -> attribute of the module; a list of tensors goes by the owner's own list of names.
        inputs: arguments of the op that the module's forward takes, in its order.
        agree: attributes in which a call that borrows the owner's parameters must agree with the owner to be its call.
        borrow: whether a call outside the owner's forward can be the owner's call at all.
    """

    owners: tuple[type[nn.Module], ...]
    build: Callable[[Site], nn.Module | None]
    roles: Mapping[str, str]
    inputs: tuple[str, ...] = ("input",)
    agree: tuple[str, ...] = ()
    borrow: bool = True


@dataclass(frozen=True, slots=True)
class Noise:
    """How an op that is random in training, and captured in eval mode, becomes a module.

    Attributes:
        owners: plain classes of the original module, in order of preference.
        flag: the argument that says "training"; a call with True is random in eval mode as well and stays.
        fields: constructor arguments, by the same name in the op's schema and in the original module.
        functional: the module for a call that no module of the original makes.
    """

    owners: tuple[type[nn.Module], ...]
    flag: str
    fields: tuple[str, ...]
    functional: type[nn.Module]
    input: str = "input"


def affine(*statistics: str) -> dict[str, str]:
    """Returns the roles of weight and bias, and of others, under their own names."""
    return {name: name for name in ("weight", "bias", *statistics)}
