"""The stopwatch: measures single operations and whole models under one setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxprune._base.modes import evaluating
from fxprune.capturing.captured import Captured
from fxprune.latency.layout import example_call
from fxprune.latency.measure import interleaved
from fxprune.latency.operation import Operation
from fxprune.runtimes.registry import Run
from fxprune.runtimes.running import moved, ready
from fxprune.runtimes.setting import Setting, threads_set

#: An operation is measured for about this long; at each of several widths that are compared; and a whole model.
OPERATION_SECONDS, COMPARISON_SECONDS, MODEL_SECONDS = 0.02, 0.1, 2.0


@dataclass(slots=True)
class Stopwatch:
    """Measures under one setting; models are timed in turns with the original.

    Attributes:
        setting: device, batch size, backend and threads.
        original: the model as it came.
        args: of a call at the setting's batch size, on its device.
        kwargs: the same.
    """

    setting: Setting
    original: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    _reference: Run | None = field(default=None, repr=False)

    def operation(self, operation: Operation, widths: tuple[int, ...]) -> float | None:
        """Returns the milliseconds of an operation run alone, eagerly, at its quickest; None if it cannot be."""
        return next(iter(self.compare(operation, [widths], repeats=5, seconds=OPERATION_SECONDS)), None)

    def compare(
        self,
        operation: Operation,
        widths: Sequence[tuple[int, ...]],
        repeats: int = 21,
        seconds: float = COMPARISON_SECONDS,
    ) -> list[float]:
        """Returns the milliseconds of an operation at several widths, timed in turns, at its quickest; none if it cannot run alone."""
        with threads_set(self.setting.threads), torch.inference_mode():
            try:
                runs = [operation.runner(each, self.setting) for each in widths]
                timings = interleaved(runs, repeats=repeats, seconds=seconds, device=self.setting.device)
            except (RuntimeError, ValueError, TypeError, IndexError):  # made-up inputs, or no memory
                return []
        return [timing.best for timing in timings]

    def models(self, models: Sequence[nn.Module]) -> list[float]:
        """Returns the milliseconds of the original and of each model, timed in turns, their ratios round by round.

        Raises:
            FxpruneError: the backend does not take one of them.
        """
        with threads_set(self.setting.threads), evaluating(self.original):
            if self._reference is None:
                self._reference = self._runner(self.original)
            runs = [self._reference, *map(self._runner, models)]
            first, *rest = interleaved(runs, seconds=MODEL_SECONDS, device=self.setting.device)
        return [first.ms, *(first.ms * timing.beside(first) for timing in rest)]

    def _runner(self, model: nn.Module) -> Run:
        return ready(moved(model, self.setting.device).eval(), self.args, self.kwargs, self.setting)


def stopwatch_of(model: nn.Module, captured: Captured, setting: Setting) -> Stopwatch:
    """Returns the stopwatch of a model, with the captured call at the setting's batch size.

    Raises:
        BudgetError: the model's batch is fixed at another size.
    """
    return Stopwatch(setting, model, *example_call(captured, setting.batch_size, setting.device))
