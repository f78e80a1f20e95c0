"""NISP: importance of the final responses, propagated back through absolute weights (Yu et al. 2018, arXiv 1711.05908)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from fxprune._base.errors import ScorerError
from fxprune._base.names import fetch
from fxprune.algebra.axes import Axis, explicit
from fxprune.algebra.channels import Ids
from fxprune.coupling.coupling import Coupling
from fxprune.ops.registry import bind, is_kind
from fxprune.ops.tracer import Contraction
from fxprune.scoring.engine.columns import wide
from fxprune.scoring.engine.shares import layers_that, remaining_share
from fxprune.scoring.scorer import Context, Scorer, register_scorer

Floats = npt.NDArray[np.float64]

#: Importances are scaled down above this: they grow from layer to layer.
LARGE = 1e250

_CONVOLUTIONS = ("conv", "conv_transpose")


@dataclass(frozen=True, slots=True)
class Propagation(Scorer):
    """What a unit's coordinates weigh in the final responses, through the absolute weights of all that reads them.

    Importance goes back value by value: a sum, a product or a concatenation passes it to all operands, a layer with
    weights as in Eq. 11. Coordinates are told apart by their channels; one that never goes counts as a response of
    importance one. Where no weight reads a coordinate (queries and keys) it has the mean of those that share a channel
    with it (its head), else one. The paper takes the responses' own importance from feature selection; here each is one.

    The paper prunes every layer by a ratio of its own. Layers compare here as in `fxprune.scoring.magnitude`: by shares of
    their group, weighed by what is left of it and by the layers on both sides.
    """

    name: str = "nisp"
    needs: tuple[str, ...] = ("weights",)
    per_cost: bool = True

    def score(self, context: Context) -> dict[str, Tensor]:
        """Returns, ``[units]``, ``s_in = |W|^T s_out`` (Eq. 11), kernels summed, over a unit's coordinates and readers, as shares.

        Raises:
            ScorerError: an axis is too long to be written out.
        """
        state = _State(context.coupling)
        for node in reversed(context.coupling.captured.module.graph.nodes):
            _propagate(state, node)
        total = context.zeros()
        importance = state.importance(state.total, np.arange(len(state.rows)))
        for column in state.rows.T:
            np.add.at(total, column, importance)
        scores = context.by_group(total)
        shares = {name: s / s.sum().clamp_min(torch.finfo(s.dtype).tiny) for name, s in scores.items()}
        read, makers = layers_that(context, read=True), layers_that(context, read=False)
        return remaining_share(shares, {name: read[name] + makers[name] - 1 for name in shares})


class _State:
    """Importance by label row: of each value on the way back, and in total; NaN where no reader has given any.

    ``rows[i]`` are channels; ``links`` are, for each op with a weight, (contraction, rows that it reads, that it makes).
    """

    def __init__(self, coupling: Coupling) -> None:
        self.coupling = coupling
        weighted = [c for c in coupling.contractions if c.weight is not None and c.axis]
        parts = [rows for c in weighted for rows in _link(coupling, c)]
        self.rows, numbers = _distinct([*parts, *(a.labels for a in coupling.axes if a.makes)])
        self.links: dict[fx.Node, list[tuple[Contraction, Ids, Ids]]] = {}
        for contraction, read, made in zip(weighted, numbers[::2], numbers[1::2], strict=False):
            self.links.setdefault(contraction.node, []).append((contraction, read, made))
        self.total = np.full(len(self.rows), np.nan)
        self.values: dict[fx.Node, Floats] = {}
        self.one = 1.0

    def importance(self, given: Floats, numbers: Ids) -> Floats:
        """Returns the importance of coordinates with these rows, from what readers gave to each row."""
        result = np.where(self.rows[numbers].any(axis=1), given[numbers], self.one)
        unread = np.isnan(result)
        if unread.any():
            seen = ~np.isnan(given) & self.rows.any(axis=1)
            total, count = np.zeros((2, int(self.rows.max(initial=0)) + 1))
            for column in self.rows[seen].T:
                np.add.at(total, column, given[seen])
                np.add.at(count, column, 1)
            total[0] = count[0] = 0
            here = self.rows[numbers[unread]]
            known = count[here].sum(axis=1)
            mean = total[here].sum(axis=1) / np.maximum(known, 1)
            result[unread] = np.where(known > 0, mean, self.one)
        return result

    def give(self, node: fx.Node, given: Floats) -> None:
        """Adds what a reader gives to a value."""
        self.values[node] = _plus(self.values[node], given) if node in self.values else given

    def shrink(self) -> None:
        """Scales everything down where it gets too large."""
        largest = float(np.nanmax(self.total, initial=0.0))
        if largest > LARGE:
            self.total /= largest
            self.one /= largest
            self.values = {node: value / largest for node, value in self.values.items()}


def _propagate(state: _State, node: fx.Node) -> None:
    """Passes the importance of a value on to the values that it is made of."""
    given = state.values.pop(node, np.full(len(state.rows), np.nan))
    if node not in state.links:
        for source in node.all_input_nodes:
            if source.op == "call_function":
                state.give(source, given)
        return
    for contraction, read, made in state.links[node]:
        weight = _matrices(state.coupling, contraction)  # of groups, each has inputs and outputs of its own
        outputs = state.importance(given, made).reshape(weight.shape[0], -1)
        passed = np.full(len(state.rows), np.nan)
        passed[read] = 0
        np.add.at(passed, read, np.einsum("goi,go->gi", weight, outputs).reshape(-1))
        state.total = _plus(state.total, passed)
        state.give(contraction.source, passed)
        state.shrink()


def _plus(a: Floats, b: Floats) -> Floats:
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, a + b))


def _matrices(coupling: Coupling, contraction: Contraction) -> Floats:
    """Returns a contraction's absolute weights, ``[groups, outputs, inputs]``."""
    assert contraction.weight is not None
    tensor = wide(fetch(coupling.captured.module, str(contraction.weight.target)).detach().abs())
    groups, inputs = int(getattr(bind(contraction.node), "groups", 1)), contraction.weight_dim
    kept = {inputs, *_outputs(coupling, contraction)}
    summed = [d for d in range(tensor.dim()) if d not in kept]
    matrix = tensor.sum(dim=summed, keepdim=True, dtype=torch.float64) if summed else tensor.double()
    matrix = matrix.movedim(inputs, -1).reshape(-1, tensor.shape[inputs])
    transposed = inputs == 0 and groups > 1  # inputs hold the groups
    matrix = matrix.unflatten(1, (groups, -1)).transpose(0, 1) if transposed else matrix.unflatten(0, (groups, -1))
    result: Floats = matrix.cpu().numpy()
    return result


def _link(coupling: Coupling, contraction: Contraction) -> tuple[Ids, Ids]:
    """Returns the label rows of what a contraction reads and of what it makes."""
    assert contraction.weight is not None
    if is_kind(contraction.node, *_CONVOLUTIONS):
        made = coupling.values[contraction.node][contraction.dim]
    else:
        axes = coupling.values[contraction.weight]
        made = tuple(factor for dim in _outputs(coupling, contraction) for factor in axes[dim])
    return _written(coupling, contraction, contraction.axis), _written(coupling, contraction, made)


def _written(coupling: Coupling, contraction: Contraction, axis: Axis) -> Ids:
    rows = explicit(axis)
    if rows is None:
        raise ScorerError(f"method 'nisp': an axis of {contraction.node.name!r} is too long to be written out")
    return coupling.channels.resolve(rows)


def _outputs(coupling: Coupling, contraction: Contraction) -> list[int]:
    """Returns the weight's dimensions that are neither summed over nor a kernel's."""
    assert contraction.weight is not None
    read = {c.weight_dim for c in coupling.contractions if c.weight is contraction.weight and c.axis}
    size = 2 if is_kind(contraction.node, *_CONVOLUTIONS) else len(coupling.values[contraction.weight])
    return [dim for dim in range(size) if dim not in read]


def _distinct(parts: Sequence[Ids]) -> tuple[Ids, list[Ids]]:
    """Returns the distinct label rows, a row being a set of channels, and for each part the numbers of its rows."""
    width = max((part.shape[1] for part in parts), default=0)
    padded = [np.sort(np.pad(part, ((0, 0), (0, width - part.shape[1])))) for part in parts]
    stacked = np.concatenate([np.zeros((1, width), np.int64), *padded])
    rows, numbers = np.unique(stacked, axis=0, return_inverse=True)
    return rows, np.split(numbers.reshape(-1)[1:], np.cumsum([len(part) for part in parts])[:-1])


register_scorer("nisp", Propagation)
