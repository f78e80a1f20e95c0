"""The clock: the stages of a compilation, timed by name and shown."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tqdm import tqdm

from fxprune._base.clocks import log_time


@dataclass(slots=True)
class Clock:
    """Names and times the stages, with a bar on a terminal and a line in the log."""

    progress: bool
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Runs one stage."""
        start = time.perf_counter()
        with tqdm(total=1, desc=f"fxprune {name}", leave=False, disable=None if self.progress else True) as bar:
            yield
            bar.update()
        self.seconds[name] = time.perf_counter() - start
        if self.progress:
            log_time(name, self.seconds[name])
