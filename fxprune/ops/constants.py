"""Constants: what a layer without inputs leaves, one value for each channel, and what ops make of it.

Where an op has such an operand, all its others are constants as well, or made of parameters alone. Its declaration says
where the channels lie in the result (`Rule.moves`, `Rule.constant`); here is what those rules ask, and those that many share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from torch import fx

from fxprune.capturing.normalize.layout import dims_of
from fxprune.capturing.shapes import TensorInfo

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Constants:
    """The values that are one constant for each channel, as far as the graph was followed.

    Attributes:
        info: what each node is.
        found: node -> the dimension of its channels.
    """

    info: Mapping[fx.Node, Any]
    found: Mapping[fx.Node, int]

    def shape(self, node: Any) -> Shape | None:
        """Returns the shape of a value, of the first one of several; None if it is no tensor."""
        info = self.info.get(node)
        info = info[0] if isinstance(info, (list, tuple)) and info else info
        return info.shape if isinstance(info, TensorInfo) else None

    def rank(self, node: Any) -> int:
        """Returns the number of dimensions of a value that is a tensor."""
        shape = self.shape(node)
        assert shape is not None, node
        return len(shape)

    def only(self, node: fx.Node, operand: Any) -> int | None:
        """Returns where the channels of an operand lie, if it is the only one that is a constant."""
        return self.found[operand] if [s for s in node.all_input_nodes if s in self.found] == [operand] else None

    def first(self, node: fx.Node, a: SimpleNamespace) -> int:
        """Returns where the channels of the first operand lie, which is a constant."""
        return self.found[next(iter(vars(a).values()))]


def kept(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """The channels stay where they are, counted from the end: what pools, resizes or repeats the other dimensions."""
    return c.first(node, a) + c.rank(node) - c.rank(next(iter(vars(a).values())))


def beside(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """Other dimensions than the channels' are cut, rolled or flipped."""
    dim, rank = c.first(node, a), c.rank(node)
    touched = dims_of(a.dims if hasattr(a, "dims") else a.dim, rank)
    return dim if touched and dim not in touched else None  # rolled without dims it is rolled flat


def elementwise(c: Constants, node: fx.Node, a: SimpleNamespace) -> int | None:
    """The channels of all constants lie one above the other, and parameters vary along no other dimension."""
    sources = [s for s in node.all_input_nodes if c.shape(s) is not None]
    from_end = {c.found[s] - c.rank(s) for s in sources if s in c.found}
    if len(from_end) > 1:
        return None
    dim = c.rank(node) + from_end.pop()
    for source in sources:
        own = c.shape(source) or ()
        offset = c.rank(node) - len(own)
        if source not in c.found and any(size != 1 and i + offset != dim for i, size in enumerate(own)):
            return None
    return dim
