"""A captured model with its streams in the bases of their principal components: the same model, other tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxprune.coupling.coupling import Coupling
from fxprune.coupling.units import Group
from fxprune.ops.registry import is_kind
from fxprune.rotation.bases import drawn, principal, readings, second_moments
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
        batch_norms: names of the batch norms whose statistics are of channels that are no more.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    streams: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    error: float = 0.0
    batch_norms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Free:
    """A stream whose basis may change, with the second moments of what is read of it."""

    stream: Stream
    found: Conduction
    level: Mapping[Spot, Tensor]
    keeps_mean: bool
    moments: Tensor


def rotated(
    coupling: Coupling, groups: Iterable[Group], inputs: Iterable[Sequence[Tensor]], names: Collection[str]
) -> Rotated:
    """Returns the tensors of an equal model in which each stream's channels are its principal components, largest first.

    Args:
        coupling: of the captured graph.
        groups: those of its groups that may change.
        inputs: flat inputs, ``[...]`` each, batch by batch; the first is what ops are tried on.
        names: of the tensors that the model has of its own, and can be given others for.
    """
    known, refused = streams(coupling, groups)
    first = next(iter(inputs))
    free = list(_free(coupling, known, first, refused))
    places = [readings(coupling, stream, level) for stream, _, level, _ in free]
    moments = second_moments(coupling, places, [stream.size for stream, *_ in free], inputs)
    left = [_Free(*each, second) for each, second in zip(free, moments, strict=True)]
    turning, done = _turned(coupling, left, names, refused)
    if (moved := apart(turning, first)) > EXACT:  # a stream that changes the outputs takes no other along
        left = [each for each in done if apart(_turned(coupling, [each], names, refused)[0], first) <= EXACT]
        refused.update((each.stream.name, "the outputs change") for each in done if each not in left)
        turning, done = _turned(coupling, left, names, refused)
        moved = apart(turning, first)
    if moved > EXACT:
        return Rotated(refused={**refused, **{each.stream.name: "the outputs change" for each in done}})
    norms = dict.fromkeys(
        str(spot.node.meta.get("module") or spot.node.name)
        for each in done
        for spot, _ in each.found.gains
        if is_kind(spot.node, "batch_norm")
    )
    return Rotated(by_name(turning), tuple(each.stream.name for each in done), refused, moved, tuple(norms))


def _turned(
    coupling: Coupling, free: Iterable[_Free], names: Collection[str], refused: dict[str, str]
) -> tuple[Turning, list[_Free]]:
    """Returns what gives streams in other bases, and those that it does."""
    turning, done = Turning(coupling), list[_Free]()
    for each in free:
        before = dict(turning.values)
        try:
            turning.turn(each.found, each.level, principal(each.moments, each.keeps_mean))
            _check_names(by_name(turning), names)
            done.append(each)
        except StreamError as error:
            turning.values = before
            refused[each.stream.name] = str(error)
    return turning, done


def _free(
    coupling: Coupling, known: Sequence[Stream], first: Sequence[Tensor], refused: dict[str, str]
) -> Iterator[tuple[Stream, Conduction, Mapping[Spot, Tensor], bool]]:
    """Yields the streams whose basis may change, to any or to one that keeps the mean of the channels."""
    left = list(known)
    for keeps_mean in (False, True):
        again, norms = [], coupling.statistics
        bases = [drawn(s.size, keeps_mean, i, first[0].device) for i, s in enumerate(left)]
        found = conduction(coupling, left, bases, first)
        for stream, basis, own in zip(left, bases, found, strict=True):
            if own.refused:
                refused[stream.name] = own.refused
                again += (
                    [stream]
                    if any(source in stream.places for node in norms for source in node.all_input_nodes)
                    else []
                )
                continue
            try:
                yield stream, own, levels(own, torch.ones_like(basis[0])), keeps_mean
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
