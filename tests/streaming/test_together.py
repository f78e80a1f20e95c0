"""Several processes at one compilation: the plan of one, and its weights; and an error in one that ends all."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from tests.support.marks import only_with_all
from tests.support.processes import spawned
from tests.support.sharing import WAYS, compiled, disappearing, failing, together


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=[pytest.mark.slow, only_with_all])])
def test_all_hold_what_one_alone_finds(processes: int, tmp_path: Path) -> None:
    found = spawned(together, tmp_path, processes)
    for way in WAYS:
        alone = compiled(way)
        for one in found:
            assert one[way]["plan"] == alone["plan"], way
            assert one[way]["verified"] is alone["verified"] is True, way
            close, wanted = one[way]["fidelity"], alone["fidelity"]
            assert close == found[0][way]["fidelity"] and not close.why, way
            assert (close.samples, close.batches, close.agreement) == (wanted.samples, wanted.batches, wanted.agreement)
            assert (close.explained, close.error, close.divergence, close.deviation) == pytest.approx(
                (wanted.explained, wanted.error, wanted.divergence, wanted.deviation), rel=1e-3, abs=1e-6
            )
            for name, tensor in alone["weights"].items():
                torch.testing.assert_close(one[way]["weights"][name], tensor, atol=1e-5, rtol=1e-5)
                assert torch.equal(one[way]["weights"][name], found[0][way]["weights"][name]), (way, name)


def test_an_error_in_one_ends_all_with_its_words(tmp_path: Path) -> None:
    one, other = spawned(failing, tmp_path)
    for told in (one, other):
        assert (
            "the calibration data (each process is given all of it, not a share) differs between the 2"
            in told["other data"]
        )
        assert "the model's weights differs between the 2 processes" in told["other weights"]
        assert "the model's buffers (statistics" in told["other statistics"]
        assert "the option ridge differs" in told["other ridge"] and "the option method differs" in told["other method"]
        assert told["meta"] == "nothing"
        assert "round_to='measure' is measured" in told["measured"]
        assert "out of luck" in told["one fails"]
        assert max(told[f"{name} s"] for name in ("other data", "other weights", "other method", "one fails")) < 30
    assert one["alone"] is True and other["one fails"].startswith("CalibrationError")
    assert "another process has failed" in one["one fails"] and "rank 1" in one["one fails"]


def test_a_process_that_is_gone_ends_the_others(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises((multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException)):
        spawned(disappearing, tmp_path)
    assert time.monotonic() - start < 60
