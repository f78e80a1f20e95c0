"""Bases: orthogonal matrices for streams, by chance to try them and by principal components to keep them.

A layer norm takes the mean of the channels off, and so allows those rotations that keep it: ``Q 1 = 1``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.rotation.conducting import Spot
from fxprune.rotation.streams import Stream, StreamError
from fxprune.twin.interpreter import Run


def drawn(size: int, keeps_mean: bool, seed: int, device: torch.device) -> Tensor:
    """Returns an orthogonal matrix by chance, ``[size, size]``, float64; one whose rows each sum to one if it is to keep the mean."""
    draw = torch.Generator().manual_seed(seed)
    inner = torch.randn(size - keeps_mean, size - keeps_mean, generator=draw, dtype=torch.float64)
    # of one channel only a change of sign is one that changes something
    basis: Tensor = torch.linalg.qr(inner).Q if len(inner) > 1 else -torch.ones_like(inner)
    if keeps_mean:
        mirror = _mirror(size)
        basis = mirror @ torch.block_diag(torch.ones(1, 1, dtype=torch.float64), basis) @ mirror
    return basis.to(device)


def principal(moments: Tensor, keeps_mean: bool) -> Tensor:
    """Returns the directions in which second moments, ``[channels, channels]``, are largest, first of all, as columns.

    Where the mean is to be kept, these are of what is left without it, and each is mixed with all others by ``1 / channels`` or so,
    which is as close to them as a basis of that kind can be.

    Raises:
        StreamError: the moments are not finite.
    """
    if not moments.isfinite().all():
        raise StreamError("its values are not finite")
    if not keeps_mean:
        return _signed(torch.linalg.eigh(moments).eigenvectors.flip(1))
    mirror = _mirror(len(moments)).to(moments.device)
    rest = mirror[:, 1:]
    vectors = _signed(rest @ torch.linalg.eigh(rest.mT @ moments @ rest).eigenvectors.flip(1))
    return torch.cat([mirror[:, :1], vectors], dim=1) @ mirror


def _mirror(size: int) -> Tensor:
    """Returns the reflection that takes the first coordinate to the mean direction and back, ``[size, size]``."""
    away = torch.full((size,), -(size**-0.5), dtype=torch.float64)
    away[0] += 1.0
    eye = torch.eye(size, dtype=torch.float64)
    return eye if size == 1 else eye - 2 * torch.outer(away, away) / away.square().sum()


def _signed(vectors: Tensor) -> Tensor:
    """Returns the same directions, the largest entry of each positive."""
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    signed: Tensor = vectors * torch.where(largest < 0, -1.0, 1.0)
    return signed


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """Where layers read a stream.

    Attributes:
        node: the value that they read.
        dim: along which the stream lies.
        level: of the value, ``[channels]``.
        readers: how many there are.
    """

    node: fx.Node
    dim: int
    level: Tensor
    readers: int


def readings(coupling: Coupling, stream: Stream, level: Mapping[Spot, Tensor]) -> list[Reading]:
    """Returns where layers with weights read a stream whose levels, ``[channels]`` each, are known."""
    count = Counter(
        (c.source, c.dim)
        for c in coupling.contractions
        if c.weight is not None and c.dim in stream.places.get(c.source, ()) and Spot(c.source, c.dim) in level
    )
    return [Reading(node, dim, level[Spot(node, dim)], readers) for (node, dim), readers in count.items()]


@torch.no_grad()
def second_moments(
    coupling: Coupling, places: Sequence[Sequence[Reading]], sizes: Sequence[int], inputs: Iterable[Sequence[Tensor]]
) -> list[Tensor]:
    """Returns the second moments of streams as their readers see them, ``[channels, channels]``, float64: on the first batch all count alike.

    Args:
        coupling: of the captured graph.
        places: where each stream is read.
        sizes: how many channels each has.
        inputs: flat inputs, batch by batch.
    """
    at: dict[fx.Node, list[tuple[int, Reading]]] = {}
    for number, reads in enumerate(places):
        for reading in reads:
            at.setdefault(reading.node, []).append((number, reading))
    sums = [torch.zeros(size, size, dtype=torch.float64) for size in sizes]
    weight: dict[Reading, float] = {}
    run = Run(Selection.nothing(coupling))
    for batch in inputs:
        for node, values in run.steps(batch):
            for number, reading in at.get(node, ()):
                x = values[node].movedim(reading.dim, -1).flatten(0, -2).float()
                x = x * (1 / reading.level).nan_to_num(0.0, 0.0, 0.0).to(x)
                gram = (x.mT @ x).double()
                each = weight.setdefault(reading, reading.readers / max(float(gram.trace()), 1e-300))
                sums[number] = sums[number].to(gram.device) + each * gram
    return sums
