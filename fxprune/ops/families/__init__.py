"""One family of ops a file; importing the package fills the rule tables."""

from fxprune.ops.families import (
    attention,
    contract,
    conv,
    create,
    elementwise,
    join,
    norm,
    positions,
    recurrent,
    reduce,
    reshape,
    spatial,
)

__all__ = [
    "attention",
    "contract",
    "conv",
    "create",
    "elementwise",
    "join",
    "norm",
    "positions",
    "recurrent",
    "reduce",
    "reshape",
    "spatial",
]
