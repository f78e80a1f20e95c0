"""Several processes at one training: what one with all of their batches gives, an error that ends all, and a kill that costs an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from tests.support.processes import spawned
from tests.support.training_together import WAYS, Killed, failing, sharded, together, trained


def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    one, other = spawned(together, tmp_path)
    for way in WAYS:
        alone, loose = trained(way, 1), way == "bf16"
        for found in (one[way], other[way]):
            assert found["loss"] == pytest.approx(alone["loss"], rel=2e-3 if loose else 1e-5), way
            assert found["lr"] == alone["lr"] and not found["gradients"], way
            for got, expected in zip(found["metrics"], alone["metrics"], strict=True):
                assert got == pytest.approx(expected, rel=2e-2 if loose else 1e-5), way
            for name, tensor in alone["weights"].items():
                assert torch.equal(found["weights"][name], one[way]["weights"][name]), (way, name)
                close = {"atol": 1e-2, "rtol": 1e-2} if loose else {"atol": 1e-6, "rtol": 1e-5}
                torch.testing.assert_close(
                    found["weights"][name], tensor, **close, msg=lambda text, way=way: f"{way}: {text}"
                )
    for name, tensor in one["norm"].items():
        assert torch.equal(tensor, other["norm"][name]) and torch.equal(tensor, one["wrapped"][name]), name
    assert one["norm"]["norm.num_batches_tracked"] == 3 * 3


def test_an_error_in_one_ends_all_with_its_words(tmp_path: Path) -> None:
    one, other = spawned(failing, tmp_path)
    assert other["one fails"] == "RuntimeError: out of luck"
    assert (
        one["one fails"].startswith("FxpruneError: another process has failed")
        and "rank 1: RuntimeError: out of luck" in one["one fails"]
    )
    assert all(torch.equal(tensor, other["after it"][name]) for name, tensor in one["after it"].items())
    for told in (one, other):
        assert "the training data (each process is given all of it, not a share; " in told["other data"]
        assert "the number of batches differs" in told["other length"]
        assert "the model's weights differs between the 2 processes" in told["other weights"]
        assert "the teacher's weights differs" in told["other teacher"]
        assert "the run's recipe differs" in told["other recipe"]
        assert "not a share" in told["shared out before"]
        assert max(seconds for name, seconds in told.items() if name.endswith(" s")) < 30


def test_a_sharded_model_is_refused(tmp_path: Path) -> None:
    for told in spawned(sharded, tmp_path):
        assert told.startswith("TrainingError: pruned: expected whole parameters in each process")


def test_a_run_goes_on_after_a_process_was_killed(tmp_path: Path) -> None:
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    whole = spawned(Killed(tmp_path / "whole", kill=False), tmp_path)
    with pytest.raises((multiprocessing.ProcessExitedException, multiprocessing.ProcessRaisedException)):
        spawned(Killed(tmp_path / "parts", kill=True), tmp_path)
    parts = spawned(Killed(tmp_path / "parts", kill=False), tmp_path)
    for one, other in zip(whole, parts, strict=True):
        assert one["resumed"] == 0 and other["resumed"] == 1 and one["loss"] == other["loss"]
        assert all(torch.equal(tensor, other["weights"][name]) for name, tensor in one["weights"].items())
