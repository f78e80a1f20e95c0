"""The command line: every command is a few calls of the public API."""

from fxprune.cli.main import main

__all__ = ["main"]
