"""Under ``torchrun``: the processes that it started at one command, of which the first speaks and writes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

#: What torchrun tells each process.
_TOLD = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextmanager
def started_together() -> Iterator[bool]:
    """Joins the processes that torchrun started, if it did; yields whether this one is the first, or alone."""
    if not all(name in os.environ for name in _TOLD) or os.environ["WORLD_SIZE"] == "1":
        yield True
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()
