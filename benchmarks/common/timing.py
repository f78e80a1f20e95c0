"""Seconds and bytes, measured."""

from __future__ import annotations

import gc
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Span:
    """What a measured stretch of code took."""

    seconds: float = 0.0
    peak_bytes: int = 0  # resident memory at its highest, above what was resident at the start


def median_seconds(work: Callable[[], Any], repeat: int = 5, warmup: int = 1) -> float:
    """Returns the median wall-clock seconds of ``repeat`` calls, after ``warmup`` calls that do not count."""
    for _ in range(warmup):
        work()
    seconds = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@contextmanager
def measured(interval: float = 0.005) -> Iterator[Span]:
    """Measures the seconds and the peak resident memory of the block; the memory is sampled every ``interval`` s."""
    gc.collect()
    span, base, done = Span(), resident_bytes(), threading.Event()

    def watch() -> None:
        while not done.wait(interval):
            span.peak_bytes = max(span.peak_bytes, resident_bytes() - base)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    try:
        yield span
    finally:
        span.seconds = time.perf_counter() - start
        done.set()
        watcher.join()
        span.peak_bytes = max(span.peak_bytes, resident_bytes() - base)


def resident_bytes() -> int:
    """Returns the process's resident memory (its peak so far where the system does not tell the present one)."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Stages:
    """Stages of an examination, timed into ``found["seconds"]``; the one that is under way stands in ``found["at"]``.

    Args:
        found: what is known so far; changed.
    """

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        found.setdefault("seconds", {})

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times a stage."""
        start = time.perf_counter()
        self.found["at"] = name
        yield
        self.found["seconds"][name] = round(time.perf_counter() - start, 2)
