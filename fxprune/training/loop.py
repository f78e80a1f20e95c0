"""The training loop: steps, epochs, and what is left of a run that does not reach its end."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from fxprune._base.clocks import log_time
from fxprune._base.errors import TrainingError
from fxprune._base.extras import need
from fxprune._base.modes import evaluating
from fxprune._base.ranks import of_first, rank, world
from fxprune.data.batch import Batch
from fxprune.data.checks import probe
from fxprune.scoring.causal import is_causal, own_shift, telling
from fxprune.training import checkpoint, together
from fxprune.training.feed import Feed
from fxprune.training.history import Epoch, History
from fxprune.training.objective import Objective, examine
from fxprune.training.recipe import Recipe
from fxprune.training.tune import TrainingOptions


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One training run.

    Attributes:
        model: what is trained, in place.
        teacher: in evaluation mode and on the device, or None.
        objective: the loss; its recipe says how to train.
        feed: the training data.
        exam: the validation data, or None.
        optimizer: of the model's parameters.
        bf16: whether forward passes run in bfloat16 where that is safe.
        options: what the user asked for.
        identity: what a checkpoint must agree in to be resumed.
    """

    model: nn.Module
    teacher: nn.Module | None
    objective: Objective
    feed: Feed
    exam: Feed | None
    optimizer: torch.optim.Optimizer
    bf16: bool
    options: TrainingOptions
    identity: dict[str, Any]

    @property
    def recipe(self) -> Recipe:
        """How to train."""
        return self.objective.recipe

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Returns a model's outputs, in float32 where they were computed in bfloat16."""
        if not self.bf16:
            return model(*batch.args, **batch.kwargs)
        with torch.autocast(self.feed.device.type, torch.bfloat16):
            outputs = model(*batch.args, **batch.kwargs)
        return need("accelerate.utils", "train", "training").convert_to_fp32(outputs)

    @torch.no_grad()
    def taught(self, batch: Batch) -> Any:
        """Returns the teacher's outputs, None without one."""
        return None if self.teacher is None else self.forward(self.teacher, batch)


def train(run: Run, fresh: Callable[[nn.Module], object] | None = None) -> History:
    """Trains ``run.model`` in place and returns what happened.

    Whatever stops it, the model has the weights and buffers of the last finished step, its own training flags, and no
    gradients.

    Args:
        run: what to do.
        fresh: initialises the weights first, unless the run goes on from a checkpoint.

    Raises:
        TrainingError: the loss or the gradient is not finite; says at which step.
        PlanError: the checkpoint is damaged or of another run.
    """
    flags = [(module, module.training) for module in run.model.modules()]
    directory = None if run.options.checkpoint_dir is None else Path(run.options.checkpoint_dir)
    try:
        run = _looked_at_first(run)
        saved = (
            of_first(partial(checkpoint.read, directory, run.model, run.identity))
            if run.options.resume and directory
            else None
        )
        if saved is not None:
            saved.restore(run.model, run.optimizer)
        elif fresh is not None:
            fresh(run.model)
        together.check_alike(run.model, run.teacher, run.feed, run.options, run.identity)
        history = History(_examined(run), ()) if saved is None else saved.history
        for number in range(len(history.epochs) + 1, run.recipe.epochs + 1):
            history = replace(history, epochs=(*history.epochs, _epoch(run, number)))
            if run.options.progress and rank() == 0:
                last = history.epochs[-1]
                log_time(f"epoch {number}/{run.recipe.epochs}, loss {last.loss:.4f}", last.seconds)
            if directory is not None:
                of_first(partial(checkpoint.write, directory, run.model, run.optimizer, history, run.identity))
        return history
    finally:
        run.optimizer.zero_grad(set_to_none=True)
        for module, training in flags:
            module.training = training


def _looked_at_first(run: Run) -> Run:
    """Returns the run with what its first batch tells of targets; it suits the model and the loss, before anything is changed."""
    with run.feed.drawing(run.options.seed, 0):
        batch = run.feed.batches.first()
        probe(run.model, batch)
        run = replace(run, objective=replace(run.objective, causal=_is_causal(run, batch)))
        with evaluating(run.model):
            run.objective(run.forward(run.model, batch), batch.targets, run.taught(batch))
    return run


def _is_causal(run: Run, first: Batch) -> bool:
    """Returns whether targets are the next tokens: the model's own loss tells, or its report, else the teacher's, else the data."""
    if run.objective.loss is not None or first.targets is None:
        return False
    batch = telling(run.feed.batches, first)
    shifts = own_shift(run.model, batch)
    if shifts is None and run.teacher is not None:
        shifts = own_shift(run.teacher, batch)
    return is_causal(run.model, batch, shifts)


def _epoch(run: Run, number: int) -> Epoch:
    start = time.perf_counter()
    steps, total, samples, rate = run.feed.steps, 0.0, 0, run.recipe.lr
    hidden = None if run.options.progress and rank() == 0 else True  # None: not on a terminal
    run.model.train()
    with (
        run.feed.drawing(run.options.seed, number),
        tqdm(total=steps, desc=f"epoch {number}/{run.recipe.epochs}", leave=False, disable=hidden) as bar,
    ):
        for index, batch in enumerate(run.feed.rounds()):
            rate = _rate(run.recipe, number, index, steps)
            for group in run.optimizer.param_groups:
                group["lr"] = rate
            loss, size = _step(run, batch, f"epoch {number}, step {index + 1}")
            total, samples = total + loss * size, samples + size
            bar.set_postfix(loss=f"{total / samples:.4f}", refresh=False)
            bar.update()
    together.mean_buffers(run.model)
    metrics = _examined(run)
    return Epoch(number, total / samples, metrics, rate, time.perf_counter() - start)


def _rate(recipe: Recipe, number: int, index: int, steps: int | None) -> float:
    """Returns the rate of a step; it moves once an epoch where the number of steps is not known beforehand."""
    if steps is None:
        return recipe.rate(number - 1, 1)
    return recipe.rate((number - 1) * steps + min(index, steps - 1), steps)


def _step(run: Run, batch: Batch | None, where: str) -> tuple[float, int]:
    """Makes one step and returns its loss and how many samples it had, over all processes; where it fails, nothing has changed."""
    with _undone_on_error(run.model):
        value, size = together.backward(_loss(run, batch), _trained(run))
        norm = float(_gradient_norm(run))
        if not math.isfinite(value) or not math.isfinite(norm):
            raise TrainingError(
                f"training: {where}: expected finite numbers, got a loss of {value:g} and a gradient of norm {norm:g}; "
                "the model keeps the weights of the step before: lower lr, set clip_norm or warmup, or look at the data"
            )
    with _undisturbed():
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    return value, size


def _loss(run: Run, batch: Batch | None) -> together.Loss | None:
    """Returns the loss of this process's batch, None if it has none."""
    if batch is None:
        return None
    taught, outputs = run.taught(batch), run.forward(run.model, batch)
    loss = run.objective(outputs, batch.targets, taught)
    return together.Loss(loss, run.objective.weight(outputs, batch) if world() > 1 else 1.0, batch.size)


def _trained(run: Run) -> list[nn.Parameter]:
    return [parameter for group in run.optimizer.param_groups for parameter in group["params"]]


def _gradient_norm(run: Run) -> Any:
    parameters = _trained(run)
    if run.recipe.clip_norm is not None:
        return nn.utils.clip_grad_norm_(parameters, run.recipe.clip_norm)
    return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def _examined(run: Run) -> dict[str, float]:
    if run.exam is None:
        return {}
    run.model.eval()
    plain = replace(run.objective, recipe=replace(run.recipe, label_smoothing=0.0, distill_weight=0.0))
    student = partial(run.forward, run.model)
    return examine(run.exam, plain, run.options.metrics, student=student, teacher=run.taught, seed=run.options.seed)


@contextmanager
def _undone_on_error(model: nn.Module) -> Iterator[None]:
    """Puts the buffers' values back if a step fails: batch norm takes a batch in before its loss is known."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
        raise


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Lets Ctrl-C wait until the weights are all of one step."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    late: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *call: late.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
    if late:
        handler(*late[0])
