"""`Schedule`: pruning within the user's own training loop."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from fxprune._base.errors import BudgetError, CaptureError, PlanError, ScorerError
from fxprune._base.given import is_whole
from fxprune._base.modes import plain_modes, random_states_kept
from fxprune.budget.budget import Budget
from fxprune.budget.constraints import free_groups
from fxprune.budget.cost import Cost, cost_model
from fxprune.compiler.options import AUTO, Options
from fxprune.compiler.stages import capture, prepare, through, to_coupled
from fxprune.compiler.state import State
from fxprune.data.checks import device_of
from fxprune.results.tables import few
from fxprune.rewriting.pruned import PrunedModule
from fxprune.sparsity import penalties
from fxprune.sparsity.choosing import chosen, refreshed
from fxprune.sparsity.finishing import finished, removable
from fxprune.sparsity.layout import Layout, clear, flags_of, layout_of
from fxprune.sparsity.penalties import STRENGTHS, USUAL_RATE, Sparsity
from fxprune.sparsity.plain import check_alike, inner, plain_copy, shapes
from fxprune.sparsity.rehearsal import inexact
from fxprune.sparsity.shapes import SHAPES, Shape

#: The options of `fxprune.compile` that a schedule has no use for, and why.
_REFUSED = {
    "ratios": "a schedule approaches a budget",
    "recover": "training recovers",
    "ridge": "training recovers",
    "holdout": "training recovers",
    "allow_bias": "training recovers",
    "basis": "the model that is trained keeps its own: give fxprune.rotate(model, data) instead",
    "loss": "no criterion with gradients is used",
    "cache_dir": "choosing is quick",
    "progress": "the loop is yours",
    "alone": "all processes of the training hold the same schedule",
    "weights": "what is trained is in memory",
    "out": "fxprune.save writes what finish() returns",
}

#: How many times units are chosen, unless ``every`` says otherwise.
_CHOICES = 50


@dataclass(frozen=True, slots=True)
class Pace:
    """How a schedule goes.

    Attributes:
        steps: of the optimiser, until the budget is reached.
        shape: how the way is shared out among them.
        sparsity: the regulariser, if any.
        strength: what it does in a step at a learning rate of one.
        every: so many steps after each other units are chosen.
    """

    steps: int
    shape: Shape
    sparsity: Sparsity | None
    strength: float
    every: int

    @classmethod
    def of(cls, steps: Any, shape: Any, sparsity: Any, strength: Any, every: Any) -> Pace:
        """Returns the pace that a caller asks for.

        Raises:
            TypeError, ValueError: an argument is malformed; says which, what was expected and what came.
        """
        for name, value in (("steps", steps), ("every", every)):
            if not is_whole(value, 1) and not (name == "every" and value is None):
                raise ValueError(f"{name} must be an int of at least 1, got {value!r:.80}")
        if shape not in SHAPES:
            raise ValueError(f"shape must be among {', '.join(SHAPES)}, got {shape!r:.80}")
        if sparsity is not None and sparsity not in STRENGTHS:
            raise ValueError(f"sparsity must be None or among {', '.join(get_args(Sparsity))}, got {sparsity!r:.80}")
        if strength is not None and sparsity is None:
            raise ValueError(f"strength={strength!r:.80} is that of a regulariser: give sparsity= with it")
        if strength is not None and (isinstance(strength, bool) or not isinstance(strength, int | float)):
            raise TypeError(f"strength: expected a number, got {strength!r:.80}")
        if strength is not None and not 0 < strength < float("inf"):
            raise ValueError(f"strength must be positive and finite, got {strength}")
        amount = strength if strength is not None else STRENGTHS.get(sparsity, 0.0)
        return cls(steps, shape, sparsity, float(amount), every or max(1, steps // _CHOICES))


class Schedule:
    """Takes a model that is being trained from dense to a budget, in place, and returns it pruned in the end.

    `step` is called right after ``optimizer.step()``. It lets the regulariser do its part, chooses at intervals which units
    are to be zero by now, and writes zeros to all weights that make, scale or read them: whatever the optimiser's momentum
    does to them, they are zero after each step. As removing them changes nothing then, `finish` gives what the trained model is.
    A unit that is zero once stays so.

    Example:
        ``schedule = fxprune.Schedule(model, batches, 0.5, steps=1000)``, then ``optimizer.step(); schedule.step()`` in the loop,
        and ``pruned = schedule.finish()`` after it.
    """

    def __init__(
        self,
        model: nn.Module,
        calib_data: Any,
        budget: float | Budget,
        *,
        steps: int,
        shape: Shape = "cubic",
        sparsity: Sparsity | None = None,
        strength: float | None = None,
        every: int | None = None,
        **options: Any,
    ) -> None:
        """Captures the model, once, and finds which units zeros remove exactly; the model is as it was afterwards.

        Args:
            model: the live one. Its parameters are found by name at every step, so it may be wrapped (DDP, `torch.compile`),
                moved and sharded (``fully_shard``) before or after this.
            calib_data: batches as `fxprune.compile` takes them; on several processes the same ones.
            budget: the share of parameters to keep, or a `Budget` of parameters or MACs.
            steps: calls of `step` until the budget is reached; those after it hold what is zero.
            shape: how the way is shared out: ``"cubic"``, most of it early; ``"one_cycle"``, in the first half after a slow start;
                ``"linear"``.
            sparsity: makes units small before they go: ``"group_lasso"``, every unit alike, to exact zeros; ``"growing"``, a rising L2
                penalty on those that go at the budget by the first choice; ``"bn_scale"``, L1 on batch norms' scales; or None.
            strength: of that, in a step at a learning rate of one: what is taken off the root mean square of a unit's weights, the
                penalty at the budget, or what is taken off a scale. By default 5e-3, 1 and 1e-2, in this order.
            every: so many steps after each other units are chosen; by default 50 times in all.
            **options: of `fxprune.compile`: ``method`` (by default ``"magnitude"``, under ``"bn_scale"`` that), ``units``, ``ignore``,
                ``round_to``, ``min_keep``, ``form``, ``also``, ``uniform``, ``allocation``, ``forward_args``, ``dynamic_shapes``,
                ``strict``, ``verify``, ``verify_dtype``, ``memory_limit``, ``seed``.

        Raises:
            CaptureError: the model cannot be captured, or only parts of it.
            CalibrationError: the data or the weights are unusable.
            BudgetError: the budget is malformed, bounds a latency, or is out of reach.
            ScorerError: an unknown method, or one that needs gradients.
            NothingToPruneError: no unit may go.
            TypeError, ValueError: another argument is malformed.
        """
        self.pace = Pace.of(steps, shape, sparsity, strength, every)
        chosen_options = _options(options, sparsity)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected a torch.nn.Module, which is to be trained, got {model!r:.80}")
        self.model, self._data = inner(model), calib_data
        self._state = _coupled(self.model, calib_data, budget, chosen_options)
        self._layout: Layout = layout_of(self._state.coupling, device_of(self.model))
        self._shapes = shapes(self.model)
        self._fixed = inexact(self._state, self._layout)
        self._free = self._flags(_free(self._state, self._fixed))
        self._scales = penalties.scales_of(self._state.coupling)
        self._count = 0
        self._hold_from(self._flags(()))
        self._going = self._flags(self._chosen(1.0, None))  # whether the budget is in reach shows now

    def _hold_from(self, gone: Tensor) -> None:
        self._gone, self._cuts = gone, self._layout.cuts(gone)

    def _flags(self, units: Any) -> Tensor:
        return flags_of(units, self._layout)

    @property
    def count(self) -> int:
        """How many steps were made."""
        return self._count

    @property
    def share(self) -> float:
        """How much of the way to the budget is behind, from 0 to 1."""
        return SHAPES[self.pace.shape](min(self._count / self.pace.steps, 1.0)) if self._count else 0.0

    @property
    def cost(self) -> Cost:
        """What the model would cost without the units that are held at zero."""
        coupling = self._state.coupling
        return cost_model(coupling).of(coupling.removed_mask(self._gone.cpu().nonzero().flatten().tolist()))

    @property
    def zero(self) -> Mapping[str, int]:
        """How many units of each group are held at zero, by the group's name."""
        gone = self._gone.cpu()
        return {group.name: int(gone[torch.from_numpy(group.units)].sum()) for group in self._state.coupling.groups}

    @torch.no_grad()
    def step(self, lr: float | Tensor = USUAL_RATE) -> None:
        """Does the schedule's part of a training step, right after the optimiser's; on several processes all of them must.

        Args:
            lr: the learning rate of the step, a number or a tensor ``[]``, which the regulariser's strength is multiplied by.

        Raises:
            ScorerError: the weights are not finite.
            ValueError: ``lr`` is negative, or no number.
        """
        lr = _rate(lr)
        self._count += 1
        if self._count <= self.pace.steps:
            self._penalise(lr)
            if self._count % self.pace.every == 0 or self._count == self.pace.steps:
                refreshed(self._state, self.model)
                going = self._going if self.pace.sparsity == "growing" else None
                self._hold_from(self._flags(self._chosen(self.share, going)))
        self.hold()

    def _penalise(self, lr: float) -> None:
        amount, live = self.pace.strength * lr, self._free & ~self._gone
        if self.pace.sparsity == "group_lasso":
            penalties.group_lasso(self._layout, self.model, live, amount)
        elif self.pace.sparsity == "growing":
            growth = self._count / self.pace.steps
            penalties.growing(self._layout, self.model, self._going & ~self._gone, amount * growth)
        elif self.pace.sparsity == "bn_scale":
            penalties.bn_scale(self._layout, self.model, live, self._scales, amount)

    def _chosen(self, share: float, going: Tensor | None) -> Any:
        found = chosen(self._state, share, gone=self._gone, going=going, stay=self._fixed)
        return self._state.coupling.units_of(found)

    @torch.no_grad()
    def hold(self, model: nn.Module | None = None) -> None:
        """Writes zeros wherever a unit lies that is zero by now: on the live model, or a copy such as an average of weights.

        Raises:
            PlanError: the copy is of another model.
        """
        if model is not None:
            check_alike(inner(model), self._shapes)
        clear(self.model if model is None else inner(model), self._cuts)

    @torch.no_grad()
    def finish(self, model: nn.Module | None = None) -> PrunedModule:
        """Returns the trained model without its zero units, as `fxprune.compile` returns one; the live model stays as it is.

        What goes is what is held at zero, and what the regulariser has made zero besides.

        Args:
            model: a copy of the live model, such as an average of its weights (`AveragedModel`), instead of it.

        Raises:
            NothingToPruneError: no unit is zero.
            VerificationError: the model computes something else without them, a bug of fxprune.
            RestoreError: under ``form="module"``, its class cannot say what is left.
            PlanError: the copy is of another model.
        """
        source = self.model if model is None else inner(model)
        check_alike(source, self._shapes)
        plain = plain_copy(source)
        self.hold(plain)
        coupling, constraints = self._state.coupling, self._state.constraints
        norms = self._layout.norms(plain).cpu().double().numpy()
        zero = coupling.removed_mask(np.flatnonzero((norms == 0) & self._free.cpu().numpy()))
        sizes = np.zeros(len(coupling.channels))
        sizes[coupling.units] = norms
        removed = removable(coupling, constraints, zero, sizes)
        clear(plain, self._layout.cuts(self._flags(coupling.units_of(removed))))
        return finished(self._state, removed, plain, self._data, self._notes())

    def _notes(self) -> tuple[str, ...]:
        done, steps = min(self._count, self.pace.steps), self.pace.steps
        early = f"the schedule was finished after {done} of {steps} steps, short of its budget"
        fixed = f"groups that zeros do not remove exactly stay whole: {few(self._fixed, 6)}"
        return (*([early] if done < steps else []), *([fixed] if self._fixed else []))

    def state_dict(self) -> dict[str, Any]:
        """Returns what it takes to go on: numbers, and flags of units, ``[units]``; `torch.load` takes it with ``weights_only``."""
        return {
            "steps": self.pace.steps,
            "budget": repr(self._state.budget),
            "count": self._count,
            "gone": self._gone.cpu().clone(),
            "going": self._going.cpu().clone(),
            "groups": {group.name: len(group.units) for group in self._state.coupling.groups},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another schedule for the same model was, and holds what was zero there.

        Raises:
            PlanError: the state is of another model, another number of steps or another budget; or it is none.
        """
        own = self.state_dict()
        if not isinstance(state, Mapping) or state.keys() != own.keys():
            got = sorted(state) if isinstance(state, Mapping) else f"{state!r:.80}"
            raise PlanError(f"expected what Schedule.state_dict() returned, with {', '.join(own)}; got {got}")
        for name, why in (
            ("groups", "it is of another model"),
            ("steps", "it is of another schedule"),
            ("budget", "it is of another schedule"),
        ):
            if state[name] != own[name]:
                raise PlanError(f"{why}: {name}: expected {own[name]!r:.200}, got {state[name]!r:.200}")
        for name in ("gone", "going"):
            flags = state[name]
            if not isinstance(flags, Tensor) or flags.dtype != torch.bool or flags.shape != own[name].shape:
                raise PlanError(f"{name}: expected a flag for each of {len(own[name])} units, got {flags!r:.80}")
        if not is_whole(state["count"], 0):
            raise PlanError(f"count: expected a number of steps, got {state['count']!r:.80}")
        device = self._gone.device
        self._count, self._going = state["count"], state["going"].to(device)
        self._hold_from(state["gone"].to(device))
        self.hold()

    def __repr__(self) -> str:
        """Returns how far it is, and how many units are zero."""
        zero, every = int(self._gone.sum()), len(self._gone)
        return f"fxprune.Schedule: {self._count} of {self.pace.steps} steps, {zero:,} of {every:,} units zero"


def _options(given: Mapping[str, Any], sparsity: Sparsity | None) -> Options:
    """Returns the options of the compilation at the end.

    Raises:
        TypeError: there is no such option, or a schedule has no use for it.
        ValueError: residual branches are to go, which hold layers that no zeros name.
    """
    known = [entry.name for entry in fields(Options) if entry.name not in (*_REFUSED, "steps")]
    if unknown := [name for name in given if name not in known]:
        why = f": {_REFUSED[unknown[0]]}" if unknown[0] in _REFUSED else ""
        raise TypeError(f"Schedule takes no {unknown[0]!r}{why}; the options that it takes: {', '.join(known)}")
    options = Options(
        **{"method": sparsity if sparsity == "bn_scale" else "magnitude", **given}, recover=None, progress=False
    )
    if options.allocation == "search":
        raise ValueError("allocation='search' recovers many models each time: expected 'curves' or 'uniform'")
    if options.min_keep == 0:
        raise ValueError("min_keep=0 lets whole branches go, which a schedule does not: expected at least 1")
    if "block" in (options.units if not isinstance(options.units, str) else (options.units,)):
        raise ValueError(
            "units: a schedule takes no 'block': expected some of channel, expert, head, head_dim, kv_group"
        )
    return options if options.min_keep != AUTO else replace(options, min_keep=1)


@random_states_kept()
@plain_modes()
def _coupled(model: nn.Module, data: Any, budget: Any, options: Options) -> State:
    """Returns what is known of a model before it is trained.

    Raises:
        BudgetError: the budget bounds a latency.
        ScorerError: the criterion needs gradients.
        CaptureError: only parts of the model can be captured.
    """
    state = prepare(model, data, budget, options)
    assert state.budget is not None
    if state.budget.bounds_latency:
        raise BudgetError(
            "a schedule chooses often, and a latency is measured each time: expected a budget of params or macs"
        )
    if "gradients" in state.scorer.needs:
        raise ScorerError(
            f"method {state.scorer.name!r} needs gradients of its own loss beside the training's: expected a criterion that reads "
            "weights or activations, such as 'magnitude', 'fpgm', 'bn_scale' or 'variance'"
        )
    state = through(state, capture)
    if state.captured is None:
        raise CaptureError(
            f"only parts of the model can be captured ({few(state.parts, 3)}), and a schedule is for a whole one: make it of a part, "
            "such as model.backbone"
        )
    return to_coupled(state)


def _rate(lr: Any) -> float:
    """Returns a learning rate as a number.

    Raises:
        ValueError: it is negative, or none.
    """
    try:
        found = float("nan") if isinstance(lr, bool | str) else float(lr)
    except (TypeError, ValueError, RuntimeError):
        found = float("nan")
    if not 0 <= found < float("inf"):
        raise ValueError(f"lr: expected a learning rate of at least 0, got {lr!r:.80}")
    return found


def _free(state: State, fixed: Collection[str]) -> Any:
    """Returns the numbers of the units that may go, ``[free]``."""
    groups = [group for group in free_groups(state.coupling, state.constraints) if group.name not in fixed]
    return np.concatenate([np.zeros(0, np.int64), *(group.units for group in groups)])
