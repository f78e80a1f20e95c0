"""Bytes: what a model holds, and what a call of it needs at its highest."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fxprune.runtimes.setting import Setting


def parameter_bytes(model: nn.Module) -> int:
    """Returns the bytes of a model's parameters and buffers, each once."""
    once = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in once.values())


def peak_bytes(run: Callable[[], Any], setting: Setting) -> int | None:
    """Returns the memory that torch has given out during one call at its highest, above what was given out before.

    None where the runtime does not take its memory from torch. On a CPU what an operator takes and gives back within
    itself is not seen, so that there is none for a runtime that is one large operator there.
    """
    kind = torch.device(setting.device).type
    if kind not in setting.runtime.peak_on:
        return None
    with torch.inference_mode():
        if kind == "cuda":
            torch.cuda.reset_peak_memory_stats(setting.device)
            before = torch.cuda.memory_allocated(setting.device)
            run()
            torch.cuda.synchronize(setting.device)
            return int(torch.cuda.max_memory_allocated(setting.device)) - before
        with _silent(), torch.autograd.profiler.profile(use_kineto=False, profile_memory=True) as found:
            run()
    now = peak = 0
    for event in sorted(found.function_events or (), key=lambda e: e.time_range.start):
        now += event.self_cpu_memory_usage
        peak = max(peak, now)
    return int(peak)


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps what libraries write to the error stream from the terminal: some builds of torch's profiler log there."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
