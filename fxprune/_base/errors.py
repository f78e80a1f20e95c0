"""Every exception that fxprune raises on purpose, and every warning.

Each message says what was expected, what came, where, and what to do about it.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class FxpruneError(Exception):
    """Root of all errors that fxprune raises on purpose."""


class CaptureError(FxpruneError):
    """The model cannot be turned into a graph; names the module and the line."""


class UnsupportedOpError(FxpruneError):
    """Under ``strict=True``: an operator has no coupling rule."""


class RuleError(FxpruneError, ValueError):
    """A declaration of an op that lacks something, or does not fit the op; names it."""


class CalibrationError(FxpruneError, ValueError):
    """Calibration data that is empty, exhausted, not finite, or does not fit the model."""


class BudgetError(FxpruneError, ValueError):
    """A budget that is malformed or cannot be reached; states the smallest reachable one."""


class ShapeError(FxpruneError, ValueError):
    """An input of a size that the model was not captured for; names argument, dimension and what was expected."""


class CallError(FxpruneError, TypeError):
    """A call that the model was not captured for: another constant, structure or kind of dtype; names the argument."""


class PlanError(FxpruneError, ValueError):
    """A plan or artifact that is damaged or does not fit this model."""


class ScorerError(FxpruneError, ValueError):
    """An unknown method, or a scorer that returned something unusable."""


class RecoveryError(FxpruneError, ValueError):
    """An unknown recovery, or one that returned something unusable."""


class RotationError(FxpruneError, ValueError):
    """No channels of the model can be given in another basis; says what stands in the way."""


class BackendError(FxpruneError, ValueError):
    """A runtime that lacks something, or whose name or suffix is taken; names it."""


class VerificationError(FxpruneError):
    """The pruned model does not compute what its masked twin computes."""


class RestoreError(FxpruneError):
    """The original's class cannot hold what is left, or not provably; names module, line and what would have to change.

    Attributes:
        pruned: the graph, which is there all the same; None where it was given.
    """

    pruned: Any = None


class ExportError(FxpruneError):
    """A file that cannot be written, or does not give what the model gives; says which output, and by how much."""


class TrainingError(FxpruneError):
    """Training that cannot go on; says at which step."""


class MissingExtraError(FxpruneError, ImportError):
    """A package of an extra is not installed; says which, and how to get it."""


class NothingToPruneError(FxpruneError, ValueError):
    """The model has no channel that could be removed."""


class FxpruneWarning(UserWarning):
    """Root of all warnings that fxprune gives on purpose."""


class RecoverySkippedWarning(FxpruneWarning):
    """Layers that read removed channels, and that recovery leaves as they are."""


class IgnoredPatternWarning(FxpruneWarning):
    """An ``ignore`` or ``ratios`` pattern that matches nothing."""


class CaptureWarning(FxpruneWarning):
    """The graph that was captured does not compute what the model does, on the example itself."""


class GradientWarning(FxpruneWarning):
    """The result computes what it must, and has other gradients than the model has; says where."""


class TrainingWarning(FxpruneWarning):
    """The model does something in training mode that the result does not do; says what."""


def outside() -> int:
    """Returns the ``stacklevel`` with which a caller's warning points at the line of the user's that called fxprune."""
    names = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_stack(sys._getframe(1))]
    level = max((level for level, name in enumerate(names, 1) if name.partition(".")[0] == "fxprune"), default=0)
    while names[level : level + 1] == ["contextlib"]:  # of a call of ours that is decorated
        level += 1
    return level + 1


def brief(error: BaseException) -> str:
    """Returns the kind and first line of an error's first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.400}" if lines else type(error).__name__


@contextmanager
def raised_as(kind: type[FxpruneError], what: str) -> Iterator[None]:
    """Raises whatever another library fails with as an error of ours that says what failed; our own pass.

    Args:
        kind: of the error.
        what: failed, such as ``"torch.onnx cannot write the model"``.
    """
    try:
        yield
    except FxpruneError:
        raise
    except Exception as error:  # compilers, exporters and runtimes each fail in their own ways
        raise kind(f"{what}: {brief(error)}") from error
