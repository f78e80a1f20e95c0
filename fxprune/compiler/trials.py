"""Trials: what the outputs lose when something goes and is made up for, on a batch that recovery has not seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.algebra.channels import Mask
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.data.holdout import Part
from fxprune.recovery.compensate import make_up
from fxprune.recovery.consumers import Consumer, Replacements, find_consumers
from fxprune.recovery.measuring import Blocks, bytes_of, measure, parts_that_fit, split
from fxprune.recovery.protocol import Batches, RecoveryContext
from fxprune.scoring.engine.gradients import batch_size
from fxprune.scoring.loss import log_probabilities, named_logits
from fxprune.twin.interpreter import Run

#: The loss where an output is no longer finite.
_LOST = 1e6
_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, eq=False)
class _Remembering(RecoveryContext):
    """A recovery's context that goes through the data once, however often it is asked."""

    known: dict[Any, Blocks] = field(default_factory=dict)

    def moments(
        self,
        *,
        covariance: bool = True,
        consumers: Sequence[Consumer] | None = None,
        hold_out: bool = False,
        rows: bool = False,
    ) -> Iterator[tuple[Consumer, Blocks]]:
        """Yields each consumer with its moments, which the caller may change."""
        consumers = self.consumers if consumers is None else consumers
        for consumer in consumers:
            yield consumer, deepcopy(self.known[consumer.node])


class Trials:
    """What the outputs lose without some units, the layers that read them recovered by covariance.

    Args:
        coupling: of the captured graph.
        inputs: flat inputs, batch by batch; the last one is judged by; of a single one the last quarter of its samples. Recovery does not see them.
        ridge: of the recovery.
        memory_limit: bytes for its statistics; layers that these leave no room for are not recovered.
    """

    @torch.no_grad()
    def __init__(self, coupling: Coupling, inputs: Batches, ridge: float, memory_limit: int) -> None:
        self._coupling, count = coupling, 0
        for probe in inputs:
            self._probe, count = probe, count + 1
        nothing = Selection.nothing(coupling)
        self._context = _Remembering(nothing, Part(inputs, 0, max(count - 1, 1)), ridge, memory_limit)
        anything = Selection(coupling, coupling.removed_mask(range(len(coupling.units))))
        consumers, _ = find_consumers(anything)
        samples = self._context.samples(consumers)
        sizes = {c: {c: bytes_of(c, True, memory_limit, samples[c])} for c in consumers}
        fitting = next(parts_that_fit(consumers, sizes.__getitem__, memory_limit), [])
        #: Layers that there is no memory to recover.
        self.left = [consumer.weight for consumer in consumers[len(fitting) :]]
        alone = fitting if count == 1 else ()  # its last samples are apart
        blocks = measure(
            nothing,
            fitting,
            self._context.inputs,
            covariance=True,
            memory_limit=memory_limit,
            held=alone,
            samples=samples,
        )
        for moments in (each for its in blocks for _, each in its):
            moments.held = None
        self._batch = batch_size(coupling, self._probe)
        self._seen = split(self._batch, 0, 1) % self._batch if count == 1 else 0
        alike = "the last quarter of the only batch" if self._seen else "the only batch"
        #: What is judged by.
        self.where = "the last batch" if count > 1 else alike
        self._context.known.update(zip((c.node for c in fitting), blocks, strict=True))
        self._values: dict[fx.Node, Any] = {}
        left = memory_limit // 2
        for node, values in Run(nothing).steps(self._probe):
            left -= sum(x.nbytes for x in pytree.tree_leaves(values[node]) if isinstance(x, Tensor)) * (
                node.op != "get_attr"
            )
            self._values[node] = values[node]
            if left < 0:
                self._values.clear()
        self._judge = Judge(self._unseen(values[node]))

    @torch.no_grad()
    def loss(self, removed: Mask) -> float:
        """Returns how far the outputs are from the dense ones without the flagged channels, ``[channels]``."""
        selection = Selection(self._coupling, removed)
        context = replace(self._context, selection=selection)
        changed = Replacements(self._coupling, context.start)
        known = [consumer for consumer in context.consumers if consumer.node in self._context.known]
        make_up(context, changed, covariance=True, consumers=known)
        outputs = self._outputs(selection.with_tensors(changed.tensors))
        return self._judge(self._unseen(outputs))

    def _unseen(self, outputs: Any) -> Any:
        """Returns flat outputs as the model gives them, without those of samples that recovery has seen."""
        if self._seen:
            outputs = pytree.tree_map(
                lambda x: x[self._seen :] if isinstance(x, Tensor) and x.dim() and len(x) == self._batch else x, outputs
            )
        return self._coupling.captured.call.unflatten(outputs)

    def _outputs(self, selection: Selection) -> Any:
        """Returns the flat outputs; what lies before all that changes is known."""
        run = Run(selection)
        if len(self._values) < len(run.graph.nodes):
            return run(self._probe)
        values, stale = dict(self._values), set[fx.Node]()
        for node in run.graph.nodes:
            if node in run.masked or self._changes(node, selection) or not stale.isdisjoint(node.all_input_nodes):
                values[node] = run.step(node, values, iter(()))
                stale.add(node)
        return values[node]

    def _changes(self, node: fx.Node, selection: Selection) -> bool:
        """Returns whether a node gives something else by itself: a tensor that was replaced, or a statistic over less."""
        if node.op == "get_attr":
            return selection.standing(str(node.target)) is not None
        if node not in self._coupling.statistics:
            return False
        axes = [selection.slicer.axes(source, node) for source in node.all_input_nodes]
        return any(not isinstance(own, tuple) or any(map(selection.slicer.changed, own)) for own in axes)


class Judge:
    """How far outputs are from the dense ones.

    For outputs with an entry ``logits`` it is the Kullback-Leibler divergence, a mean over samples and positions; else the squared
    error as a share of the variance, a mean over the floating outputs. What is not finite in the dense model's does not count; where
    the others' is not, the loss is a million.

    Args:
        dense: the dense model's outputs.
    """

    def __init__(self, dense: Any) -> None:
        self._dense = dense
        self._known = None if named_logits(dense) is None else log_probabilities(dense)[0]

    def __call__(self, pruned: Any) -> float:
        """Returns it."""
        if self._known is not None:
            (f, (g, dim)) = self._known, log_probabilities(pruned)
            found = float(torch.where(f.isfinite(), f.exp() * (f - g), 0.0).sum(dim).mean())
        else:
            pairs = zip(pytree.tree_leaves(self._dense), pytree.tree_leaves(pruned), strict=True)
            errors = [_error(x, y) for x, y in pairs if isinstance(x, Tensor) and x.is_floating_point()]
            found = sum(errors) / max(len(errors), 1)
        return min(found, _LOST) if math.isfinite(found) else _LOST


def _error(dense: Tensor, pruned: Tensor) -> float:
    """Returns the squared error of an output as a share of its variance, over what is finite in the dense model's."""
    counts = dense.isfinite()
    a, b = dense[counts].double(), pruned[counts].double()
    return float((a - b).square().mean() / a.var().clamp_min(_TINY)) if a.numel() > 1 else 0.0
