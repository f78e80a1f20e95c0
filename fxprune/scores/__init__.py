"""One criterion a file; importing the package registers them."""

from fxprune.scores import magnitude, random, variance
from fxprune.scores.base import Context, Scorer, register_scorer, score, scorer_of

__all__ = ["Context", "Scorer", "magnitude", "random", "register_scorer", "score", "scorer_of", "variance"]
