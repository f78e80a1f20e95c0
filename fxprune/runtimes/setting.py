"""Where and how a latency is measured: device, batch size, backend, threads."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fxprune._base.errors import BudgetError
from fxprune._base.given import is_whole
from fxprune.runtimes.registry import BackendName, Runtime, runtime_of


@dataclass(frozen=True, slots=True)
class Setting:
    """The circumstances of a measurement.

    Attributes:
        device: as `torch.device` takes it.
        batch_size: samples in a call.
        backend: the name of a runtime.
        threads: that an operator may use on the CPU.
    """

    device: str
    batch_size: int
    backend: BackendName | str
    threads: int

    @classmethod
    def of(
        cls,
        device: str | torch.device,
        batch_size: int = 1,
        backend: BackendName | str = "eager",
        threads: int | None = None,
    ) -> Setting:
        """Returns the setting, checked; ``threads`` defaults to as many as torch uses now.

        Raises:
            BudgetError: malformed, or no such device here.
        """
        check_setting(device, batch_size, backend, threads)
        where = torch.device(device)
        if where.type == "meta":
            raise BudgetError("a latency cannot be measured on the meta device: give a model with values")
        try:
            torch.empty(0, device=where)
        except Exception as error:  # every backend says in its own way that it is not there
            raise BudgetError(f"device: expected one that is here, got {str(where)!r}") from error
        return cls(str(where), batch_size, backend, threads or torch.get_num_threads())

    @property
    def runtime(self) -> Runtime:
        """What runs a model.

        Raises:
            BudgetError: none of that name is registered in this process.
        """
        return runtime_of(self.backend)

    def __str__(self) -> str:
        """Returns it in words, e.g. ``eager, batch 1, cpu, 2 threads``."""
        return f"{self.backend}, batch {self.batch_size}, {circumstances(self.device, self.threads)}"


def check_setting(device: Any, batch_size: Any, backend: Any, threads: Any) -> None:
    """Makes sure that a setting is well formed; whether the device is there is another question.

    Raises:
        BudgetError: says what was expected and what came.
    """
    runtime_of(backend)
    for name, value in (("batch_size", batch_size), ("threads", 1 if threads is None else threads)):
        if not is_whole(value, 1):
            raise BudgetError(f"{name}: expected an int of at least 1, below 2**63, got {value!r:.80}")
    try:
        torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise BudgetError(f"device: expected one such as 'cpu' or 'cuda:0', got {device!r}") from error


def circumstances(device: str, threads: int) -> str:
    """Returns a device in words, with the threads where they count."""
    return device + (f", {threads} thread{'s' if threads > 1 else ''}" if device == "cpu" else "")


def device_name(device: str) -> str:
    """Returns what the hardware calls itself, for a table that must not be taken for another machine's."""
    where = torch.device(device)
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name.*?:\s*(.*)$", info.read_text() if info.exists() else "", re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    """Lets torch use so many threads, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
