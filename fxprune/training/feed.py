"""Training data: read anew in every epoch, in an order that the seed and the epoch alone decide."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fxprune._base.modes import random_states_kept
from fxprune.data.batch import ForwardArgs
from fxprune.data.batches import Batches


@dataclass(frozen=True, slots=True)
class Feed:
    """Batches for one process.

    Attributes:
        batches: checked, on the device.
        device: where they are.
        steps: batches in one pass; None if the data have no length.
        generators: those that the data draw from, besides the global ones.
    """

    batches: Batches
    device: torch.device
    steps: int | None
    generators: tuple[torch.Generator, ...]

    @contextmanager
    def drawing(self, seed: int, epoch: int) -> Iterator[None]:
        """Lets everything drawn inside depend on the seed and the epoch alone; all states are put back afterwards.

        That covers the order of a shuffling ``DataLoader``, its workers, augmentation and dropout, as far as they draw
        from torch's, numpy's or Python's global generators or the loader's own. What another iterable draws from a
        generator of its own is beyond reach: then a resumed run differs from an uninterrupted one.
        """
        start = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        with ExitStack() as stack:
            stack.enter_context(random_states_kept())
            for generator in self.generators:
                stack.callback(generator.set_state, generator.get_state())
                generator.manual_seed(start)
            torch.manual_seed(start)
            random.seed(start)
            np.random.seed(start)
            yield


def feed_of(
    data: Any,
    *,
    device: torch.device,
    batch_size: int,
    shuffle: bool,
    forward_args: ForwardArgs | None = None,
    process: int = 0,
    processes: int = 1,
) -> Feed:
    """Returns the feed of training or validation data; nothing is read yet.

    Args:
        data: a ``Dataset``, or batches as `fxprune.data.batches.Batches` takes them: a ``DataLoader``, a list, an iterable.
        device: where tensors go.
        batch_size: of a ``Dataset``.
        shuffle: whether a ``Dataset`` is shuffled; batches come in their own order.
        forward_args: makes a call out of a batch of another form.
        process: which of the processes this is.
        processes: how many share the data, batch by batch in turn; the last incomplete round is left out.

    Raises:
        CalibrationError: the data are no batches, or can be read but once.
    """
    if isinstance(data, Dataset) and not isinstance(data, DataLoader):
        data = DataLoader(data, batch_size, shuffle=shuffle and not isinstance(data, IterableDataset))
    Batches(data, device=device)  # a form that does not do is refused before it is wrapped
    try:
        steps: int | None = len(data) // processes if not isinstance(data, torch.Tensor | dict) else 1
    except TypeError:
        steps = None
    shared = data if processes == 1 else Share(data, process, processes)
    return Feed(Batches(shared, device=device, forward_args=forward_args), device, steps, _generators(data))


@dataclass(frozen=True, slots=True)
class Share:
    """Every so many batches of the data, the same number for each process."""

    data: Iterable[Any]
    process: int
    processes: int

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.data)
        while len(turn := list(islice(batches, self.processes))) == self.processes:
            yield turn[self.process]


def _generators(data: Any) -> tuple[torch.Generator, ...]:
    """Returns the generators of a loader, its sampler and the sampler inside its batch sampler, each once."""
    places = [data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None)]
    places.append(getattr(places[2], "sampler", None))
    found = {id(g): g for place in places if isinstance(g := getattr(place, "generator", None), torch.Generator)}
    return tuple(found.values())
