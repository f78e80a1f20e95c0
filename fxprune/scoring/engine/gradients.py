"""One pass through the captured graph with gradients: of gates on what layers read, of parameters, of values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune._base.errors import CalibrationError, raised_as
from fxprune._base.names import fetch
from fxprune.algebra.axes import is_labelled
from fxprune.capturing.inputs import Flat
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.ops.tracer import Contraction
from fxprune.scoring.engine.columns import by_factor
from fxprune.scoring.loss import Loss, one_number
from fxprune.twin.interpreter import Run


class Gated(Run):
    """The dense model with a factor of one on all that contractions read along a labelled axis.

    The loss' derivative by the factor is the first-order change that masking the coordinate would bring: masked is what
    the twin masks. Factors stand apart for each sample where the operand's leading dimension tells samples apart.
    """

    def __init__(self, selection: Selection) -> None:
        super().__init__(selection)
        for contraction in selection.coupling.contractions:
            if is_labelled(contraction.axis):
                self.masked.setdefault(contraction.node, []).append(contraction)
        self.gates: list[tuple[Contraction, Tensor]] = []

    def _masked(self, node: fx.Node, source: fx.Node, values: Mapping[fx.Node, Any]) -> Tensor:
        value: Tensor = values[source]
        for contraction in self.masked[node]:
            if contraction.source is source:
                shape = [1] * value.dim()
                shape[0], shape[contraction.dim] = value.shape[0], value.shape[contraction.dim]
                gate = value.new_ones(shape, dtype=torch.real(value).dtype).requires_grad_()
                self.gates.append((contraction, gate))
                value = value * gate
        return value


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """What one batch gave.

    Attributes:
        samples: how many samples the batch held.
        loss: the summed loss.
        parameters: of the summed loss, by name.
        values: (value, gradient) of the nodes that were asked for.
        gates: (contraction, gradient by its factors), if they were asked for.
    """

    samples: int
    loss: float
    parameters: Mapping[str, Tensor]
    values: Mapping[fx.Node, tuple[Tensor, Tensor]]
    gates: Sequence[tuple[Contraction, Tensor]]


def gradients(
    coupling: Coupling,
    batches: Iterable[tuple[Flat, Any]],
    loss: Loss,
    *,
    parameters: Iterable[str] = (),
    nodes: Iterable[fx.Node] = (),
    gates: bool = False,
    run: type[Run] | None = None,
) -> Iterator[Gradients]:
    """Yields the gradients of every batch's summed loss; nothing is accumulated, the model is left alone.

    Args:
        coupling: of the captured graph.
        batches: flat inputs with targets.
        loss: ``loss(outputs, targets)``, a mean over samples.
        parameters: names of the parameters wanted.
        nodes: the values wanted.
        gates: also by factors on what contractions read.
        run: another pass than the plain one, e.g. with batch norm in training mode.

    Raises:
        CalibrationError: there are no targets, or they do not fit.
        ValueError: the loss is not one number, or has no gradient.
    """
    wanted, kept = list(parameters), set(nodes)
    for flat, targets in batches:
        tensors = {name: fetch(coupling.captured.module, name).detach().requires_grad_() for name in wanted}
        pass_ = (Gated if gates else run or Run)(Selection.nothing(coupling, tensors))
        values: dict[fx.Node, Tensor] = {}
        with torch.enable_grad():
            for node, alive in pass_.steps(flat):
                if node in kept:
                    values[node] = alive[node] if alive[node].requires_grad else alive[node].requires_grad_()
                outputs = alive[node]
            samples = batch_size(coupling, flat)
            with raised_as(CalibrationError, "calibration data: the loss fails on a batch's outputs and targets"):
                found = loss(coupling.captured.call.unflatten(outputs), targets)
            total = one_number(found) * samples
        if not total.requires_grad:
            raise ValueError("loss: expected a number with a gradient, made of the outputs, got one without")
        factors = pass_.gates if isinstance(pass_, Gated) else []
        sources = [*tensors.values(), *values.values(), *(gate for _, gate in factors)]
        results = iter(torch.autograd.grad(total, sources, allow_unused=True, materialize_grads=True))
        yield Gradients(
            samples,
            float(total.detach()),
            {name: next(results) for name in tensors},
            {node: (value.detach(), next(results)) for node, value in values.items()},
            [(contraction, next(results)) for contraction, _ in factors],
        )


def batch_size(coupling: Coupling, flat: Sequence[Tensor]) -> int:
    """Returns the number of samples of a batch of flat inputs, ``[samples, ...]`` those that hold them."""
    batched = itertools.compress(flat, batched_inputs(coupling))
    leaf = next(batched, flat[0] if flat else None)
    return len(leaf) if leaf is not None and leaf.dim() else 1


def batched_inputs(coupling: Coupling) -> list[bool]:
    """Returns for each flat input whether its first dimension is the batch."""
    captured = coupling.captured
    shapes = [captured.info[node].shape for node in captured.module.graph.nodes if node.op == "placeholder"]
    return [shape[:1] == captured.batch[:1] for shape in shapes]


def by_unit(coupling: Coupling, gates: Sequence[tuple[Contraction, Tensor]], samples: int) -> Tensor:
    """Returns what masking each unit changes in each sample's loss, to first order, ``[samples, units]``.

    A factor that does not tell samples apart is spread evenly over them.
    """
    unit_of = np.full(len(coupling.channels), len(coupling.units), np.int64)
    unit_of[coupling.units] = np.arange(len(coupling.units))
    device = gates[0][1].device if gates else torch.device("cpu")
    total = torch.zeros(samples, len(coupling.units) + 1, dtype=torch.float64, device=device)
    for contraction, gradient in gates:
        leading = coupling.captured.info[contraction.source].shape[0]
        by_batch = leading % coupling.captured.batch[0] == 0 and gradient.shape[0] % samples == 0
        apart = contraction.dim != 0 and by_batch
        rows = gradient.double().movedim(contraction.dim, -1).reshape(-1, gradient.shape[contraction.dim])
        rows = rows.reshape(samples, -1, rows.shape[1]).sum(dim=1) if apart else rows.sum(dim=0)[None] / samples
        for labels, values in by_factor(coupling, contraction.axis, rows):
            for column in labels.T:
                index = torch.from_numpy(unit_of[column]).to(device)
                total.index_add_(1, index, values.expand(samples, -1))
    return total[:, :-1]
