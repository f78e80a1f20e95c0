"""The weights that lie beside the benchmarks are those of a trained network."""

from __future__ import annotations

import pytest

from benchmarks.common import cifar
from benchmarks.common.data import MissingDataError
from benchmarks.common.deit import deit


def test_the_small_deit_knows_its_images() -> None:
    pytest.importorskip("timm")
    try:
        images, labels = cifar.test_set(500)
    except MissingDataError as missing:
        pytest.skip(str(missing))
    assert cifar.accuracy(deit(), images, labels) > 75  # 79.44 of all
