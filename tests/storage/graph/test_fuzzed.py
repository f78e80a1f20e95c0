"""Files damaged at random: each loads, or is refused cleanly."""

from __future__ import annotations

import collections
import random
import shutil
import warnings
from pathlib import Path

import pytest
from torch import nn

import fxprune
from fxprune._base.errors import PlanError
from tests.models.stored import images, small
from tests.support.artifacts import reseal, same, watched
from tests.support.mutations import damage


def fuzz(intact: Path, scratch: Path, seeds: range, model: nn.Module | None = None) -> collections.Counter[str]:
    """Loads damaged copies; returns how many loaded and how many were refused. Whatever else happens is raised."""
    found: collections.Counter[str] = collections.Counter()
    for seed in seeds:
        directory = scratch / str(seed)
        shutil.copytree(intact, directory)
        done = damage(directory, random.Random(seed))
        with watched(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                fxprune.load(directory, model)
                found["loaded"] += 1
            except PlanError as error:
                assert str(error)
                found["refused"] += 1
            except BaseException as error:
                raise AssertionError(f"seed {seed}, {done}: {type(error).__name__}: {error}") from error
        shutil.rmtree(directory)
    return found


@pytest.mark.slow
def test_fuzzed_files_are_refused_cleanly(intact: Path, tmp_path: Path) -> None:
    found = fuzz(intact, tmp_path, range(250))
    assert found["refused"] > 125


@pytest.mark.slow
def test_fuzzed_files_are_refused_cleanly_with_the_model(intact: Path, tmp_path: Path) -> None:
    found = fuzz(intact, tmp_path, range(1000, 1030), small())
    assert found["refused"] > 5


def test_the_fuzzer_reaches_deep(intact: Path, tmp_path: Path) -> None:
    directory = tmp_path / "out"
    shutil.copytree(intact, directory)
    reseal(directory)
    assert same(fxprune.load(directory)(**images(2, 6)), fxprune.load(intact)(**images(2, 6)))
