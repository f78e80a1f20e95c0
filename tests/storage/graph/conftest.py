"""Pruned models with the directories that they were intact in."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fxprune
from fxprune.storage import artifact
from tests.models.stored import MODELS, images, small
from tests.support.marks import but_slow


@pytest.fixture(scope="module", params=but_slow(MODELS, quick=("small", "vit", "lstm")))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Yields the name, a pruned model, its directory, and what makes calls of so many samples."""
    make, call = MODELS[request.param]
    if request.param in ("bert", "llama"):
        pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp(request.param) / "out"
    pruned = fxprune.compile(make().eval(), [call(2), call(3)], 0.7, recover=None, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "page", lambda pruned: "<html></html>")
        fxprune.save(pruned, directory)
    yield request.param, pruned, directory, call


@functools.cache
def compiled_small() -> fxprune.PrunedModule:
    return fxprune.compile(small().eval(), [images(2, 6)], 0.7, recover=None, progress=False)


@pytest.fixture
def pruned_small() -> fxprune.PrunedModule:
    """A pruned small network of the test's own."""
    return copy.deepcopy(compiled_small())


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that a pruned small network was saved in."""
    pruned = compiled_small()
    directory = tmp_path_factory.mktemp("saved") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "page", lambda pruned: "<html></html>")
        fxprune.save(pruned, directory)
    return directory
