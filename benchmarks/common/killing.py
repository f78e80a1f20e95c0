"""Processes that are ended in the middle of their work, and what is found then."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import random
import resource
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.killable import WORKS

#: Seconds after which a process that should have ended counts as one that hangs.
LONG = 90.0


#: What is slow to import, and forked off.
_SHARED = [
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "accelerate",
    "torchmetrics.classification",
    "transformers.models.llama.modeling_llama",
    "onnxruntime",
    "onnx",
    "onnxscript",
    "torch.onnx._internal.exporter._core",
    "fxprune.streaming.compiling",
    "fxprune.training.setup",
    "fxprune.storage.loading",
    "fxprune.deployment.exporting",
    "fxprune.runtimes.onnx",
    "tqdm",
]


@dataclass(frozen=True)
class Setting:
    """How work is done.

    Attributes:
        patience: seconds that processes wait for each other.
        limit: bytes that a file may have; None for any.
    """

    patience: float = 60.0
    limit: int | None = None


@dataclass(frozen=True)
class Ended:
    """How the processes of some work ended.

    Attributes:
        codes: exit codes by rank; negative for a signal.
        results: what each returned; None where it did not.
        said: the last lines that each printed.
        seconds: from the first moment of work to the end; what survived a kill, from the kill on.
        hit: whether the fault met a process at work.
    """

    codes: tuple[int | None, ...]
    results: tuple[str | None, ...]
    said: tuple[str, ...]
    seconds: float
    hit: bool


def _work(name: str, folder: Path, beside: Path, rank: int, port: int, setting: Setting) -> None:
    import torch

    os.dup2(os.open(beside / f"said.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    torch.set_num_threads(1)
    work = WORKS[name]
    if work.processes > 1:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"tcp://localhost:{port}",
            rank=rank,
            world_size=work.processes,
            timeout=datetime.timedelta(seconds=setting.patience),
        )
    (beside / f"begun.{rank}").touch()
    if setting.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (setting.limit, resource.RLIM_INFINITY))
    found = work.do(folder, rank)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (beside / f"result.{rank}").write_text(found)
    if work.processes > 1:
        torch.distributed.destroy_process_group()


def done(
    name: str,
    folder: Path,
    beside: Path,
    setting: Setting = Setting(),
    fault: Callable[[list[Any]], float | None] | None = None,
) -> Ended:
    """Does some work in processes of their own, forked off one that has imported torch.

    Args:
        name: of the work.
        folder: where.
        beside: an empty folder for what the processes say.
        setting: how.
        fault: is called with the processes once they are at work; it waits for its moment, and says when it met one, if it did.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_SHARED)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world = WORKS[name].processes
    processes = [
        context.Process(target=_work, args=(name, folder, beside, rank, port, setting)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    while not all((beside / f"begun.{rank}").exists() for rank in range(world)) and all(
        p.is_alive() for p in processes
    ):
        time.sleep(0.005)
    start = time.perf_counter()
    moment = None if fault is None else fault(processes)
    start = start if moment is None else moment
    for process in processes:
        process.join(LONG)
    seconds = time.perf_counter() - start
    for process in processes:  # stopped, or hanging
        process.kill()
        process.join()
    results = [_text(beside / f"result.{rank}") or None for rank in range(world)]
    said = [" | ".join(_text(beside / f"said.{rank}").strip().splitlines()[-3:]) for rank in range(world)]
    return Ended(tuple(p.exitcode for p in processes), tuple(results), tuple(said), seconds, moment is not None)


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def at_random(
    draw: random.Random, seconds: float, number: signal.Signals, *, every: bool
) -> Callable[[list[Any]], float | None]:
    """Returns a fault: a signal to one process, or to all, at a moment of so many seconds."""
    moment, chosen = draw.uniform(0, seconds), draw.random()

    def fault(processes: list[Any]) -> float | None:
        time.sleep(moment)
        met = processes if every else [processes[int(chosen * len(processes))]]
        alive = [process for process in met if process.is_alive()]
        for process in alive:
            os.kill(process.pid, number)
        met_at = time.perf_counter() if alive else None
        if number == signal.SIGSTOP:  # the others end by themselves, and then this one
            for other in processes:
                if other not in met:
                    other.join(LONG)
            for process in alive:
                process.kill()
        return met_at

    return fault
