"""Times that stages take, as lines of a log, for where no progress bar shows them."""

from __future__ import annotations

import logging

#: Who wants the lines sets its level to INFO: ``logging.getLogger("fxprune")``.
LOG = logging.getLogger("fxprune")


def log_time(what: str, seconds: float) -> None:
    """Logs what was done and how long it took."""
    LOG.info("%s: %.1f s", what, seconds)
