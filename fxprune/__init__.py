"""fxprune: a compiler for structured pruning of PyTorch models."""

from fxprune._base.errors import (
    BackendError,
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
    RecoveryError,
    RuleError,
    ScorerError,
    TrainingError,
    UnsupportedOpError,
    VerificationError,
)
from fxprune._base.moved import keep_old_names as _keep_old_names
from fxprune.budget.budget import Budget
from fxprune.budget.constraints import Constraints
from fxprune.budget.solver import solve
from fxprune.capturing.captured import Captured, capture
from fxprune.compiler.by_hand import recover, rewrite, verify
from fxprune.compiler.compiling import compile
from fxprune.compiler.explanation import Explanation, explain
from fxprune.compiler.options import Options
from fxprune.compiler.sweeping import sweep
from fxprune.coupling.blocks import with_blocks
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.deployment.exporting import Exported, export
from fxprune.deployment.generation import for_generation
from fxprune.deployment.quantization import quantize
from fxprune.latency import Bench, Latency, bench
from fxprune.ops.registry import register_rule
from fxprune.ops.rule import Rule
from fxprune.recovery.protocol import Recovered, Recovery, RecoveryContext, register_recovery
from fxprune.reporting.html import write_html
from fxprune.reporting.pareto import Sweep
from fxprune.results.attached import report
from fxprune.results.certificate import Certificate
from fxprune.results.plan import Plan
from fxprune.results.record import Report
from fxprune.rewriting.emission import emit
from fxprune.rewriting.pruned import PrunedModule
from fxprune.runtimes import Runtime, register_runtime
from fxprune.scoring import Context, Scorer, register_scorer, score
from fxprune.storage.application import apply
from fxprune.storage.artifact import load, save
from fxprune.training import History, Recipe, finetune, retrain

_keep_old_names()

__version__ = "0.1.0"

__all__ = [
    "BackendError",
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
    "Options",
    "Plan",
    "PlanError",
    "PrunedModule",
    "Recipe",
    "Recovered",
    "Recovery",
    "RecoveryContext",
    "RecoveryError",
    "Report",
    "Rule",
    "RuleError",
    "Runtime",
    "Scorer",
    "ScorerError",
    "Selection",
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
    "register_recovery",
    "register_rule",
    "register_runtime",
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

del _keep_old_names
