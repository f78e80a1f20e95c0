"""Callbacks: a `Schedule` in the training loops of transformers and Lightning, which are imported when one is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fxprune._base.errors import PlanError
from fxprune._base.extras import need
from fxprune.sparsity.schedule import Schedule

#: The file beside each of the `Trainer`'s checkpoints.
FILE = "fxprune-schedule.pt"


def _check(schedule: Any) -> None:
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: expected a fxprune.Schedule, got {schedule!r:.80}")


def _highest(optimizer: Any) -> float:
    """Returns the highest learning rate of an optimiser's groups; 1 without one."""
    return max((float(group["lr"]) for group in optimizer.param_groups), default=1.0) if optimizer is not None else 1.0


def for_transformers(schedule: Schedule) -> Any:
    """Returns a `TrainerCallback` that makes the schedule's steps, at the optimiser's learning rate.

    Every checkpoint has the schedule's state in it; a run that ``resume_from_checkpoint`` takes up in the same ``output_dir`` goes on
    from there. After training ``schedule.finish()`` returns the pruned model.

    Args:
        schedule: for the model that the `Trainer` trains.

    Raises:
        TypeError: it is no schedule.
        MissingExtraError: transformers is not installed.
    """
    _check(schedule)
    base = need("transformers", "models", "a TrainerCallback").TrainerCallback

    class ScheduleCallback(base):  # type: ignore[misc, valid-type]
        def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step and not schedule.count:
                path = _checkpoint(args, state)
                if not path.exists():
                    raise PlanError(
                        f"training goes on at step {state.global_step}, and {path} is not there: load what schedule.state_dict() gave "
                        "by schedule.load_state_dict() before train()"
                    )
                schedule.load_state_dict(torch.load(path, weights_only=True))

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            schedule.step(_highest(given.get("optimizer")))

        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.is_world_process_zero:
                torch.save(schedule.state_dict(), _checkpoint(args, state))

    return ScheduleCallback()


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE


def for_lightning(schedule: Schedule) -> Any:
    """Returns a Lightning `Callback` that makes a step of the schedule behind each of the optimiser's, at its learning rate.

    Checkpoints have the schedule's state in them, and ``fit(ckpt_path=...)`` takes it up.

    Args:
        schedule: for the `LightningModule`, or for a module within it.

    Raises:
        TypeError: it is no schedule.
        MissingExtraError: lightning is not installed.
    """
    _check(schedule)
    base = need("lightning.pytorch", "ecosystem", "a Lightning callback").Callback

    class ScheduleCallback(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self.seen = 0

        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.seen = trainer.global_step

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
            if trainer.global_step > self.seen:  # gradients may have been accumulated instead
                self.seen = trainer.global_step
                schedule.step(_highest(trainer.optimizers[0] if trainer.optimizers else None))

        def state_dict(self) -> dict[str, Any]:
            return schedule.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            schedule.load_state_dict(state_dict)

    return ScheduleCallback()
