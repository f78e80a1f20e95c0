"""CPU seconds, memory and wall time of importing the package and of the command line's help, beside ``import torch``.

``python benchmarks/imports.py [--repeats N] [--quick]``
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from common import ROOT
from common.cli import begin, guarded, name_of, parser
from common.results import record
from common.spent import Spent, spent

TORCH = "import torch"

#: what is run -> arguments of python
PROGRAMS: dict[str, tuple[str, ...]] = {
    TORCH: ("-c", "import torch"),
    "import fxprune": ("-c", "import fxprune"),
    "import fxprune, all names": ("-c", "import fxprune\nfor name in fxprune.__all__: getattr(fxprune, name)"),
    "fxprune --help": ("-m", "fxprune", "--help"),
    "fxprune compile --help": ("-m", "fxprune", "compile", "--help"),
}

NOTES = (
    "CPU seconds are user and system; medians of fresh processes, which run in turns after one round that does not count.",
    "Bytecode: whether Python finds compiled modules, as after any first import, or may write none and compiles all text.",
)


def in_turns(rounds: int, environment: Mapping[str, str]) -> dict[str, list[Spent]]:
    """Returns what each program took in each round; who begins changes, so that a busy machine is unfair to none."""
    names = list(PROGRAMS)
    found: dict[str, list[Spent]] = {name: [] for name in names}
    for number in range(rounds + 1):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            cost = spent(PROGRAMS[name], environment, ROOT)
            if number:  # the first round writes the bytecode, and reads the files into memory
                found[name].append(cost)
    return found


def table(rounds: int, bytecode: bool) -> Iterator[dict[str, Any]]:
    """Yields the rows, with or without compiled modules at hand."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        environment["PYTHONPYCACHEPREFIX"] = folder
        if not bytecode:
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        found = in_turns(rounds, environment)
    torch = statistics.median(cost.cpu for cost in found[TORCH])
    for name, costs in found.items():
        cpu, wall, peak = (statistics.median(getattr(c, part) for c in costs) for part in ("cpu", "wall", "peak"))
        yield {
            "program": name,
            "bytecode": "yes" if bytecode else "no",
            "CPU s": round(cpu, 3),
            "wall s": round(wall, 3),
            "peak MB": round(peak),
            "CPU / import torch": round(cpu / torch, 3),
        }


def main() -> None:
    """Prints and records the table."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--repeats", type=int, default=11, help="rounds that count")
    options = begin(made)
    rounds, kinds = (1, (True,)) if options.quick else (options.repeats, (True, False))
    rows = [row for bytecode in kinds for row in table(rounds, bytecode)]
    title = "What importing the package costs, beside torch alone"
    print(record(name_of("imports", options), rows, title=title, seed=options.seed, notes=NOTES))


if __name__ == "__main__":
    guarded(main)
