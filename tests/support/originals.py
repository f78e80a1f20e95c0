"""One drawn network through `fxprune.compile`, against the original with zeros: outputs, other sizes, a training step."""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

import fxprune
from tests.models.networks import Network
from tests.support.fuzzing import BATCH, OTHER_BATCH, Case, Pruning
from tests.support.weights import randomise
from tests.support.zeroed import (
    Inputs,
    Kept,
    as_pruned,
    certain,
    differing,
    evaluate,
    has_made,
    other_buffers,
    other_gradients,
    plain,
    shaken,
    step,
    with_zeros,
)

#: What may be wrong; an error is one that is not fxprune's.
FAULTS = ("output", "size", "gradient", "buffer", "training", "error")
#: Batch and how much longer or wider than captured: what a result must take as the original does, or refuse.
SIZES = ((OTHER_BATCH, 0), (1, 0), (BATCH, 2), (BATCH, -2), (2, 3))


@dataclass
class Found:
    """What came of a case.

    Attributes:
        status: verified, announced (training is another, and a warning says so), refused (in words, at compiling),
            nothing (no channel may go), twin (the original has no zeros for this: the compiler's own proof alone), wrong.
        faults: what is wrong (output, size, gradient, buffer, training, names) or fails with an error that is not ours
            (error), each with the first difference.
        why: of a refusal.
        sizes: how often another size was equal, refused, or taken by neither.
        units: units removed.
    """

    status: str = "wrong"
    faults: list[tuple[str, str]] = field(default_factory=list)
    why: str = ""
    sizes: Counter[str] = field(default_factory=Counter)
    units: int = 0


def against_the_original(case: Case) -> Found:
    """Returns what comes of a case; no exception but an interrupt leaves."""
    found = Found()
    try:
        _compare(case, found)
    except fxprune.NothingToPruneError:
        found.status = "nothing"
    except fxprune.VerificationError as error:
        found.faults.append(("output", str(error)))
    except fxprune.FxpruneError as error:
        found.status, found.why = "refused", f"{type(error).__name__}: {error}"
    except Exception as error:
        found.faults.append(("error", _described(error)))
    if found.faults:
        found.status = "wrong"
    return found


def build(case: Case) -> nn.Module:
    """Returns the network of a case, its weights random; the same each time."""
    network, pruning = case.network, case.pruning
    torch.manual_seed(pruning.seed)
    model = certain(network.build())
    randomise(model, pruning.seed, network.example(8, pruning.seed + 1))
    if "Made" in set(network.kinds()):  # what it keeps of its last call fits these weights
        with torch.no_grad():
            model.train()(*network.example(8, pruning.seed + 2))
    return model.eval()


def _compare(case: Case, found: Found) -> None:
    pair, inputs, told = paired(case)
    found.units, found.status = fxprune.report(pair.pruned).units_removed, "twin"
    if not case.network.zeros():
        return
    found.status = "verified"
    if faults := pair.other_outputs(inputs):  # all else would differ as well
        found.faults += faults
        return
    for batch, more in SIZES:
        found.sizes[pair.at(case.network.example(batch, case.pruning.seed + batch, more), found.faults)] += 1
    trained = list(pair.other_step(inputs))
    if trained and told:
        found.status = "announced"
    else:
        found.faults += trained


def paired(case: Case) -> tuple[Pair, Inputs, bool]:
    """Returns original and result of a case, the inputs it was captured with, and whether a warning speaks of training."""
    model, original, inputs = build(case), build(case), case.network.example(BATCH, case.pruning.seed)
    dead = case.pruning.dead and "Made" not in set(case.network.kinds()) and not has_made(model)
    before = fxprune.report(compiled(model, inputs, case.pruning)).plan.keep if dead else {}
    with_zeros(model, before)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        pruned = compiled(model, inputs, case.pruning)
    report = fxprune.report(pruned)
    original, keep, made = plain(with_zeros(original, before), report.plan.keep)
    original = as_pruned(original, keep, dead=dead)
    told = any(issubclass(w.category, (fxprune.GradientWarning, fxprune.TrainingWarning)) for w in seen)
    return Pair(original, pruned, keep, made, case.network), inputs, told


def compiled(model: nn.Module, inputs: Inputs, pruning: Pruning) -> nn.Module:
    """Returns what the compiler makes of a model, by random scores; a budget out of reach is answered by a ratio."""
    constraints = pruning.constraints()
    common: dict[str, Any] = {
        "method": "random",
        "recover": None,
        "seed": pruning.seed,
        "progress": False,
        "forward_args": lambda batch: (batch, {}),
        "units": constraints.kinds,
        "min_keep": constraints.min_keep,
        "round_to": constraints.round_to,
    }
    if pruning.budget is not None:
        kind = "macs" if pruning.macs else "params"
        try:
            return fxprune.compile(model, [inputs], fxprune.Budget(**{kind: pruning.budget}), **common)
        except fxprune.BudgetError:
            pass
    return fxprune.compile(model, [inputs], ratios=pruning.ratio or 0.5, **common)


Fault = tuple[str, str]


@dataclass(frozen=True)
class Pair:
    """An original with zeros and a result, to be called alike.

    Attributes:
        original: with zeros where something was removed.
        pruned: the result.
        keep: what is kept of each tensor.
        made: layers whose weight is made of others in the result, and a plain one in the original.
        network: which network it is.
    """

    original: nn.Module
    pruned: nn.Module
    keep: Kept
    made: set[str]
    network: Network

    def other_outputs(self, inputs: Inputs, when: str = "") -> list[Fault]:
        """Returns how the outputs differ in evaluation."""
        want = evaluate(self.original, inputs)
        try:
            text = differing(want, evaluate(self.pruned, inputs), self.network.tolerance())
        except Exception as error:
            return [("error", when + _described(error))]
        return [("output", when + text)] if text else []

    def at(self, inputs: Inputs, faults: list[Fault]) -> str:
        """Returns what came of a call at another size: equal, refused, neither if the original takes none such; or adds a fault.

        A size that only a part refused of which nothing is left counts as neither.
        """
        where = f"at {[tuple(x.shape) for x in inputs]}: "
        want, refused_by = None, ""
        try:
            with entered(self.original) as within:
                want = evaluate(self.original, inputs)
        except Exception:  # whatever the original says to it
            refused_by = within[-1]
        try:
            got = evaluate(self.pruned, inputs)
        except fxprune.FxpruneError:
            return "refused"
        except Exception as error:
            if want is None:
                return "neither"
            faults.append(("error", where + _described(error)))
            return "wrong"
        if want is None and refused_by and not self.left(refused_by):
            return "neither"
        text = differing(want, got, self.network.tolerance()) if want is not None else "the original takes no such size"
        if text:
            faults.append(("size", where + text))
        return "wrong" if text else "equal"

    def left(self, module: str) -> bool:
        """Returns whether the result has anything of a module of the original's."""
        return any(name.startswith(f"{module}.") for name in self.pruned.state_dict())

    def other_step(self, inputs: Inputs) -> Iterator[Fault]:
        """Yields how outputs, gradients and buffers of a training step differ, and the outputs after it."""
        want = step(self.original, inputs)
        try:
            got = step(self.pruned, inputs)
        except Exception as error:
            yield ("training" if isinstance(error, fxprune.FxpruneError) else "error", "training: " + _described(error))
            return
        tolerance = self.network.tolerance()
        if text := differing(want.outputs, got.outputs, tolerance):
            yield "training", text
            return
        compared = partial(other_gradients, want, got, self.keep, self.made, 10 * tolerance)
        if any(compared()):  # most are equal without
            yield from (("gradient", text) for text in compared(shaken(self.original, inputs, want)))
        yield from (("buffer", text) for text in other_buffers(want, got, self.keep, self.made, tolerance))
        yield from self.other_outputs(inputs, "after a training step: ")


@contextmanager
def entered(model: nn.Module) -> Iterator[list[str]]:
    """Within, the list has the names of the modules that a call is in; after an error, of those it was in."""
    within: list[str] = []

    def leave(*_: Any) -> None:
        within.pop()

    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda _m, _x, name=name: within.append(name)))
        hooks.append(module.register_forward_hook(leave))
    try:
        yield within
    finally:
        for hook in hooks:
            hook.remove()


def _described(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    last = next((f for f in reversed(frames) if "/fxprune/" in f.filename), frames[-1])
    place = f"{last.filename.rpartition('/fxprune/')[2]}:{last.lineno}, {last.name}"
    return f"{type(error).__name__}: {str(error).strip()[:300]} ({place})"
