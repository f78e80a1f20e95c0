"""Models whose tensors several processes hold: gathered, compiled as a plain one is, and sharded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.processes import spawned
from tests.support.sharding import WAYS, others, sharded


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes say of each way."""
    return spawned(sharded, tmp_path_factory.mktemp("sharded"))


@pytest.mark.parametrize("way", WAYS)
def test_the_result_is_that_of_a_plain_model(way: str, found: list[dict[str, Any]]) -> None:
    for one in found:
        told = one[way]
        assert told["class"] and told["plan"] and told["alike"] and told["plain"]
        assert [name.rpartition(".")[0] for name in told["frozen"]] == ["embed", "embed"]
        assert told["hooks"] == (WAYS[way][1] == "module")
        assert told["again"] < 1e-12


@pytest.mark.parametrize("way", WAYS)
def test_the_model_stays_as_it_is(way: str, found: list[dict[str, Any]]) -> None:
    for one in found:
        assert one[way]["stays"] and one[way]["sharded"] and one[way]["runs"] < 1e-12


@pytest.mark.slow
def test_whatever_takes_a_model_takes_one_that_is_sharded(tmp_path: Path) -> None:
    for told in spawned(others, tmp_path):
        assert told["alone"].startswith("ValueError: alone=True: several processes hold the model")
        assert "is a DTensor" in told["plain"] and "fxprune.compile gathers" in told["plain"] and told["graph"]
        assert told["points"] == [True, True] and told["batch norms"] and told["schedule"] == (True, True)
