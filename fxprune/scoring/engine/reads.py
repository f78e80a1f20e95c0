"""What contractions read along units, sample by sample."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxprune._base.errors import ScorerError
from fxprune.algebra.axes import Axis
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.scoring.engine.columns import is_read
from fxprune.scoring.engine.gradients import batch_size
from fxprune.scoring.scorer import Context
from fxprune.twin.interpreter import Run


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """A value that contractions read along one dimension.

    Attributes:
        source: the value.
        dim: the dimension.
        axis: what that dimension is made of.
    """

    source: fx.Node
    dim: int
    axis: Axis


def inputs_read(context: Context, samples: int | None, method: str) -> Iterator[tuple[Input, Tensor]]:
    """Yields every value that contractions read along units, each once a batch, ``[samples, *positions, coordinates]``.

    Args:
        context: of the scorer.
        samples: stop after so many; None for all.
        method: who asks, for the message.

    Raises:
        ScorerError: a value is not finite.
    """
    coupling = context.coupling
    wanted: dict[fx.Node, dict[int, Input]] = {}
    for c in coupling.contractions:
        if is_read(coupling, c.axis):
            wanted.setdefault(c.source, {}).setdefault(c.dim, Input(c.source, c.dim, c.axis))
    run, left = Run(Selection.nothing(coupling)), sys.maxsize if samples is None else samples
    for batch in context.inputs:
        if left <= 0:
            return
        count = batch_size(coupling, batch)
        for node, values in run.steps(batch):
            for read in wanted.get(node, {}).values():
                if not torch.isfinite(values[node]).all():
                    raise ScorerError(
                        f"method {method!r} expects finite activations, got NaN or infinity in {node.name!r} "
                        f"({node.meta.get('module', '?')}): look for overflow, or mask them in the model"
                    )
                yield read, _by_sample(coupling, read, values[node], count)[:left]
        left -= count


def _by_sample(coupling: Coupling, read: Input, value: Tensor, samples: int) -> Tensor:
    """Returns ``[samples, *positions, coordinates]``; a value that is the same for all samples is one sample."""
    prime, _ = coupling.captured.batch
    shape = list(coupling.captured.info[read.source].shape)
    del shape[read.dim]
    x = value.movedim(read.dim, -1)
    if prime > 1:
        batch = next((dim for dim, size in enumerate(shape) if size % prime == 0), None)
    else:
        batch = 0 if shape and shape[0] % samples == 0 else None
    return x[None] if batch is None else x.movedim(batch, 0).unflatten(0, (samples, -1))
