"""Every architecture that the coverage table names: how to build it small, and a call of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Call:
    """A model with random weights in evaluation mode, and one call of it with a batch of two samples or more that differ."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Architecture:
    """One line of the coverage table.

    Attributes:
        collection: ``"torchvision"``, ``"timm"``, ``"transformers"``, ``"written"`` or ``"ultralytics"``.
        name: how the collection calls it.
        build: makes the model and a call of it; imports its library only then.
    """

    collection: str
    name: str
    build: Callable[[], Call]


def select(collections: list[str] | None = None, names: list[str] | None = None) -> list[Architecture]:
    """Returns the architectures of some collections (by default of all but ultralytics), or only those of the given names.

    Raises:
        KeyError: a name that no collection has.
    """
    from . import timm_models, torchvision_models, transformers_models, ultralytics_models, written

    made = [torchvision_models, timm_models, transformers_models, written, ultralytics_models]
    every = {entry.name: entry for module in made for entry in module.entries()}
    if names:
        return [every[name] for name in names]
    wanted = collections or ["torchvision", "timm", "transformers", "written"]
    return [entry for entry in every.values() if entry.collection in wanted]
