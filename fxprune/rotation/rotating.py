"""A captured model with its streams in the bases of their principal components: the same model, other tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import Group
from fxprune.rotation.bases import Reading, drawn, principal, readings, second_moments
from fxprune.rotation.conducting import Conduction, Spot, conduction
from fxprune.rotation.levels import levels
from fxprune.rotation.streams import Stream, StreamError, streams
from fxprune.rotation.turning import Turning, apart, by_name

#: How far the outputs may be from the model's own, in float64, as a share of the largest.
EXACT = 1e-10


@dataclass(frozen=True, slots=True, eq=False)
class Rotated:
    """What makes an equal model.

    Attributes:
        tensors: parameters and buffers, ``[...]`` by name, float64; a tied one may come under several names.
        streams: names of the groups whose basis changed.
        refused: why the others' did not, by name.
        error: how far the outputs are from the model's own, in float64, as a share of the largest.
    """

    tensors: Mapping[str, Tensor]
    streams: tuple[str, ...]
    refused: Mapping[str, str]
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class _Free:
    """A stream whose basis may change."""

    stream: Stream
    found: Conduction
    level: Mapping[Spot, Tensor]
    keeps_mean: bool


def rotated(
    coupling: Coupling, groups: Iterable[Group], inputs: Iterable[Sequence[Tensor]], names: Collection[str]
) -> Rotated:
    """Returns the tensors of an equal model in which each stream's channels are its principal components, largest first.

    Args:
        coupling: of the captured graph.
        groups: those of its groups that may change.
        inputs: flat inputs, ``[...]`` each, batch by batch; the first is what ops are tried on.
        names: of the tensors that the model has of its own, and can be given others for.

    Raises:
        ArithmeticError: the model is not the same: a fault of this package.
    """
    known, refused = streams(coupling, groups)
    first = next(iter(inputs))
    free = list(_free(coupling, known, first, refused))
    places = [_read(coupling, each) for each in free]
    moments = second_moments(coupling, places, [each.stream.size for each in free], inputs)
    turning, done = Turning(coupling), []
    for each, second in zip(free, moments, strict=True):
        before = dict(turning.values)
        try:
            turning.turn(each.found, each.level, principal(second, each.keeps_mean))
            _check_names(by_name(turning), names)
            done.append(each.stream.name)
        except StreamError as error:
            turning.values = before
            refused[each.stream.name] = str(error)
    moved = apart(turning, first) if done else 0.0
    if moved > EXACT:
        raise ArithmeticError(f"in another basis the outputs are {moved:.2g} from the model's own: a fault of fxprune")
    return Rotated(by_name(turning), tuple(done), refused, moved)


def _free(
    coupling: Coupling, known: Sequence[Stream], first: Sequence[Tensor], refused: dict[str, str]
) -> Iterator[_Free]:
    """Yields the streams whose basis may change, to any or to one that keeps the mean of the channels."""
    left = list(known)
    for keeps_mean in (False, True):
        bases = [drawn(s.size, keeps_mean, i, first[0].device) for i, s in enumerate(left)]
        again, norms = [], coupling.statistics
        for stream, basis, found in zip(left, bases, conduction(coupling, left, bases, first), strict=True):
            if found.refused:
                refused[stream.name] = found.refused
                again += (
                    [stream]
                    if any(source in stream.places for node in norms for source in node.all_input_nodes)
                    else []
                )
                continue
            try:
                yield _Free(stream, found, levels(found, torch.ones_like(basis[0])), keeps_mean)
                refused.pop(stream.name, None)
            except StreamError as error:
                refused[stream.name] = str(error)
        left = again


def _check_names(tensors: Mapping[str, Tensor], names: Collection[str]) -> None:
    """Makes sure that the model has these tensors.

    Raises:
        StreamError: one is computed from others.
    """
    if strange := [name for name in tensors if name not in names]:
        raise StreamError(f"{strange[0]}: it is computed from other tensors")


def _read(coupling: Coupling, each: _Free) -> list[Reading]:
    level = {(spot.node, spot.dim): own for spot, own in each.level.items() if spot.user is None}
    return readings(coupling, each.stream, level)
