"""Pruned models, exported once for each kind of file."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import fxprune
from tests.support.exports import pruned_of


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], fxprune.Exported]:
    """Exports a pruned model once for each suffix, alone in a directory."""
    done: dict[tuple[str, str], fxprune.Exported] = {}

    def once(name: str, suffix: str) -> fxprune.Exported:
        if (name, suffix) not in done:
            folder = tmp_path_factory.mktemp(name)
            done[name, suffix] = fxprune.export(pruned_of(name), folder / f"model{suffix}")
            assert [path.name for path in folder.iterdir()] == [f"model{suffix}"]
        return done[name, suffix]

    return once
