"""What a fresh Python takes from its start to its end.

Run as a script it is the one that starts it: ``python benchmarks/common/spent.py ARGUMENT...``. A process begins with the
peak memory of the one that it comes from, so that this one has to be small.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of the processor (user and system) and on the clock, and megabytes at their highest."""

    cpu: float
    wall: float
    peak: float


def spent(arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> Spent:
    """Returns what python takes with some arguments, in a folder.

    Raises:
        CalledProcessError: it failed; its message stands above.
    """
    command = [sys.executable, "-S", __file__, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Spent(**json.loads(done.stdout))


def _run(arguments: Sequence[str]) -> int:
    """Runs python, prints what it took, and returns its exit status."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    peak = used.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    print(json.dumps(asdict(Spent(used.ru_utime + used.ru_stime, wall, peak))))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(_run(sys.argv[1:]))
