"""What a criterion is: a small class that gives every unit a score; low goes first."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune._base.defaults import MEMORY_LIMIT
from fxprune._base.errors import ScorerError
from fxprune._base.given import check_factory, check_parts, check_takes, seed_of
from fxprune._base.names import fetch
from fxprune.capturing.inputs import Flat, Inputs, inputs_of
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.unit_scores import annotate, unit_scores
from fxprune.coupling.units import Group
from fxprune.scoring.loss import Loss, default_loss


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a scorer works with.

    Attributes:
        coupling: groups, parameter axes, contractions and the captured graph.
        inputs: the graph's flat inputs, batch by batch, with their targets on demand; may be gone through again
            and again.
        seed: for scorers that draw.
        loss: ``loss(outputs, targets)`` for gradient methods, a mean over samples; ``outputs`` as the model gives them.
        memory_limit: bytes for statistics and values that are alive.
        progress: show a progress bar on a terminal.
        cache_dir: where long scoring keeps what it has, to go on after an interruption.
        free: names of the groups that may lose units; None if all may. A costly scorer need not score the others: `STAYS` will do.
    """

    coupling: Coupling
    inputs: Inputs
    seed: int = 0
    loss: Loss = default_loss
    memory_limit: int = MEMORY_LIMIT
    progress: bool = False
    cache_dir: Path | None = None
    free: Collection[str] | None = None

    @property
    def groups(self) -> list[Group]:
        """The groups that may lose units."""
        return [group for group in self.coupling.groups if self.free is None or group.name in self.free]

    def by_group(self, per_channel: npt.NDArray[np.float64]) -> dict[str, Tensor]:
        """Returns scores by group, ``[units]`` each, from a value for each channel id, ``[channels]`` (see `accumulate`)."""
        units = self.coupling.units
        return {g.name: torch.from_numpy(per_channel[units[g.units]]) for g in self.coupling.groups}

    def zeros(self) -> npt.NDArray[np.float64]:
        """Returns one zero for each channel id, ``[channels]``."""
        return np.zeros(len(self.coupling.channels))

    def tensor(self, name: str) -> Tensor:
        """Returns a parameter or buffer of the captured model by its name, ``[...]``; not to be changed."""
        found: Tensor = fetch(self.coupling.captured.module, name).detach()
        return found


@runtime_checkable
class Scorer(Protocol):
    """A pruning criterion. A class that names this one as its base need not say ``defaults``: there are none.

    Attributes:
        name: how it is called in reports.
        needs: what it reads: any of ``"weights"``, ``"activations"``, ``"gradients"``, ``"masked outputs"``.
        per_cost: whether scores are importances, to be divided by what a unit costs before units of different
            layers are ranked together; False ranks the scores as they are.
        defaults: what `fxprune.compile` uses unless the caller says otherwise, e.g. ``{"recover": "covariance"}``.
        needs_targets: may be left out: False of one that needs gradients and takes targets only if there are any.
    """

    if TYPE_CHECKING:  # read-only to type checkers, so that a frozen class fits

        @property
        def name(self) -> str: ...  # noqa: D102

        @property
        def needs(self) -> Sequence[str]: ...  # noqa: D102

        @property
        def per_cost(self) -> bool: ...  # noqa: D102

        @property
        def defaults(self) -> Mapping[str, Any]:  # noqa: D102
            return {}

    else:  # a class of one's own may set them on itself or in ``__init__``
        name: str
        needs: Sequence[str]
        per_cost: bool
        defaults: Mapping[str, Any] = MappingProxyType({})

    def score(self, context: Context) -> Mapping[str, Tensor]:
        """Returns for each group's name a score for each of its units, ``[len(group.units)]``.

        A group that is to stay has `STAYS` throughout.
        """
        ...


#: What a criterion may read, and the options that it may have a choice of its own for.
NEEDS, PREFERRED = ("weights", "activations", "gradients", "masked outputs"), ("recover", "min_keep")

#: The modules of fxprune's own criteria, one a criterion.
_OWN = "bn_scale chip fpgm hrank ippro joint kl magnitude nisp random reap spvr taylor variance"

_PARTS = {"name": str, "needs": Collection, "per_cost": object, "defaults": Mapping, "score": object}

_SCORERS: dict[str, Callable[[], Scorer]] = {}


def register_scorer(name: str, factory: Callable[[], Scorer]) -> None:
    """Makes a criterion available as ``method=name``.

    Raises:
        ScorerError: the name is taken, or no name; or the factory cannot be called without arguments.
    """
    _fill()
    check_factory(ScorerError, "scorer", name, factory, _SCORERS)
    _SCORERS[name] = factory


@functools.cache
def _fill() -> None:
    """Registers fxprune's own criteria, the first time that anybody asks."""
    for module in _OWN.split():
        importlib.import_module(f"fxprune.scoring.{module}")


def registered() -> dict[str, Callable[[], Scorer]]:
    """Returns every criterion's name and what makes it."""
    _fill()
    return dict(_SCORERS)


def scorer_of(method: str | Scorer) -> Scorer:
    """Returns a scorer by name, or the scorer itself.

    Raises:
        ScorerError: no scorer of that name, or an object that is none; lists the names there are. Or one that needs or prefers
            what there is not.
    """
    expected = "method: expected a name or a scorer"
    if isinstance(method, str):
        known = registered()
        if method not in known:
            raise ScorerError(f"unknown method {method!r}; known methods: {', '.join(sorted(known))}")
        expected, method = f"method {method!r}: what is registered gives none: expected one", known[method]()
    check_parts(ScorerError, expected, method, _PARTS)
    check_takes(ScorerError, f"method {method.name!r}: score", method.score, "context")
    return _checked(method)


def judges_outputs(scorer: Scorer) -> bool:
    """Returns whether a criterion judges by the model's outputs, or by a loss of them."""
    return not {"gradients", "masked outputs"}.isdisjoint(scorer.needs)


def wants_targets(scorer: Scorer) -> Literal["needed", "welcome", ""]:
    """Returns whether a criterion fails without targets, takes them if there are any, or has no use for them."""
    if "gradients" not in scorer.needs:
        return ""
    return "needed" if getattr(scorer, "needs_targets", True) else "welcome"


def _checked(scorer: Scorer) -> Scorer:
    for part, known in (("needs", NEEDS), ("defaults", PREFERRED)):
        if unknown := [word for word in getattr(scorer, part) if word not in known]:
            raise ScorerError(
                f"method {scorer.name!r}: {part}: expected some of {', '.join(known)}, got {unknown[0]!r}"
            )
    return scorer


def score(
    coupling: Coupling,
    inputs: Iterable[Flat],
    method: str | Scorer,
    seed: int = 0,
    *,
    loss: Loss | None = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: bool = False,
    cache_dir: str | PathLike[str] | None = None,
) -> dict[str, Tensor]:
    """Scores every unit and writes the scores on the graph's nodes.

    ``node.meta["fxprune"]`` of a parameter's node becomes ``{axis: scores of its coordinates}``, NaN where frozen.

    Args:
        coupling: what may go.
        inputs: the graph's flat inputs, batch by batch, a tuple of tensors each.
        method: a registered name or a `Scorer`.
        seed: for scorers that draw.
        loss: ``loss(outputs, targets)`` for methods that need gradients; see `fxprune.scoring.loss.default_loss`.
        memory_limit: bytes for statistics and values that are alive.
        progress: show a progress bar on a terminal.
        cache_dir: a folder where long scoring keeps what it has, to go on after an interruption.

    Raises:
        ScorerError: an unknown method, or unusable scores.
        TypeError, ValueError: a seed that is no int, or too large.
    """
    folder = None if cache_dir is None else Path(cache_dir)
    context = Context(coupling, inputs_of(inputs), seed_of(seed), loss or default_loss, memory_limit, progress, folder)
    return scored(context, scorer_of(method))


def scored(context: Context, scorer: Scorer) -> dict[str, Tensor]:
    """Does what `score` does, ``[units]`` for each group, with all that a scorer works with."""
    scores = scorer.score(context)
    annotate(context.coupling, unit_scores(context.coupling, scores))
    return dict(scores)
