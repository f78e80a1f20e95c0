"""One criterion a file, and what a criterion is."""

from fxprune.scoring.scorer import Context, Scorer, register_scorer, score, scorer_of

__all__ = ["Context", "Scorer", "register_scorer", "score", "scorer_of"]
