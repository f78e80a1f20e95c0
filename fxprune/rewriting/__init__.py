"""Rewrite: the graph with fewer channels, real modules at their names, and the plan to do it again."""
