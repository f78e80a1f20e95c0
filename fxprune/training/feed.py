"""Training data: read anew in every epoch, in an order that the seed and the epoch alone decide."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fxprune._base.modes import random_states_kept
from fxprune._base.ranks import rank, world
from fxprune.data.batch import Batch, ForwardArgs
from fxprune.data.batches import Batches


@dataclass(frozen=True, slots=True)
class Feed:
    """Batches, which several processes share out in turn.

    Attributes:
        batches: all of them, checked, on the device.
        device: where they are.
        length: how many they are; None if the data do not tell.
        generators: those that the data draw from, besides the global ones.
        whole: leave out a last round in which not every process has a batch.
    """

    batches: Batches
    device: torch.device
    length: int | None
    generators: tuple[torch.Generator, ...]
    whole: bool = False

    @property
    def steps(self) -> int | None:
        """How many rounds a pass has, in each of which every process has a batch, or at last some of them."""
        if self.length is None:
            return None
        return self.length // world() if self.whole else -(-self.length // world())

    def rounds(self) -> Iterator[Batch | None]:
        """Yields this process's batch of each round; None where the last round has none for it."""
        return self.batches.rounds(rank(), world(), whole=self.whole)

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
    data: Any, *, device: torch.device, batch_size: int, shuffle: bool, forward_args: ForwardArgs | None = None
) -> Feed:
    """Returns the feed of training or validation data; nothing is read yet.

    Args:
        data: a ``Dataset``, or batches as `fxprune.data.batches.Batches` takes them: a ``DataLoader``, a list, an iterable.
        device: where tensors go.
        batch_size: of a ``Dataset``.
        shuffle: whether a ``Dataset`` is shuffled; batches come in their own order.
        forward_args: makes a call out of a batch of another form.

    Raises:
        CalibrationError: the data are no batches, or can be read but once.
    """
    if isinstance(data, Dataset) and not isinstance(data, DataLoader):
        data = DataLoader(data, batch_size, shuffle=shuffle and not isinstance(data, IterableDataset))
    batches = Batches(data, device=device, forward_args=forward_args)
    try:
        length: int | None = len(batches)
    except TypeError:
        length = None
    return Feed(batches, device, length, _generators(data))


def _generators(data: Any) -> tuple[torch.Generator, ...]:
    """Returns the generators of a loader, its sampler and the sampler inside its batch sampler, each once."""
    places = [data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None)]
    places.append(getattr(places[2], "sampler", None))
    found = {id(g): g for place in places if isinstance(g := getattr(place, "generator", None), torch.Generator)}
    return tuple(found.values())
