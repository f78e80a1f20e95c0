"""Where IPPRO puts its offset: the filters of each layer that makes units, and the values around its activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from fxprune._base.names import fetch
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import ParameterAxis
from fxprune.ops.registry import bind, is_kind

#: Layers whose channels stand last; a convolution's stand in front of its positions.
_LAST = ("linear", "embedding")


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """One use of a target layer.

    Attributes:
        x: the target layer's output.
        psi: the output of the elementwise op on ``x``; ``x`` itself where there is none, which stands for the identity.
        dim: the channel dimension of ``x``, from the end.
    """

    x: fx.Node
    psi: fx.Node
    dim: int


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """The filters of one layer that makes units, and where its output can be read.

    Attributes:
        axes: the parameter axes of the layer's weight along which a filter is a coordinate; all of one dimension.
        size: the number of coordinates.
        filters: (parameter, dimension): a filter is what stands at its coordinate in all of them.
        sites: every use of the layer; none where a parameter is used as it stands.
    """

    axes: tuple[ParameterAxis, ...]
    size: int
    filters: tuple[tuple[str, int], ...]
    sites: tuple[Site, ...]


def find_targets(coupling: Coupling, kind: str) -> tuple[Target, ...]:
    """Returns one target for each parameter dimension that makes units.

    Args:
        coupling: of the captured graph.
        kind: ``"gamma"`` or ``"gamma_beta"`` for the scale (and shift) of the batch norm behind a layer, where every
            use of the layer has one; ``"weight"`` for the layer's own weight throughout.
    """
    nodes = {str(n.target): n for n in coupling.values if n.op == "get_attr"}
    by_dimension: dict[tuple[str, int], list[ParameterAxis]] = {}
    for axis in coupling.axes:
        if axis.makes and np.isin(axis.labels, coupling.units).any():
            by_dimension.setdefault((axis.tensor, axis.dim), []).append(axis)
    return tuple(_target(coupling, nodes[name], dim, tuple(axes), kind) for (name, dim), axes in by_dimension.items())


def _target(coupling: Coupling, weight: fx.Node, dim: int, axes: tuple[ParameterAxis, ...], kind: str) -> Target:
    name, size = str(weight.target), len(axes[0].labels)
    uses = list(_uses(coupling, weight, dim))
    norms = [norm for node, _ in uses if (norm := _norm_behind(node)) is not None]
    if kind != "weight" and uses and len(norms) == len(uses):
        parts = ("weight", "bias") if kind == "gamma_beta" else ("weight",)
        names = dict.fromkeys(str(getattr(bind(norm), part).target) for norm in norms for part in parts)
        return Target(axes, size, tuple((name, 0) for name in names), tuple(_site(coupling, n, 1) for n in norms))
    return Target(axes, size, ((name, dim),), tuple(_site(coupling, node, at) for node, at in uses))


def _uses(coupling: Coupling, weight: fx.Node, dim: int) -> Iterator[tuple[fx.Node, int]]:
    """Yields (layer's op, channel dimension of its output) of every use of a weight that is a layer's weight."""
    rank = fetch(coupling.captured.module, str(weight.target)).dim()
    for user in weight.users:
        if not is_kind(user, *_LAST, "conv", "conv_transpose") or bind(user).weight is not weight:
            continue
        makes = 1 if is_kind(user, "embedding", "conv_transpose") else 0
        if dim == makes:
            yield user, -1 if is_kind(user, *_LAST) else 1 - rank


def _norm_behind(node: fx.Node) -> fx.Node | None:
    """Returns the batch norm that alone reads a layer's output, if it has a scale and a shift of its own."""
    reader = _only_user(node)
    if reader is None or not is_kind(reader, "batch_norm"):
        return None
    a = bind(reader)
    own = all(isinstance(p, fx.Node) and p.op == "get_attr" for p in (a.weight, a.bias))
    return reader if own and a.input is node else None


def _site(coupling: Coupling, x: fx.Node, dim: int) -> Site:
    if dim > 0:
        dim -= len(coupling.captured.info[x].shape)
    return Site(x, _activation(coupling, x), dim)


def _activation(coupling: Coupling, x: fx.Node) -> fx.Node:
    """Returns the op that alone reads ``x`` and maps it element by element, else ``x``."""
    reader = _only_user(x)
    if reader is None or reader.op != "call_function" or reader.all_input_nodes != [x]:
        return x
    dtype = getattr(coupling.captured.info.get(reader), "dtype", torch.bool)
    return reader if is_kind(reader, "elementwise", "addition") and dtype.is_floating_point else x


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
