"""Loads a file of anybody's, calls what it holds, and tells what came of it.

``python -m tests.support.strangers MODEL DIRECTORY SCRATCH FIRST COUNT`` does so with changed copies of one artifact, in a process
that may take 8 GiB more than it has, and prints a line before and after each, so that the last line names the one that killed it.
"""

from __future__ import annotations

import json
import random
import resource
import shutil
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import fxprune
from fxprune._base.errors import PlanError
from tests.support.mutations import damage

#: What may come of a file; all else is a fault.
HARMLESS = ("refused", "ran", "raised")


#: Beyond what the process has when it starts, in bytes: an artifact that asks for more has an error.
MEMORY = 8 << 30


def limit_memory() -> None:
    """Bounds the memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def state() -> dict[str, Any]:
    """Returns the flags and seeds that a whole process shares."""
    return {
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "seed": torch.initial_seed(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def tried(directory: Path, call: Mapping[str, Any]) -> tuple[str, str]:
    """Returns what came of loading and calling a directory, one of `HARMLESS` or a fault, and the message.

    Args:
        directory: an artifact, or what is left of one.
        call: the arguments.
    """
    before, copies = state(), {name: value.clone() for name, value in call.items()}
    found = _tried(directory, call)
    if changed := [name for name, value in state().items() if value != before[name]]:
        return "changed", f"{', '.join(changed)}; {found}"
    if any(not torch.equal(value, copies[name]) for name, value in call.items()):
        return "changed", f"the input; {found}"
    return found


def tried_seed(intact: Path, scratch: Path, seed: int, call: Mapping[str, Any]) -> tuple[str, str]:
    """Returns what came of a copy that was changed at random, and what was changed."""
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(intact, scratch)
    done = damage(scratch, random.Random(seed))
    outcome, message = tried(scratch, call)
    return outcome, f"{done}: {message}"


def _tried(directory: Path, call: Mapping[str, Any]) -> tuple[str, str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pruned = fxprune.load(directory)
        except PlanError as error:
            return ("refused" if str(error) else "silent"), str(error)[:300]
        except Exception as error:  # what the tests are to find
            return "bare error", f"{type(error).__name__}: {error}"[:300]
        try:
            pruned(**call)
        except Exception as error:  # the arguments, or the values, do not fit what the file made of the model
            return "raised", f"{type(error).__name__}: {error}"[:300]
    return "ran", ""


def main(model: str, intact: str, scratch: str, first: str, count: str) -> None:
    """Prints what comes of each copy as JSON."""
    from tests.models.stored import MODELS

    limit_memory()
    for seed in range(int(first), int(first) + int(count)):
        print(f"seed {seed}", flush=True)
        print(json.dumps(tried_seed(Path(intact), Path(scratch), seed, MODELS[model][1](2))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
