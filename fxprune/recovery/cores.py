"""Cores: what stays of queries makes up for what goes, by a factor for each head and unit, where no other basis will do.

Between a layer and a product of two activations there may be what only scaling goes through, such as rotary positions, whose pairs of
channels are one unit. The logits are sums of ``f_u``, over a unit's channels of query times key; least squares gives the kept units
``g = 1 + F_KK^-1 F_KP 1`` with ``F_uv = E[f_u f_v]``, in which the second moments of both sides are multiplied. (CORP refits a whole
core between what is kept; of that, a layer before rotary positions can hold the diagonal.)

What goes through is found by trying: each unit's outputs are scaled by a factor of its own, and told by it wherever they arrive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.algebra.axes import explicit
from fxprune.ops.tracer import Contraction
from fxprune.recovery.consumers import Replacements
from fxprune.recovery.moments import Moments
from fxprune.recovery.products import pairs_of, products, shifted_side
from fxprune.recovery.protocol import RecoveryContext
from fxprune.recovery.regression import ridge_solve
from fxprune.recovery.spreads import Maker, makers
from fxprune.twin.interpreter import Run

#: Units are told apart by factors that are powers of this, and not more than so many of one layer.
_STEP, _MOST = 1.0001, 100_000
#: How far a factor may lie from its power, as a share of a step; and how small a value may be beside the others to show its factor.
_NEAR, _SMALL = 0.1, 1e-3
#: Stands for places that show no unit's factor: nothing is there, or something else.
_NOTHING, _OTHER = -1, -2


@dataclass(frozen=True, slots=True, eq=False)
class _Traced:
    """A layer whose outputs are followed.

    Attributes:
        maker: the layer.
        unit: a number for each output, the same for those of one head and unit, ``[outputs]``.
        kept: which of these stay, ``[units]``.
        uses: how often each is seen in a product, and otherwise, ``[2, units]``.
    """

    maker: Maker
    unit: Tensor
    kept: Tensor
    uses: Tensor

    @property
    def factors(self) -> Tensor:
        """What each output is multiplied by, ``[outputs]``: never 1, as what others make is."""
        found: Tensor = _STEP ** (self.unit.double() + 1)
        return found

    def seen(self, value: Tensor, scaled: Tensor) -> Tensor:
        """Returns which unit each place of a value shows, ``[...]``, by what became of it as units were scaled."""
        whole, ratio = value.double(), scaled.double() / value.double()
        steps = ratio.clamp_min(0).log() / math.log(_STEP) - 1
        near = (steps - steps.round()).abs() < _NEAR
        unit = torch.where(near & (steps.round() >= 0) & (steps.round() < len(self.kept)), steps.round(), _OTHER)
        small = whole.abs() <= _SMALL * whole.abs().mean()
        return torch.where(small | ratio.isnan(), _NOTHING, unit).long()


@dataclass(frozen=True, slots=True, eq=False)
class _Head:
    """What one head's channels show, ``[channels]``, and their moments."""

    units: Tensor
    moments: Moments = field(default_factory=Moments)

    def second(self, centred: bool) -> Tensor:
        """Returns the second moments, ``[channels, channels]``, about the mean or about zero."""
        m = self.moments
        found: Tensor = m.about(m.mean_x if centred else 0 * m.mean_x, m.mean_t)[0][0] / m.count
        return found


@dataclass(frozen=True, slots=True, eq=False)
class _Met:
    """A product of two followed values.

    Attributes:
        traced: the layers that make them.
        heads: of each side, by a number that tells heads apart: the unit of the first channel.
        pairs: the heads that meet.
    """

    traced: tuple[_Traced, _Traced]
    heads: tuple[dict[int, _Head], dict[int, _Head]] = field(default_factory=lambda: ({}, {}))
    pairs: set[tuple[int, int]] = field(default_factory=set)


def refitted(
    context: RecoveryContext, base: Mapping[str, Tensor], done: Set[fx.Node]
) -> tuple[dict[str, Tensor], set[fx.Node]]:
    """Returns tensors of layers that make up by factors, ``[...]`` by name, and the products that they do it for.

    Args:
        context: what goes of which model.
        base: tensors to begin with.
        done: products that need nothing more.
    """
    wanted = [c for c in products(context) if c.node not in done]
    layers = [t for maker in makers(context.selection).values() if (t := _traced(context, maker)) is not None]
    search = _Search(context, wanted, layers)
    for batch in islice(context.inputs, 1 if wanted and layers else 0):
        search.through(batch)
    found = bool(search.met)
    search = _Search(context, wanted, [_apart(layer) for layer in layers])
    for batch in context.inputs if found else ():
        search.through(batch)
    changed, reached, names = Replacements(context.selection.coupling, base), set[fx.Node](), set[str]()
    info = context.selection.coupling.captured.info
    for node, met in search.met.items():
        for side in (0, 1):
            if factors := _factors(met, side, shifted_side(node, info), context.ridge):
                names |= _scale(changed, met.traced[side], factors)
                reached.add(node)
                break
    return {name: changed.tensors[name] for name in names}, reached


class _Search:
    """Follows the outputs of layers, scaled unit by unit, to the products of two of them.

    Args:
        context: what goes of which model.
        wanted: the products.
        layers: those that are followed.
    """

    def __init__(self, context: RecoveryContext, wanted: Sequence[Contraction], layers: Sequence[_Traced]) -> None:
        self.wanted, self.traced = {c.node: c for c in wanted}, {layer.maker.node: layer for layer in layers}
        self.met: dict[fx.Node, _Met] = {}
        self._run = Run(context.dense, torch.float64)  # factors lie close together
        self._sums = {c.node for c in context.selection.coupling.contractions}
        self._counted = False
        self._end = next((n for n in reversed(self._run.graph.nodes) if n in self.wanted), None)

    def through(self, batch: Sequence[Tensor]) -> None:
        """Takes in a batch of flat inputs."""
        scaled: dict[fx.Node, tuple[_Traced, Tensor]] = {}
        for node, values in self._run.steps(batch):
            sources = [source for source in node.all_input_nodes if source in scaled]
            if sources and not isinstance(values[node], int):
                met = self._meet(node, values, scaled)
                rest = [source for source in sources if source not in met]
                if not met and self._goes_on(node, values[node], [scaled[n][0] for n in rest]):
                    moved = self._run.step(node, {**values, **{n: scaled[n][1] for n in rest}}, iter(()))
                    scaled[node] = scaled[rest[0]][0], moved
                else:
                    self._read(values, {n: scaled[n] for n in rest})
            if node in self.traced:
                layer, value = self.traced[node], values[node]
                places = value.dim() - 1 if layer.maker.affine.last else 1
                shape = [1] * value.dim()
                shape[places] = -1
                scaled[node] = layer, value * layer.factors.to(value).reshape(shape)
            for source in self._run.last.get(node, ()):
                scaled.pop(source, None)
            if self._counted and node is self._end:
                break
        self._counted = True

    def _goes_on(self, node: fx.Node, value: Any, layers: Sequence[_Traced]) -> bool:
        """Returns whether an op may be only something that scaling goes through, of one layer."""
        parts = value if isinstance(value, (list, tuple)) else [value]
        floating = all(isinstance(part, Tensor) and part.is_floating_point() for part in parts)
        return node not in self._sums and floating and len(set(map(id, layers))) == 1

    def _read(self, values: Mapping[fx.Node, Any], sources: Mapping[fx.Node, tuple[_Traced, Tensor]]) -> None:
        """Notes units that an op does with what nobody knows."""
        for source, (layer, scaled) in sources.items() if not self._counted else ():
            seen = layer.seen(values[source], scaled).unique().cpu()
            layer.uses[1, slice(None) if (seen == _OTHER).any() else seen[seen >= 0]] += 1

    def _meet(
        self, node: fx.Node, values: Mapping[fx.Node, Any], scaled: Mapping[fx.Node, tuple[_Traced, Tensor]]
    ) -> set[fx.Node]:
        """Takes in a product, if both its operands are followed ones; returns these."""
        contraction = self.wanted.get(node)
        if contraction is None or contraction.other is None:
            return set()
        places = ((contraction.source, contraction.dim), contraction.other)
        if any(n not in scaled for n, _ in places) or places[0][0] is places[1][0]:
            return set()
        layers = (scaled[places[0][0]][0], scaled[places[1][0]][0])
        seen = [layer.seen(values[n], scaled[n][1]) for layer, (n, _) in zip(layers, places, strict=True)]
        if any((units == _OTHER).any() for units in seen):
            return set()
        met = self.met.setdefault(node, _Met(layers))
        for layer, heads, units, (n, dim) in zip(layers, met.heads, seen, places, strict=True):
            if not _gathered(heads, units.movedim(dim, -1).flatten(0, -2), values[n].movedim(dim, -1).flatten(0, -2)):
                return set()
            layer.uses[0, units[units >= 0].unique().cpu()] += not self._counted
        if not self._counted:
            firsts = [units.select(dim, 0) for units, (_, dim) in zip(seen, places, strict=True)]
            pairs = pairs_of(self._run, contraction, values, firsts)
            met.pairs.update((a, b) for a, b in ([] if pairs is None else pairs.tolist()) if a >= 0 and b >= 0)
        return {n for n, _ in places}


def _traced(context: RecoveryContext, maker: Maker) -> _Traced | None:
    """Returns a layer whose units can be told apart; None for one of too many."""
    coupling = context.selection.coupling
    axis = coupling.parameter(maker.weight)[maker.affine.outward]
    labels, kept = explicit(axis), context.selection.slicer.mask(axis)
    if labels is None or kept is None:
        return None
    units, unit = np.unique(coupling.channels.resolve(labels), axis=0, return_inverse=True)
    if len(units) > _MOST:
        return None
    stays = np.ones(len(units), bool)
    stays[unit.reshape(-1)[~kept]] = False
    return _Traced(
        maker,
        torch.from_numpy(unit.reshape(-1)),
        torch.from_numpy(stays),
        torch.zeros(2, len(units), dtype=torch.int64),
    )


def _apart(layer: _Traced) -> _Traced:
    """Returns a layer of which units that are seen in several products, or on both sides of one, are as many units, in order.

    A layer that makes queries and keys has both under the same labels; which outputs are which, tracing them shows again.
    """
    unit, kept, times = layer.unit.clone(), [layer.kept], layer.uses[0]
    for each in torch.nonzero(times > 1).flatten().tolist():
        for part in torch.nonzero(layer.unit == each).flatten().tensor_split(int(times[each]))[1:]:
            unit[part] = sum(map(len, kept))
            kept.append(layer.kept[each : each + 1])
    stays = torch.cat(kept)
    return replace(layer, unit=unit, kept=stays, uses=torch.zeros(2, len(stays), dtype=torch.int64))


def _gathered(heads: dict[int, _Head], units: Tensor, vectors: Tensor) -> bool:
    """Adds vectors to the moments of their heads; returns whether all of a head show the same units."""
    clear = (units >= 0).all(dim=1)
    units, vectors = units[clear], vectors[clear]
    for key in units[:, 0].unique().tolist():
        mine = units[:, 0] == key
        head = heads.setdefault(key, _Head(units[mine][0]))
        if not (units[mine] == head.units).all():
            return False
        head.moments.add(vectors[mine][:, None])
    return True


def _factors(met: _Met, side: int, shifted: int | None, ridge: float) -> dict[int, float]:
    """Returns a factor for each unit that stays; none where one of them is read otherwise, or the sides lose other channels."""
    own, other = met.traced[side], met.traced[1 - side]
    found: dict[int, float] = {}
    for key, head in met.heads[side].items():
        partners = [met.heads[1 - side].get(pair[1 - side]) for pair in met.pairs if pair[side] == key]
        here = head.units.cpu()
        kept = own.kept[here]
        alone = (own.uses[0, here] == 1).all() and not own.uses[1, here].any()
        if kept.all() or not kept.any() or not partners:
            continue
        known = [x for x in partners if x is not None and torch.equal(other.kept[x.units.cpu()], kept)]
        if not alone or len(known) < len(partners):
            return {}
        both = head.second(side == shifted) * sum(x.second(1 - side == shifted) for x in known)
        if not both.isfinite().all():
            return {}
        units, place = head.units.unique(return_inverse=True)
        sums = torch.nn.functional.one_hot(place).to(both)
        f, stays = sums.mT @ both @ sums, own.kept[units.cpu()].to(both.device)
        gain = 1 + ridge_solve(f[stays][:, stays], f[~stays][:, stays].sum(dim=0, keepdim=True), ridge)[0]
        found |= dict(zip(units[stays].tolist(), gain.tolist(), strict=True))
    return found


def _scale(changed: Replacements, layer: _Traced, factors: Mapping[int, float]) -> set[str]:
    """Multiplies outputs of a layer by the factors of their units; returns the tensors that changed."""
    each = torch.ones(len(layer.unit), dtype=torch.float64)
    for unit, factor in factors.items():
        each[layer.unit == unit] = factor
    for name, dim in layer.maker.tensors.items():
        value = changed.value(name)
        new = value.double() * each.to(value.device).reshape(-1, *[1] * (value.dim() - 1 - dim))
        changed.tensors[name] = new.to(value.dtype)
    return set(layer.maker.tensors)
