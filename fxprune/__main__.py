"""``python -m fxprune`` is ``fxprune``."""

from fxprune.cli import main

main()
