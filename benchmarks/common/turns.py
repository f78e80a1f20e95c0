"""The compilers of several trees of the package, each in a process of its own, at work in turns.

Run as a script it is such a process: ``python benchmarks/common/turns.py TREE MODEL SEED THREADS`` compiles once for each
line that it reads, and answers with a line of JSON. It takes the package from TREE, and only what every revision has.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

Answer = dict[str, float]


class Compiler:
    """A process that compiles one network to half of its parameters, as often as it is asked.

    Args:
        tree: the folder that the package stands in.
        model: a name of `common.zoo`.
        seed: of its weights.
        threads: of torch.
    """

    def __init__(self, tree: Path, model: str, seed: int, threads: int) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), str(tree), model, str(seed), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Compiler:
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process."""
        self._process.communicate()

    def once(self) -> Answer:
        """Returns the seconds of each stage, of the whole, and of the processor, and the peak of memory in MB.

        Raises:
            RuntimeError: the process ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("once\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                found: Answer = json.loads(line)
                return found
        raise RuntimeError(f"the compiler ended with {self._process.wait()}; see its message above")


def in_turns(compilers: Mapping[str, Compiler], rounds: int) -> dict[str, list[Answer]]:
    """Returns what each compiler answers in ``rounds`` rounds, the first of which does not count.

    Who begins changes from round to round, so that what a machine does meanwhile meets all of them alike.
    """
    found: dict[str, list[Answer]] = {name: [] for name in compilers}
    names = list(compilers)
    for number in range(rounds + 1):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            answer = compilers[name].once()
            if number:
                found[name].append(answer)
    return found


def _serve(tree: str, name: str, seed: int, threads: int) -> None:
    """Compiles for each line that comes in."""
    sys.path[0] = tree  # in place of this file's folder, whose modules have everyday names
    import fxprune

    assert Path(fxprune.__file__).is_relative_to(tree), f"{fxprune.__file__} is not of {tree}"
    sys.path.insert(1, str(ROOT))  # before an installed package, whose folder may be another checkout
    import torch

    from benchmarks.common import zoo
    from tests.support.weights import randomise

    torch.set_num_threads(threads)
    (entry,) = zoo.select([name])
    model, batch = entry.build(), entry.batch(2, seed=seed)
    randomise(model, seed, *(((), batch) if isinstance(batch, dict) else ((batch,), None)))
    for _ in sys.stdin:
        print(json.dumps(_compile(fxprune, model, batch, seed)), flush=True)


def _compile(package: Any, model: Any, batch: Any, seed: int) -> Answer:
    start, worked = time.perf_counter(), time.process_time()
    pruned = package.compile(model, [batch], 0.5, method="magnitude", recover=None, progress=False, seed=seed)
    whole, processor = time.perf_counter() - start, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return {**package.report(pruned).seconds, "whole": whole, "whole, of the processor": processor, "peak MB": peak}


if __name__ == "__main__":
    _serve(*sys.argv[1:3], *map(int, sys.argv[3:]))
