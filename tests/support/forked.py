"""Scripts in processes of their own that share what is slow to import: each is forked off one that has it."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_SHARED = ["torch", "torchvision", "timm", "transformers", "fxprune.streaming.compiling", "tests.support.forked"]


@dataclass(frozen=True)
class Done:
    """A script that has ended."""

    returncode: int | None
    stdout: str
    stderr: str


def run_script(
    path: Path, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, timeout: float
) -> Done:
    """Runs a script as ``python path *arguments`` would; ``folder`` is where what it prints may lie meanwhile."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_SHARED)
    printed = folder / f".{path.stem}.out", folder / f".{path.stem}.err"
    process = context.Process(target=_run, args=(path, arguments, dict(environment), printed))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    texts = [each.read_text("utf-8") if each.exists() else "" for each in printed]
    for each in printed:
        each.unlink(missing_ok=True)
    return Done(process.exitcode, *texts)


def _run(path: Path, arguments: Sequence[str], environment: dict[str, str], printed: tuple[Path, Path]) -> None:
    os.environ.update(environment)
    for number, file in enumerate(printed, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.parent))
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
