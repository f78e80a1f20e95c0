"""Affine ops: what multiplies a value by a weight and may add a bias, in whichever way it is spelled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

from torch import fx

from fxprune.coupling.coupling import Coupling
from fxprune.ops.constants import Constants
from fxprune.ops.registry import bind, is_kind, rule_at
from fxprune.ops.tracer import Contraction


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """A linear layer, a convolution, or a product with a matrix that is a parameter.

    Attributes:
        arguments: the op's, by name.
        input: the value that is multiplied.
        bias: what the op itself adds.
        last: channels lie last, in input and output; of convolutions they lie second.
        inward: the weight is ``[columns, outputs]``, as of ``x @ weight``; elsewhere outputs come first.
    """

    arguments: SimpleNamespace
    input: fx.Node
    bias: fx.Node | None
    last: bool = True
    inward: bool = False

    @property
    def outward(self) -> int:
        """The dimension of the weight along which outputs lie."""
        return int(self.inward)


def affine_of(coupling: Coupling, contraction: Contraction) -> Affine | None:
    """Returns what an op does with a weight; None if that is something else."""
    node, weight, info = contraction.node, contraction.weight, coupling.captured.info
    if weight is None or is_kind(node, "recurrent"):
        return None
    a, sizes = bind(node), info[weight].shape
    if is_kind(node, "linear", "conv"):
        return _plain(coupling, Affine(a, a.input, a.bias, is_kind(node, "linear")), sizes)
    rule, rank = rule_at(node), len(info[contraction.source].shape)
    if rule is None or rule.kind or rule.empty is None or len(sizes) != 2 or contraction.dim != rank - 1:
        return None
    found = rule.empty(Constants(info, {}), node, a)
    if found is None or found[0] != rank - 1 or len(info[node].shape) != rank or getattr(a, "alpha", 1) != 1:
        return None
    if hasattr(a, "equation") and not _in_order(a.equation):
        return None
    return _plain(coupling, Affine(a, contraction.source, found[1], inward=contraction.weight_dim == 0), sizes)


def _plain(coupling: Coupling, affine: Affine, sizes: Sequence[int]) -> Affine | None:
    """Returns it, unless what it adds is not one value for each output."""
    if affine.bias is None or len(sizes) < 2 or coupling.captured.info[affine.bias].shape == (sizes[affine.outward],):
        return affine
    return None


def _in_order(equation: str) -> bool:
    """Returns whether all that is not summed lies in the result of an einsum as in its first operand."""
    left, _, out = equation.replace(" ", "").partition("->")
    return left.split(",")[0][:-1] == out[:-1]


def added_to(coupling: Coupling, node: fx.Node, affine: Affine) -> tuple[fx.Node, str] | None:
    """Returns the addition of a vector that alone reads what a product gives, and that vector's name: a bias that is spelled out."""
    info, first = coupling.captured.info, node
    while affine.last and affine.bias is None and len(node.users) == 1:
        user = next(iter(node.users))
        if is_kind(user, "reshape") and info[user].shape[-1:] == info[first].shape[-1:]:
            node = user
            continue
        if not is_kind(user, "addition"):
            return None
        a = bind(user)
        other = a.other if a.self is node else a.self
        if not isinstance(other, fx.Node) or a.alpha != 1 or info[other].shape != info[first].shape[-1:]:
            return None
        name = own_parameter(coupling, other)
        return None if name is None else (user, name)
    return None


def own_parameter(coupling: Coupling, node: fx.Node | None) -> str | None:
    """Returns the name of a tensor that this op alone uses and that may be changed."""
    if node is None or node.op != "get_attr" or len(node.users) > 1 or node.target not in coupling.captured.persistent:
        return None
    return str(node.target)
