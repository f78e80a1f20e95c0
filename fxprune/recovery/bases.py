"""Attention in closed form: the channels of a head in the basis in which those that go matter least.

Queries and keys are only multiplied, values only mixed over places and read: each head may give its channels in any basis, and
the model stays the same. What goes is then the smallest singular directions, of the logits ``q . k`` (the bilinear form, whitened
by the second moments of both sides) or of what the reader makes of the values (its weight, whitened; for heads that share their
values by the mean of their moments). By these moments, which let each query meet each key whatever its sequence, no other choice of
so many channels leaves less error (Eckart and Young 1936; of attention, MoDeGPT, arXiv 2408.09632).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from fxprune.recovery.consumers import Consumer, Replacements
from fxprune.recovery.flows import Flows, Meeting, Product
from fxprune.recovery.moments import Moments
from fxprune.recovery.products import shifted_side
from fxprune.recovery.protocol import RecoveryContext
from fxprune.recovery.spreads import Maker

#: Of the mean of the diagonal, what keeps second moments regular.
_DAMPING = 1e-6
#: Of the memory limit, what the second moments of the widest head may take: bytes of a float64, times eight.
_SHARE = 64


def rebased(context: RecoveryContext) -> tuple[dict[str, Tensor], set[fx.Node]]:
    """Returns tensors of an equal model, ``[...]`` by name, in which what goes of heads matters least, and the products of those heads.

    A head stays as it is where one of its channels is read in another way as well.
    """
    flows = Flows(context.selection, context.consumers, int((context.memory_limit / _SHARE) ** 0.5))
    moments: dict[tuple[fx.Node, int], Moments] = {}
    met: dict[fx.Node, Product | Meeting] = {}
    for number, batch in enumerate(context.inputs if flows.makers else ()):
        for found in flows.through(batch, None if number == 0 else met):
            sides = found.sides if isinstance(found, Product) else (found,)
            met.setdefault(sides[0].node, found.bare())
            for i, side in enumerate(sides):
                moments.setdefault((side.node, i), Moments()).add(torch.stack(list(side.values), dim=1))
        if not met:
            break  # nothing is there to be found
    model = _Model(context, flows)
    for node, found in met.items():
        if isinstance(found, Product):
            shifted = shifted_side(node, context.selection.coupling.captured.info)
            grams = [_grams(moments[node, i], i == shifted) for i in (0, 1)]
            for heads in _components(found):
                model.rebase_product(found, heads, grams)
        else:
            consumer = next(c for c in context.consumers if c.node is node)
            model.rebase_reading(found, consumer, _grams(moments[node, 0], consumer.home is not None))
    return model.changed.tensors, model.done


class _Model:
    """The equal model, as it comes.

    Args:
        context: what goes of which model.
        flows: once all batches went through.
    """

    def __init__(self, context: RecoveryContext, flows: Flows) -> None:
        coupling, slicer = context.selection.coupling, context.selection.slicer
        self.changed = Replacements(coupling)
        self.done: set[fx.Node] = set()
        self._free = {maker: (uses == 1) & (flows.others[maker] == 0) for maker, uses in flows.uses.items()}
        self._kept = {
            maker: torch.from_numpy(slicer.mask(coupling.parameter(maker.weight)[maker.affine.outward]))
            for maker in flows.makers.values()
        }

    def _living(self, maker: Maker, heads: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns which of some heads, ``[heads, channels]``, keep anything, and which channels these keep, all the same.

        None if they differ in that, keep all, or may not be given in another basis.
        """
        kept = self._kept[maker].to(heads.device)[heads]
        living = kept.any(dim=1)
        if not living.any() or not self._free[maker].to(heads.device)[heads].all():
            return None
        pattern = kept[living][0]
        return None if pattern.all() or not (kept[living] == pattern).all() else (living, pattern)

    def rebase_product(self, found: Product, heads: tuple[list[int], list[int]], grams: list[Tensor]) -> None:
        """Gives queries and keys of heads that meet another basis: both have second moments that are the singular values."""
        sides = [side.heads[own] for side, own in zip(found.sides, heads, strict=True)]
        first, second = (self._living(side.maker, rows) for side, rows in zip(found.sides, sides, strict=True))
        if first is None or second is None or not torch.equal(first[1], second[1]):
            return
        kept = first[1]
        alive = (first[0], second[0])
        whole = [gram[own][those].sum(dim=0) for gram, own, those in zip(grams, heads, alive, strict=True)]
        if not all(gram.isfinite().all() for gram in whole):
            return
        self.done.add(found.sides[0].node)
        (left, unleft), (right, unright) = map(_roots, whole)
        u, values, vt = torch.linalg.svd(left @ right)
        level = values.sqrt()[:, None]
        for side, rows, basis in zip(found.sides, sides, (level * u.mT @ unleft, level * vt @ unright), strict=True):
            for each in rows:
                self._rows(side.maker, each, _placed(basis, kept))

    def rebase_reading(self, found: Meeting, consumer: Consumer, grams: Tensor) -> None:
        """Gives values another basis: of one level, and apart in what the reader makes of them."""
        assert found.columns is not None
        for rows in found.heads.unique(dim=0):
            same = (found.heads == rows).all(dim=1)
            living = self._living(found.maker, rows[None])
            if living is None:
                continue
            kept = living[1]
            gram, weight = grams[same].mean(dim=0), self.changed.value(consumer.weight)
            if not gram.isfinite().all():
                continue
            root, unroot = _roots(gram)
            read = (
                consumer.matrix(weight)[0].double()[:, found.columns[same]].transpose(0, 1)
            )  # [heads, outputs, channels]
            vt = torch.linalg.svd(torch.linalg.qr(read.flatten(0, 1) @ root).R).Vh
            level = gram.diagonal().mean().sqrt()
            level = level if level > 0 else torch.ones_like(level)
            basis, back = _placed(level * vt @ unroot, kept), _placed((root @ vt.mT / level).mT, kept).mT
            self._rows(found.maker, rows, basis)
            new = consumer.matrix(weight).clone()
            for columns in found.columns[same]:
                new[0][:, columns] = (new[0][:, columns].double() @ back).to(new.dtype)
            self.changed.tensors[consumer.weight] = consumer.restored(new, weight)

    def _rows(self, maker: Maker, rows: Tensor, basis: Tensor) -> None:
        """Gives some outputs of a layer in another basis, ``[channels, channels]``."""
        for name, dim in maker.tensors.items():
            self.changed.tensors[name] = new = self.changed.value(name).clone()
            new = new.movedim(dim, 0)  # a view
            new[rows] = (basis @ new[rows].double().reshape(len(rows), -1)).reshape(new[rows].shape).to(new.dtype)


def _placed(basis: Tensor, kept: Tensor) -> Tensor:
    """Returns the rows of a basis, best first, at the channels that stay, ``[channels]``, and the others at those that go."""
    placed = torch.empty_like(basis)
    placed[torch.cat([torch.nonzero(kept), torch.nonzero(~kept)]).flatten()] = basis
    return placed


def _roots(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the symmetric square root of second moments, ``[channels, channels]``, and its inverse."""
    values, vectors = torch.linalg.eigh(gram)
    level = values.mean() if values.mean() > 0 else 1.0
    root = (values.clamp_min(0) + _DAMPING * level).sqrt()
    return vectors * root @ vectors.mT, vectors / root @ vectors.mT


def _grams(moments: Moments, centred: bool) -> Tensor:
    """Returns second moments by head, ``[heads, channels, channels]``, about the mean or about zero."""
    if not centred:
        moments.raw()
    found: Tensor = moments.xx / max(moments.count, 1)
    return found


def _components(found: Product) -> Iterator[tuple[list[int], list[int]]]:
    """Yields the heads of both sides that meet, directly or by others, and so share a basis."""
    import networkx as nx

    assert found.pairs is not None
    graph: nx.Graph[tuple[int, int]] = nx.Graph()
    graph.add_edges_from(((0, a), (1, b)) for a, b in found.pairs.tolist())
    for part in nx.connected_components(graph):
        yield tuple(sorted(i for side, i in part if side == wanted) for wanted in (0, 1))  # type: ignore[misc]
