"""Pruning within a training loop: units are driven to zero on a schedule, held there, and removed exactly in the end.

torch is imported with the modules that need it.
"""
