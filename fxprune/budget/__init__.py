"""Budgets: exact costs, what must stay, and the units that go."""

from fxprune.budget.budget import Budget

__all__ = ["Budget"]
