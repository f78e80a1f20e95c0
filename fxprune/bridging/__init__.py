"""Bridges: a captured model without some layers of its only path."""
