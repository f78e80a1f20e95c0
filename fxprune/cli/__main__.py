"""``python -m fxprune.cli`` is ``fxprune``."""

from fxprune.cli.main import main

main()
