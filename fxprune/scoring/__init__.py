"""One criterion a file; importing the package registers them."""

from fxprune.scoring import (
    bn_scale,
    chip,
    fpgm,
    hrank,
    ippro,
    joint,
    kl,
    magnitude,
    nisp,
    random,
    spvr,
    taylor,
    variance,
)
from fxprune.scoring.scorer import Context, Scorer, register_scorer, score, scorer_of

__all__ = [
    "Context",
    "Scorer",
    "bn_scale",
    "chip",
    "fpgm",
    "hrank",
    "ippro",
    "joint",
    "kl",
    "magnitude",
    "nisp",
    "random",
    "register_scorer",
    "score",
    "scorer_of",
    "spvr",
    "taylor",
    "variance",
]
