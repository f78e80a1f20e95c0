"""fxprune: a compiler for structured pruning of PyTorch models.

What is public is imported when it is first asked for, and torch with it: the command line shows its help without.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fxprune._base.moved import keep_old_names as _keep_old_names

if TYPE_CHECKING:
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
]

#: public name -> where it stands
_PLACES = {
    "BackendError": "_base.errors.BackendError",
    "Bench": "latency.Bench",
    "Budget": "budget.budget.Budget",
    "BudgetError": "_base.errors.BudgetError",
    "CalibrationError": "_base.errors.CalibrationError",
    "CaptureError": "_base.errors.CaptureError",
    "Captured": "capturing.captured.Captured",
    "Certificate": "results.certificate.Certificate",
    "Constraints": "budget.constraints.Constraints",
    "Context": "scoring.Context",
    "Coupling": "coupling.coupling.Coupling",
    "Explanation": "compiler.explanation.Explanation",
    "ExportError": "_base.errors.ExportError",
    "Exported": "deployment.exporting.Exported",
    "FxpruneError": "_base.errors.FxpruneError",
    "FxpruneWarning": "_base.errors.FxpruneWarning",
    "History": "training.History",
    "IgnoredPatternWarning": "_base.errors.IgnoredPatternWarning",
    "Latency": "latency.Latency",
    "MissingExtraError": "_base.errors.MissingExtraError",
    "NothingToPruneError": "_base.errors.NothingToPruneError",
    "Options": "compiler.options.Options",
    "Plan": "results.plan.Plan",
    "PlanError": "_base.errors.PlanError",
    "PrunedModule": "rewriting.pruned.PrunedModule",
    "Recipe": "training.Recipe",
    "Recovered": "recovery.protocol.Recovered",
    "Recovery": "recovery.protocol.Recovery",
    "RecoveryContext": "recovery.protocol.RecoveryContext",
    "RecoveryError": "_base.errors.RecoveryError",
    "Report": "results.record.Report",
    "Rule": "ops.rule.Rule",
    "RuleError": "_base.errors.RuleError",
    "Runtime": "runtimes.Runtime",
    "Scorer": "scoring.Scorer",
    "ScorerError": "_base.errors.ScorerError",
    "Selection": "coupling.selection.Selection",
    "Sweep": "reporting.pareto.Sweep",
    "TrainingError": "_base.errors.TrainingError",
    "UnsupportedOpError": "_base.errors.UnsupportedOpError",
    "VerificationError": "_base.errors.VerificationError",
    "apply": "storage.application.apply",
    "bench": "latency.bench",
    "capture": "capturing.captured.capture",
    "compile": "compiler.compiling.compile",
    "couple": "coupling.interpreter.couple",
    "emit": "rewriting.emission.emit",
    "explain": "compiler.explanation.explain",
    "export": "deployment.exporting.export",
    "finetune": "training.finetune",
    "for_generation": "deployment.generation.for_generation",
    "load": "storage.artifact.load",
    "quantize": "deployment.quantization.quantize",
    "recover": "compiler.by_hand.recover",
    "register_recovery": "recovery.protocol.register_recovery",
    "register_rule": "ops.registry.register_rule",
    "register_runtime": "runtimes.register_runtime",
    "register_scorer": "scoring.register_scorer",
    "report": "results.attached.report",
    "retrain": "training.retrain",
    "rewrite": "compiler.by_hand.rewrite",
    "save": "storage.artifact.save",
    "score": "scoring.score",
    "solve": "budget.solver.solve",
    "sweep": "compiler.sweeping.sweep",
    "verify": "compiler.by_hand.verify",
    "with_blocks": "coupling.blocks.with_blocks",
    "write_html": "reporting.html.write_html",
}

_keep_old_names()

if not TYPE_CHECKING:  # a type checker would take it that every name is there

    def __getattr__(name: str) -> Any:
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, inner = _PLACES[name].rpartition(".")
        found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), inner)
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
