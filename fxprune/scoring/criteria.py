"""fxprune's own criteria, one a file; importing this registers them."""

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

__all__ = [
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
    "spvr",
    "taylor",
    "variance",
]
