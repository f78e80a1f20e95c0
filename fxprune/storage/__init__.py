"""Artifacts: a pruned model as files, and plans applied to files."""
