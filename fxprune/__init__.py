"""fxprune: a compiler for structured pruning of PyTorch models."""

from fxprune import rules as _rules
from fxprune.api import apply, compile
from fxprune.artifact import load, save
from fxprune.blocks import with_blocks
from fxprune.budget import Budget
from fxprune.capture import Captured, capture
from fxprune.constraints import Constraints
from fxprune.coupling import Coupling, couple
from fxprune.errors import (
    BudgetError,
    CalibrationError,
    CaptureError,
    ExportError,
    FxpruneError,
    FxpruneWarning,
    IgnoredPatternWarning,
    MissingExtraError,
    NothingToPruneError,
    PlanError,
    ScorerError,
    TrainingError,
    UnsupportedOpError,
    VerificationError,
)
from fxprune.explain import Explanation, explain
from fxprune.exporting import Exported, export, quantize
from fxprune.generation import for_generation
from fxprune.html import write_html
from fxprune.latency import Bench, Latency, bench
from fxprune.plan import Plan
from fxprune.points import Sweep
from fxprune.recover import recover
from fxprune.report import Report, report
from fxprune.rewrite.emit import emit
from fxprune.rewrite.pruned import PrunedModule
from fxprune.rewrite.slice import slice_graph as rewrite
from fxprune.scores import Context, Scorer, register_scorer, score
from fxprune.solve import solve
from fxprune.sweep import sweep
from fxprune.training import History, Recipe, finetune, retrain
from fxprune.verify import Certificate, verify

__version__ = "0.1.0"

__all__ = [
    "Bench",
    "Budget",
    "BudgetError",
    "CalibrationError",
    "CaptureError",
    "Captured",
    "Certificate",
    "Constraints",
    "Context",
    "Coupling",
    "Explanation",
    "ExportError",
    "Exported",
    "FxpruneError",
    "FxpruneWarning",
    "History",
    "IgnoredPatternWarning",
    "Latency",
    "MissingExtraError",
    "NothingToPruneError",
    "Plan",
    "PlanError",
    "PrunedModule",
    "Recipe",
    "Report",
    "Scorer",
    "ScorerError",
    "Sweep",
    "TrainingError",
    "UnsupportedOpError",
    "VerificationError",
    "apply",
    "bench",
    "capture",
    "compile",
    "couple",
    "emit",
    "explain",
    "export",
    "finetune",
    "for_generation",
    "load",
    "quantize",
    "recover",
    "register_scorer",
    "report",
    "retrain",
    "rewrite",
    "save",
    "score",
    "solve",
    "sweep",
    "verify",
    "with_blocks",
    "write_html",
]  # fmt: skip

del _rules
