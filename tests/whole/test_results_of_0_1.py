"""Results that version 0.1 saved, pickled or left half-way still load, and compute what they computed then."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fxprune
from fxprune.reporting.pareto import Sweep

ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "results_of_0_1"


def call() -> dict[str, torch.Tensor]:
    return torch.load(HERE / "mixed-call.pt")


def test_an_artifact_loads() -> None:
    pruned = fxprune.load(HERE / "mixed")
    torch.testing.assert_close(pruned(call()["x"]), call()["y"])  # to the bit on one processor alone
    report = fxprune.report(pruned)
    assert report.params == (1524, 880) and report.verified and report.plan is not None
    assert "rnn" in str(report)


def test_a_pickled_module_loads_and_is_pickled_again() -> None:
    pruned = torch.load(HERE / "mixed.pt", weights_only=False)
    again = pickle.loads(pickle.dumps(pruned))
    for module in (pruned, again):
        torch.testing.assert_close(module(call()["x"]), call()["y"])
        assert fxprune.report(module).params == (1524, 880)
    assert b"fxprune.rewriting.pruned" in pickle.dumps(pruned)
    assert repr(pruned.rnn).startswith("Recurrent(lstm")
    pruned.train()(call()["x"]).sum().backward()


def test_the_old_names_hide_no_function() -> None:
    assert callable(fxprune.report) and callable(fxprune.capture) and callable(fxprune.verify)


def test_a_sweep_and_a_bench_load() -> None:
    found = pickle.loads((HERE / "sweep.pkl").read_bytes())
    assert isinstance(found, Sweep) and found.best().report is not None and "l1" in str(found)
    assert "a" in str(pickle.loads((HERE / "bench.pkl").read_bytes()))


@pytest.mark.parametrize("name", ["mixed.pt", "sweep.pkl", "bench.pkl", "explanation.pkl"])
@pytest.mark.slow
def test_a_process_that_imported_nothing_loads_them(name: str) -> None:
    read = "torch.load(file, weights_only=False)" if name.endswith(".pt") else "pickle.load(open(file, 'rb'))"
    code = f"import pickle, sys, torch\nfile = sys.argv[1]\nprint(repr({read}))"
    done = subprocess.run([sys.executable, "-c", code, str(HERE / name)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_an_explanation_and_an_error_load() -> None:
    found, error = pickle.loads((HERE / "explanation.pkl").read_bytes())
    assert isinstance(found, fxprune.Explanation) and [group.units for group in found.groups] == [8]
    assert isinstance(error, fxprune.BudgetError) and "cannot be reached" in str(error)
    assert "1 groups" in str(found)


def test_a_checkpoint_goes_on(tmp_path: Path) -> None:
    shutil.copytree(HERE / "checkpoint", tmp_path / "checkpoint")
    pruned = fxprune.load(HERE / "mixed")
    data = [(call()["x"], torch.tensor([0, 1, 2, 3]))]
    history = fxprune.finetune(
        pruned, data, epochs=2, checkpoint_dir=tmp_path / "checkpoint", resume=True, progress=False
    )
    assert len(history.epochs) == 2
