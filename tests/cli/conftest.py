"""Every command runs in a folder with models of the user's own, and images of three classes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.cli import MODELS


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with models of the user's own, and images of three classes."""
    (tmp_path / "mine.py").write_text(MODELS)
    generator = np.random.default_rng(0)
    for index in range(9):
        folder = tmp_path / "pictures" / f"kind{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)
    yield tmp_path
    sys.modules.pop("mine", None)
