"""Processes that wait for each other: sums in place, what the first makes, and one that never comes."""

from __future__ import annotations

import datetime
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from fxprune._base import ranks
from fxprune._base.errors import FxpruneError
from fxprune._base.ranks import _lots, add_up, gathered, of_first, shared, summed
from tests.support.processes import spawned


def working(rank: int) -> dict[str, Any]:
    single, double = torch.full((3,), float(rank + 1)), torch.full((2, 2), 10.0 * rank, dtype=torch.float64)
    half = torch.full((), 0.5, dtype=torch.bfloat16)
    with shared():
        add_up([single, half, double])
        return {"sums": [single, half, double], "first": of_first(lambda: f"of {rank}")}


def hanging(rank: int) -> str:
    """Returns what is told of a process that hangs, in a group that was made for seconds."""
    dist.distributed_c10d._get_default_store().set_timeout(datetime.timedelta(seconds=4))
    start = time.monotonic()
    with pytest.raises(FxpruneError) as told, shared():
        if rank == 1:
            time.sleep(8)
        summed(torch.ones(1))
    return str(told.value) if time.monotonic() - start < 30 else "too late"


def stopped(rank: int) -> str:
    """Returns what is told where the first process, which has the store, stops."""
    ranks.PATIENCE = datetime.timedelta(seconds=4)
    with pytest.raises(FxpruneError) as told, shared():
        first = gathered(os.getpid())[0]
        start = time.monotonic()
        goes_on = threading.Timer(60, os.kill, (first, signal.SIGCONT))
        if rank == 0:
            os.kill(first, signal.SIGSTOP)
        else:
            goes_on.start()
        summed(torch.ones(1))
    seconds = time.monotonic() - start
    if rank == 1:
        goes_on.cancel()
        os.kill(first, signal.SIGCONT)
    return str(told.value) if seconds < 40 else "too late"


def test_sums_are_written_in_place_in_every_process(tmp_path: Path) -> None:
    for found in spawned(working, tmp_path):
        single, half, double = found["sums"]
        assert single.tolist() == [3.0] * 3 and half.item() == 1.0 and half.dtype == torch.bfloat16
        assert double.tolist() == [[10.0, 10.0]] * 2 and double.dtype == torch.float64
        assert found["first"] == "of 0"


def test_a_process_that_hangs_is_told_after_the_groups_own_timeout(tmp_path: Path) -> None:
    one, _ = spawned(hanging, tmp_path)
    assert "another process has failed, or does not answer" in one


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a process is stopped")
def test_the_others_do_not_wait_for_what_a_stopped_process_would_say(tmp_path: Path) -> None:
    assert "another process has failed, or does not answer" in spawned(stopped, tmp_path)[1]


def test_alone_nothing_is_exchanged() -> None:
    tensor = torch.ones(2)
    add_up([tensor])
    assert tensor.tolist() == [1.0, 1.0] and of_first(lambda: 3) == 3


def test_tensors_are_added_up_in_their_order_some_at_once() -> None:
    small, large = torch.zeros(4), torch.zeros(1 << 23)
    other = torch.zeros(4, dtype=torch.float64)
    lots = [[tensor.numel() for tensor in lot] for lot in _lots([small, small, large, small, other])]
    assert lots == [[4, 4], [1 << 23], [4], [4]]
