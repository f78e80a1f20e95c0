"""A fresh initialisation of a network, by its modules' own rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from fxprune._base.errors import FxpruneError

#: Initialises a whole model in place.
Reset = Callable[[nn.Module], object]


def check_resettable(model: nn.Module) -> None:
    """Makes sure that every parameter belongs to a module that can initialise it.

    Raises:
        FxpruneError: one does not; names it.
    """
    if left := not_resettable(model):
        raise FxpruneError(
            f"expected modules with reset_parameters() for all parameters, found none for {left[0]!r} "
            f"({len(left)} in all); retrain takes reset=, a function that initialises the model in place"
        )


def not_resettable(model: nn.Module) -> list[str]:
    """Returns the names of the parameters that no module can initialise, such as class tokens."""
    covered = {id(p) for _, module in _resetters(model) for p in module.parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) not in covered]


def reset_weights(model: nn.Module, seed: int, reset: Reset | None = None) -> None:
    """Initialises a model in place, the same for the same seed; the global random state stays as it is.

    Args:
        model: what to initialise.
        seed: of what is drawn.
        reset: does it; by default every module's own ``reset_parameters``, in the order of ``model.modules()``.
    """
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        if reset is not None:
            with torch.no_grad():
                reset(model)
            return
        for resetter, _ in _resetters(model):
            resetter()


def _resetters(model: nn.Module) -> Iterator[tuple[Callable[[], object], nn.Module]]:
    for module in model.modules():
        found = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(found):
            yield found, module
