"""Settings of every test run."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Generator

import pytest
import torch

# Workers share the machine: more threads than cores make each other wait.
torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))

# pytest listens to every logger that does not propagate, and to whoever listens to this one torch tells each step of a
# capture, with stacks; in all other processes nobody does.
logging.getLogger("torch.__trace").propagate = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """After a file, what it leaves for good (imports, caches) is put where collections need not look through it again."""
    yield
    if nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
