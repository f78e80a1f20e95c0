"""Couple: which coordinates go together, the units and groups that follow, and the branches that may vanish."""
