"""Cost: parameters, MACs and bytes as exact polynomials in the numbers of kept coordinates.

Every term is a coefficient times a product of kept counts. A kept count belongs to a *factor*: one array of labels,
shared by all axes that carry the same labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import fx

from fxprune._base.names import fetch
from fxprune.algebra.axes import labels_of, size_of
from fxprune.algebra.channels import Ids, Mask
from fxprune.capturing.captured import TensorInfo
from fxprune.coupling.coupling import Coupling


class Cost(NamedTuple):
    """Exact cost of a model: parameters, MACs of one sample at the example's sizes, bytes of parameters and buffers."""

    params: int
    macs: int
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """``coefficient[t] * product(counts[factors[t]])``, summed into one of the three costs (``of[t]``)."""

    coefficient: Ids
    factors: Ids  # [terms, most factors]; the last count is always one, and fills the rows
    of: Ids

    def values(self, counts: Ids) -> Ids:
        """Returns each term's value, ``[terms]``, for kept counts ``[factors + 1]``."""
        product: Ids = self.coefficient * counts[self.factors].prod(axis=1)
        return product


@dataclass(frozen=True, slots=True, eq=False)
class CostModel:
    """The cost of any set of removed channels.

    Attributes:
        rows: the labels of all factors, one below the other, ``[rows, k]``.
        factor_of: the factor of each row.
        sizes: the size of each factor, and a final 1.
        terms: the polynomial.
        guards: factors that only say whether a group has any unit left; their count is 0 or 1.
        least: how many coordinates of each factor an op needs, where that is more than one; else 1.
    """

    rows: Ids
    factor_of: Ids
    sizes: Ids
    terms: Terms
    guards: Ids
    least: Ids

    def counts(self, removed: Mask) -> Ids:
        """Returns the kept coordinates of each factor and a final 1, ``[factors + 1]``, for flags ``[channels]``."""
        kept = ~removed[self.rows].any(axis=1)
        counts = np.bincount(self.factor_of[kept], minlength=len(self.sizes)).astype(np.int64)
        counts[self.guards] = np.minimum(counts[self.guards], 1)
        counts[-1] = 1
        return counts

    def of_counts(self, counts: Ids) -> Cost:
        """Returns the cost for given kept counts, ``[factors + 1]``."""
        values = self.terms.values(counts)
        return Cost(*(int(values[self.terms.of == i].sum()) for i in range(3)))

    def of(self, removed: Mask) -> Cost:
        """Returns the cost once the flagged channels, ``[channels]``, are gone."""
        return self.of_counts(self.counts(removed))

    def slopes(self, counts: Ids, cost: int) -> Ids:
        """Returns a lower bound of what one more coordinate of each factor costs, ``[factors + 1]``, at such counts.

        ``cost`` is an index into `Cost`.
        """
        chosen = self.terms.of == cost
        factors, coefficient = self.terms.factors[chosen], self.terms.coefficient[chosen]
        here = counts[factors]
        slopes = np.zeros(len(counts), np.int64)
        for j in range(factors.shape[1]):
            others = np.delete(here, j, axis=1).prod(axis=1) * coefficient
            np.add.at(slopes, factors[:, j], others)
        slopes[-1] = 0
        slopes[self.guards] = 0
        return slopes


class _Factors:
    """Numbers label arrays, equal ones alike."""

    def __init__(self, coupling: Coupling) -> None:
        self._channels = coupling.channels
        self._numbers: dict[tuple[tuple[int, ...], bytes], int] = {}
        self.arrays: list[Ids] = []
        self.guards: list[int] = []

    def number(self, labels: Ids) -> int | None:
        """Returns the number of a factor, or None if none of its coordinates can go."""
        resolved = self._channels.resolve(labels)
        if not resolved.shape[1]:
            return None
        key = (resolved.shape, resolved.tobytes())
        if key not in self._numbers:
            self._numbers[key] = len(self.arrays)
            self.arrays.append(resolved)
        return self._numbers[key]

    def term(self, total: int, labels: Iterable[Ids]) -> tuple[int, list[int]]:
        """Returns (coefficient, factor numbers) of a product that is ``total`` while nothing is removed."""
        numbers = [n for n in map(self.number, labels) if n is not None]
        return total // math.prod(len(self.arrays[n]) for n in numbers), numbers


def cost_model(
    coupling: Coupling,
    vanishing: Mapping[str, frozenset[str]] | None = None,
    covered: Callable[[str], bool] = lambda _: True,
) -> CostModel:
    """Builds the exact cost of every pruning of a captured model.

    Args:
        coupling: the labels.
        vanishing: for each group that may lose all its units, the tensors that are gone when it does.
        covered: whether a tensor counts, by its name. A product of two values counts if a layer that one of them comes from does.
    """
    factors = _Factors(coupling)
    guarded = _guards(coupling, factors, vanishing or {})
    terms: list[tuple[int, list[int], int]] = []
    for node, axes in coupling.values.items():
        if node.op != "get_attr" or axes is None:
            continue
        tensor = fetch(coupling.captured.module, str(node.target))
        info: TensorInfo = coupling.captured.info[node]
        coefficient, numbers = factors.term(math.prod(info.shape), [x for axis in axes for x in labels_of(axis)])
        numbers += guarded.get(str(node.target), [])
        if isinstance(tensor, torch.nn.Parameter) and covered(str(node.target)):
            terms.append((coefficient, numbers, 0))
        if node.target in coupling.captured.persistent:
            terms.append((coefficient * info.dtype.itemsize, numbers, 2))
    for contraction in coupling.contractions:
        if contraction.macs:
            coefficient, numbers = factors.term(
                contraction.macs, [x for axis in contraction.loops for x in labels_of(axis)]
            )
            weight = str(contraction.weight.target) if contraction.weight is not None else ""
            if any(map(covered, [weight] if weight else _behind(coupling, contraction.node))):
                terms.append((coefficient, numbers + guarded.get(weight, []), 1))
    for values in coupling.values.values():  # factors without cost: they must not become empty all the same
        for axes in values if isinstance(values, list) else [values]:
            for axis in axes or ():
                if size_of(axis):
                    for labels in labels_of(axis):
                        factors.number(labels)
    model = _pack(factors.arrays, terms, factors.guards)
    for axis, least in coupling.least:
        widest = max(labels_of(axis), key=len)
        number = factors.number(widest)
        if number is not None:
            model.least[number] = max(model.least[number], min(least, len(widest)))
    return model


def _behind(coupling: Coupling, node: fx.Node) -> set[str]:
    """Returns the tensors that the operands of an op come from, as far as the next layers."""
    layers = {c.node: str(c.weight.target) for c in coupling.contractions if c.weight is not None}
    found, seen, waiting = set[str](), set[fx.Node](), list(node.all_input_nodes)
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        if source in layers:
            found.add(layers[source])
        elif source.op == "get_attr":
            found.add(str(source.target))
        else:
            waiting += source.all_input_nodes
    return found


def _guards(coupling: Coupling, factors: _Factors, vanishing: Mapping[str, frozenset[str]]) -> dict[str, list[int]]:
    """Returns for each tensor the guards that must all stand for it to be there."""
    guarded: dict[str, list[int]] = {}
    for group in coupling.groups:
        if group.name in vanishing:
            factors.guards.append(len(factors.arrays))
            factors.arrays.append(coupling.units[group.units].reshape(-1, 1))
            for name in vanishing[group.name]:
                guarded.setdefault(name, []).append(factors.guards[-1])
    return guarded


def _pack(arrays: Sequence[Ids], terms: Sequence[tuple[int, list[int], int]], guards: Sequence[int]) -> CostModel:
    width = max((a.shape[1] for a in arrays), default=1)
    rows = [np.pad(a, ((0, 0), (0, width - a.shape[1]))) for a in arrays] or [np.zeros((0, 1), np.int64)]
    sizes = np.array([*(len(a) for a in arrays), 1], np.int64)
    most = max((len(numbers) for _, numbers, _ in terms), default=0) or 1
    padded = np.full((len(terms), most), len(arrays), np.int64)
    for i, (_, numbers, _) in enumerate(terms):
        padded[i, : len(numbers)] = numbers
    packed = Terms(np.array([c for c, _, _ in terms], np.int64), padded, np.array([of for _, _, of in terms], np.int64))
    full = sizes.copy()
    full[list(guards)] = 1
    return CostModel(
        np.concatenate(rows),
        np.repeat(np.arange(len(arrays)), sizes[:-1]),
        full,
        packed,
        np.array(guards, np.int64),
        np.ones(len(arrays), np.int64),
    )
