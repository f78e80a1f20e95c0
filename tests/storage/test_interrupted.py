"""Saving that is interrupted leaves the old or the new, and no litter."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fxprune
from fxprune._base import files
from fxprune.storage import artifact, loading, manifest


def marked(pruned: fxprune.PrunedModule, value: float) -> fxprune.PrunedModule:
    with torch.no_grad():
        pruned.get_parameter("up.bias").fill_(value)
    return pruned


def stored_mark(directory: Path) -> float:
    """Returns the mark of a whole artifact, found as ``load`` finds it."""
    directory = files.readable(directory)
    manifest.sealed(directory)
    return float(load_file(directory / "model.safetensors")["up.bias"][0])


def steps(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Has ``act`` called, with a running number, before each thing that ``save`` does to files."""
    count = iter(range(1000))

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def stepped(*args: Any, **kwargs: Any) -> Any:
            act(next(count))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, stepped)

    for owner, name in (
        (artifact, "save_file"),
        (files, "sync"),
        (shutil, "rmtree"),
        (Path, "write_text"),
        (Path, "rename"),
        (Path, "mkdir"),
    ):
        wrap(owner, name)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed in its tracks")
@pytest.mark.parametrize("replace", [True, False])
@pytest.mark.slow
def test_a_kill_leaves_the_old_or_the_new(pruned: fxprune.PrunedModule, tmp_path: Path, replace: bool) -> None:
    directory = tmp_path / "out"
    if replace:
        fxprune.save(marked(pruned, 1.0), directory)
    marked(pruned, 2.0)
    found = []
    for last in range(1000):
        if _saved_before_kill(pruned, directory, last):
            break
        if replace or directory.exists():
            found.append(stored_mark(directory))
    assert last > 10 and stored_mark(directory) == 2.0
    assert found == sorted(found) and set(found) <= {1.0, 2.0}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def _saved_before_kill(pruned: fxprune.PrunedModule, directory: Path, last: int) -> bool:
    """Saves in a child process that dies without a word before step ``last``; returns whether it was done by then."""
    child = os.fork()
    if not child:
        with pytest.MonkeyPatch.context() as patch:
            steps(patch, lambda step: os._exit(9) if step == last else None)
            fxprune.save(pruned, directory)
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_error_leaves_the_old_and_no_litter(pruned: fxprune.PrunedModule, tmp_path: Path) -> None:
    directory = tmp_path / "out"
    fxprune.save(marked(pruned, 1.0), directory)
    marked(pruned, 2.0)
    for failing in _failing_steps():
        with pytest.MonkeyPatch.context() as patch:
            steps(patch, failing)
            try:
                fxprune.save(pruned, directory)
            except OSError as error:
                assert "disk" in str(error)
            else:
                break
        assert stored_mark(directory) in (1.0, 2.0)
    assert stored_mark(directory) == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def _failing_steps() -> Iterator[Callable[[int], None]]:
    for last in range(1000):

        def fail(step: int, last: int = last) -> None:
            if step == last:
                raise OSError("no space left on disk")

        yield fail


def test_reading_moves_and_removes_nothing(pruned: fxprune.PrunedModule, tmp_path: Path) -> None:
    directory, previous = tmp_path / "out", tmp_path / ".out.fxprune-previous"
    fxprune.save(marked(pruned, 1.0), directory)
    directory.rename(previous)
    again = fxprune.load(directory)
    assert again.get_parameter("up.bias")[0] == 1 and loading.load_report(directory) == fxprune.report(again)
    assert list(tmp_path.iterdir()) == [previous]
    shutil.copytree(previous, directory)
    loading.load_report(directory)
    assert sorted(tmp_path.iterdir()) == [previous, directory]
    fxprune.save(marked(pruned, 2.0), directory)
    assert list(tmp_path.iterdir()) == [directory] and stored_mark(directory) == 2.0


def test_saving_again_replaces(pruned: fxprune.PrunedModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fxprune.save(marked(pruned, 1.0), "a/b")
    fxprune.save(marked(pruned, 2.0), Path("a") / "b")
    assert stored_mark(tmp_path / "a" / "b") == 2.0


FOREIGN = {"manifest.json": '{"name": "my web app"}', "README.md": "notes", "model.safetensors": "trained for a week"}


def test_a_directory_of_somebody_else_is_left_alone(pruned: fxprune.PrunedModule, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for name, text in FOREIGN.items():
        (mine / name).write_text(text)
    with pytest.raises(fxprune.PlanError, match="it holds no artifact as fxprune wrote it"):
        fxprune.save(pruned, mine)
    assert {path.name: path.read_text() for path in mine.iterdir()} == FOREIGN


def test_an_artifact_whose_weights_were_trained_further_is_left_alone(
    pruned: fxprune.PrunedModule, tmp_path: Path
) -> None:
    fxprune.save(pruned, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_text("trained for a week")
    with pytest.raises(fxprune.PlanError, match=r"model.safetensors: expected .* bytes"):
        fxprune.save(pruned, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_text() == "trained for a week"


@pytest.mark.parametrize("name", [".out.new", ".out.previous", ".out", "out.new"])
def test_neighbours_are_left_alone(pruned: fxprune.PrunedModule, tmp_path: Path, name: str) -> None:
    (tmp_path / name / "data").mkdir(parents=True)
    for value in (1.0, 2.0, 3.0):
        fxprune.save(marked(pruned, value), tmp_path / "out")
    assert (tmp_path / name / "data").is_dir() and stored_mark(tmp_path / "out") == 3.0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out"])
