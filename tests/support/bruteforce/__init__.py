"""A second opinion on coupling: what must go together, found by trying."""
