"""Milliseconds and bytes, measured.

Calls are warmed up, interleaved where several are compared, and repeated until the medians stand still.
"""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from fxprune.runtimes.setting import Setting

#: A sample takes at least this long: a quick call is repeated within it.
SAMPLE_SECONDS = 1e-3

#: The medians stand still once their standard error is this share of them.
STILL = 0.01

#: Rounds at most, as a multiple of ``repeats``.
PATIENCE = 20


@dataclass(frozen=True, slots=True)
class Timing:
    """What one callable took.

    Attributes:
        ms: the median of the samples, in milliseconds for one call.
        error: the standard error of that median, as a share of it.
        samples: milliseconds, in the order of the rounds.
    """

    ms: float
    error: float
    samples: tuple[float, ...]

    @property
    def best(self) -> float:
        """The quickest sample: what interrupts a call only adds to it."""
        return min(self.samples)

    def beside(self, first: Timing) -> float:
        """Returns the median of the ratios to another timing, round by round: what slows both down cancels."""
        return statistics.median(self._ratios(first))

    def error_beside(self, first: Timing) -> float:
        """Returns the standard error of that median, as a share of it."""
        return _error(self._ratios(first))

    def _ratios(self, first: Timing) -> list[float]:
        return [a / b for a, b in zip(self.samples, first.samples, strict=True)]


def interleaved(
    calls: Sequence[Callable[[], Any]],
    *,
    repeats: int = 7,
    seconds: float = 1.0,
    device: str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Times callables in turns, so that what slows the machine down for a while slows them all.

    Args:
        calls: what to time, without gradients.
        repeats: samples of each, at least.
        seconds: measuring goes on until the medians stand still, but not beyond ``seconds`` for each callable
            once ``repeats`` samples are there.
        device: where they work; on a GPU its own events tell the time.
        clock: seconds, for everything that is not on a GPU.
    """
    on_gpu = torch.device(device).type == "cuda"
    sample = _on_gpu if on_gpu else _on_clock
    with torch.inference_mode(), torch.cuda.device(device) if on_gpu else nullcontext():
        loops = [_warm_up(call, device, clock) for call in calls]
        samples: list[list[float]] = [[] for _ in calls]
        collecting = gc.isenabled()
        gc.disable()
        try:
            start = clock()
            for number in range(repeats * PATIENCE):
                if number >= repeats and (
                    clock() - start > seconds * len(calls) or all(_error(s) <= STILL for s in samples)
                ):
                    break
                for turn in range(len(calls)):
                    i = (turn + number) % len(calls)  # nobody always comes first
                    samples[i].append(sample(calls[i], loops[i], clock))
        finally:
            if collecting:
                gc.enable()
    return [Timing(statistics.median(found), _error(found), tuple(found)) for found in samples]


def _warm_up(call: Callable[[], Any], device: str, clock: Callable[[], float]) -> int:
    """Calls it until it takes no less than before; returns how many calls make a sample."""
    best = math.inf
    for _ in range(10):
        start = clock()
        call()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        took, before = clock() - start, best
        best = min(took, before)
        if took > 0.9 * before or took > 1.0:
            break
    return max(1, min(1000, math.ceil(SAMPLE_SECONDS / max(best, 1e-9))))


def _on_clock(call: Callable[[], Any], loops: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(loops):
        call()
    return 1e3 * (clock() - start) / loops


def _on_gpu(call: Callable[[], Any], loops: int, clock: Callable[[], float]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(loops):
        call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / loops


def _error(samples: Sequence[float]) -> float:
    """Returns the relative standard error of a median, from the median deviation of the samples."""
    middle = statistics.median(samples)
    spread = 1.4826 * statistics.median(abs(s - middle) for s in samples)
    return 1.2533 * spread / math.sqrt(len(samples)) / max(middle, 1e-12)


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
    events = sorted(found.function_events or (), key=lambda e: e.time_range.start)
    return int(max(accumulate((event.self_cpu_memory_usage for event in events), initial=0)))


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
