"""fxprune: a compiler for structured pruning of PyTorch models."""

from fxprune import rules as _rules
from fxprune.api import apply, compile
from fxprune.artifact import load, save
from fxprune.blocks import with_blocks
from fxprune.budget import Budget
from fxprune.capture import Captured, capture
from fxprune.coupling import Coupling, couple
from fxprune.errors import (
    BudgetError,
    CalibrationError,
    CaptureError,
    FxpruneError,
    IgnoredPatternWarning,
    NothingToPruneError,
    PlanError,
    ScorerError,
    TrainingError,
    UnsupportedOpError,
    VerificationError,
)
from fxprune.plan import Plan
from fxprune.recover import recover
from fxprune.report import Report, report
from fxprune.rewrite.emit import emit
from fxprune.rewrite.pruned import PrunedModule
from fxprune.rewrite.slice import slice_graph as rewrite
from fxprune.scores import Context, Scorer, register_scorer, score
from fxprune.solve import Constraints, solve
from fxprune.training import History, Recipe, finetune, retrain
from fxprune.verify import Certificate, verify

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "BudgetError",
    "CalibrationError",
    "CaptureError",
    "Captured",
    "Certificate",
    "Constraints",
    "Context",
    "Coupling",
    "FxpruneError",
    "History",
    "IgnoredPatternWarning",
    "NothingToPruneError",
    "Plan",
    "PlanError",
    "PrunedModule",
    "Recipe",
    "Report",
    "Scorer",
    "ScorerError",
    "TrainingError",
    "UnsupportedOpError",
    "VerificationError",
    "apply",
    "capture",
    "compile",
    "couple",
    "emit",
    "finetune",
    "load",
    "recover",
    "register_scorer",
    "report",
    "retrain",
    "rewrite",
    "save",
    "score",
    "solve",
    "verify",
    "with_blocks",
]  # fmt: skip

del _rules
