"""Settings of every test run."""

from __future__ import annotations

import os

import torch

# Workers share the machine: more threads than cores make each other wait.
torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))
