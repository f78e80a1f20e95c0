"""A process that answers questions, one after the other; one that takes too long, or kills it, costs only itself."""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

#: Bytes; a process that took more is not asked again.
_LARGE = 4 << 30
#: Of what the system counts a process' memory in.
_UNIT = 1 if sys.platform == "darwin" else 1024


def _serve(pipe: Connection, answer: Callable[[str], dict[str, Any]], threads: int) -> None:
    """Answers what comes through the pipe."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    while True:
        try:
            question = pipe.recv()
        except EOFError:  # nobody asks any more
            return
        found = answer(question)
        pipe.send((json.dumps(found), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT))


class Worker:
    """Asks a process of its own; libraries are imported once.

    Args:
        answer: what is asked, a function of a module, or a ``partial`` of one; its answers are JSON data.
        threads: of torch, in that process.
        limit: seconds an answer may take.
    """

    def __init__(self, answer: Callable[[str], dict[str, Any]], threads: int, limit: float) -> None:
        self.answer, self.threads, self.limit = answer, threads, limit
        self.process: Any = None

    def __call__(self, question: str) -> dict[str, Any]:
        """Returns the answer, or ``{"error": ...}``."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, there = context.Pipe()
            self.process = context.Process(target=_serve, args=(there, self.answer, self.threads), daemon=True)
            self.process.start()
            there.close()
        self.pipe.send(question)
        try:
            if self.pipe.poll(self.limit):
                text, most = self.pipe.recv()
                if most > _LARGE:  # what one model took is not always given back
                    self._end()
                found: dict[str, Any] = json.loads(text)
                return found
            what = f"no end within {self.limit:.0f} s"
        except EOFError:
            self.process.join()
            what = f"the process ended with {self.process.exitcode}"
        self._end()
        return {"error": what}

    def _end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process = None
