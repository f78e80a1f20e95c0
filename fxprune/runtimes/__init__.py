"""Runtimes: what runs a model, and writes it to a file that is compared before it gets its name."""
