"""Files from strangers: artifacts changed at random are loaded and called; what kills the process, hangs, or changes its state.

``python benchmarks/mutations.py [--count N] [--limit S] [--rows FILE] [--quick]``
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections import Counter
from functools import cache, partial
from pathlib import Path
from typing import Any

from common.cli import begin, guarded, name_of, parser, resumable
from common.kept import Kept
from common.results import record
from common.worker import Worker

import fxprune
from tests.models.stored import MODELS
from tests.support.strangers import HARMLESS, MEMORY, limit_memory, tried_seed

CHUNK = 250

limited = cache(limit_memory)


def names() -> list[str]:
    """Returns the models whose artifacts are changed."""
    there = importlib.util.find_spec("transformers") is not None
    return [name for name in MODELS if there or name not in ("bert", "llama")]


@cache
def save_all(root: Path) -> None:
    """Saves a pruned model of each kind, once."""
    for name in names():
        make, call = MODELS[name]
        pruned = fxprune.compile(make().eval(), [call(2), call(3)], 0.7, recover=None, progress=False)
        fxprune.save(pruned, root / name)


def answer(root: str, question: str) -> dict[str, Any]:
    """Returns what came of one file; ``question`` is a model's name and a seed."""
    limited()
    name, seed = question.split()
    outcome, message = tried_seed(Path(root) / name, Path(root) / "changed", int(seed), MODELS[name][1](2))
    return {"outcome": outcome, "message": message}


def chunk(root: Path, ask: Worker, questions: list[str]) -> dict[str, Any]:
    """Returns how many files ended how, and the questions and messages of those at fault."""
    save_all(root)
    found: Counter[str] = Counter()
    faults: list[str] = []
    for question in questions:
        outcome = (got := ask(question)).get("outcome", "died")
        found[outcome] += 1
        if outcome not in HARMLESS:
            faults.append(f"{question}: {outcome}: {got.get('message', got.get('error'))}")
    return {
        "files": len(questions),
        **{key: found[key] for key in (*HARMLESS, "changed", "bare error", "died")},
        "faults": faults,
    }


def main() -> None:
    """Prints and records the table; ends with 1 if any file did harm."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--count", type=int, default=10_000, help="files")
    made.add_argument("--limit", type=float, default=120, help="seconds that a file may take")
    options = begin(made)
    count, size = (16, 8) if options.quick else (options.count, CHUNK)
    kept = Kept(options.rows)
    with tempfile.TemporaryDirectory() as root:
        ask = Worker(partial(answer, root), options.threads, options.limit)
        for first in range(0, count, size):
            seeds = range(first + options.seed, min(first + size, count) + options.seed)
            questions = [f"{names()[seed % len(names())]} {seed}" for seed in seeds]
            kept.add(
                {"first": seeds[0], "last": seeds[-1], "models": len(names())},
                partial(chunk, Path(root), ask, questions),
            )
    faults = [fault for row in kept.rows for fault in row["faults"]]
    columns = ("files", *HARMLESS, "changed", "bare error", "died")
    total = {key: sum(row[key] for row in kept.rows) for key in columns}
    notes = [
        f"Each file is an artifact of one of {', '.join(names())}, changed once to eight times: operators, arguments, sizes, references, "
        "order, shapes, layers, call, example, values, headers, bytes; its checksums fit again. It is loaded and called in a process that "
        f"may take {MEMORY >> 30} GiB and {options.limit:.0f} s a file.",
        "Refused: a PlanError by load. Raised: an error at the call. Changed: a flag or seed of the process, or the input, is another "
        "afterwards. Bare error: load fails with an error that is not ours. Died: a signal, or no end.",
        *faults[:20],
    ]
    print(
        record(
            name_of("mutations", options),
            [total],
            title="Files from strangers",
            seed=options.seed,
            notes=[*notes, *kept.notes],
        )
    )
    raise SystemExit(1 if faults else 0)


if __name__ == "__main__":
    guarded(main)
