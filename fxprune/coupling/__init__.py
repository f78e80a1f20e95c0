"""Couple: which coordinates go together, the units and groups that follow, and the branches that may vanish."""

from fxprune.coupling.coupling import Coupling, Frozen

__all__ = ["Coupling", "Frozen"]
