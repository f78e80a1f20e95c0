"""An artifact of a small tied model, without the page that has tests of its own."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest

import fxprune
from fxprune.storage import artifact
from tests.models.stored import BATCH, make_model


@pytest.fixture(autouse=True)
def _a_blank_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the report takes longer than all else, and has its own tests."""
    monkeypatch.setattr(artifact, "page", lambda pruned: "<html></html>")


@pytest.fixture(scope="module")
def compiled() -> fxprune.PrunedModule:
    return fxprune.compile(make_model(), [BATCH], 0.7, recover=None, progress=False)


@pytest.fixture
def pruned(compiled: fxprune.PrunedModule) -> fxprune.PrunedModule:
    return copy.deepcopy(compiled)


@pytest.fixture
def saved(compiled: fxprune.PrunedModule, tmp_path: Path) -> Path:
    fxprune.save(compiled, tmp_path / "out")
    return tmp_path / "out"
