"""Under ``torchrun``: the processes that it started at one command, of which the first speaks and writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def is_first() -> bool:
    """Returns whether this process is the first of those that were started together, or alone."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def started_together() -> Iterator[bool]:
    """Joins the processes that torchrun started, if it did; yields whether this one is the first, or alone."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_torchelastic_launched()) or os.environ.get("WORLD_SIZE") == "1":
        yield True
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()
