"""Arrays as calibration data, by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fxprune.cli.data import load_data
from fxprune.cli.specs import DataSpec
from tests.support.cli import Bomb, complaint, done, made, misuse


@pytest.mark.slow
def test_arrays_go_by_name(here: Path) -> None:
    import mine

    labels = np.arange(10) % 2
    np.savez(here / "two.npz", first=np.ones((10, 4)), second=np.zeros((10, 4)), labels=labels)
    spec = DataSpec(source="two.npz", batch_size=8)
    batches = load_data(spec, made(mine.Two()))
    assert [set(batch) for batch in batches] == [{"first", "second", "labels"}] * 2
    assert batches[0]["first"].dtype == torch.float32 and len(batches[1]["labels"]) == 2
    done("compile", "mine:Two", "--calib", "two.npz", "--budget", "0.6", "--out", "out", "--method", "taylor")
    np.savez(here / "one.npz", x=np.ones((6, 3, 8, 8), np.float32))
    (batch,) = load_data(DataSpec(source="one.npz"), made(mine.net()))
    assert batch.shape == (6, 3, 8, 8)


def test_arrays_that_cannot_be_used(here: Path) -> None:
    good = np.ones((4, 3, 8, 8), np.float32)
    np.savez(here / "uneven.npz", x=good, labels=np.zeros(3))
    np.savez(here / "objects.npz", x=np.array([Bomb()], dtype=object))
    np.savez(here / "labels.npz", labels=np.zeros(3))
    np.savez(here / "nan.npz", x=np.full_like(good, np.nan))
    np.savez(here / "deep.npz", x=np.ones((4, 5, 8, 8)))
    np.savez(here / "named.npz", first=np.ones((4, 4)), secnd=np.ones((4, 4)))
    np.savez(here / "words.npz", x=np.array(["a", "b"]))
    (here / "junk.npz").write_bytes(b"junk")
    for name, words in (
        ("uneven.npz", "as many samples in each array, got x 4, labels 3"),
        ("objects.npz", "numpy.savez"),
        ("labels.npz", "no arrays for the model's inputs"),
        ("nan.npz", "NaN"),
        ("deep.npz", "[4, 5, 8, 8]"),
        ("words.npz", "expected numbers"),
        ("junk.npz", "numpy.savez"),
        ("mine:generator", "generator"),
        ("mine:number", "expected a DataLoader"),
    ):
        assert words in complaint("compile", "mine:net", "--calib", name, "--budget", "0.5", "--out", "out"), name
    said = complaint("compile", "mine:Two", "--calib", "named.npz", "--budget", "0.5", "--out", "out")
    assert "'secnd' is no argument of the model" in said and "did you mean second" in said
    assert not (here / "exploded").exists()


def test_data_that_there_are_not(here: Path) -> None:
    (here / "data.parquet").write_bytes(b"junk")
    for name, words in (
        ("nowhere.npz", "--calib nowhere.npz: no such file"),
        ("data.parquet", "this kind of file is not read"),
        ("random:4,three", "expected random:SHAPE"),
        ("random:0x3x8x8", "a size is 0"),
        ("mine:nothing", "mine has no 'nothing'"),
        ("nowhere/images", "no such file or folder"),
    ):
        assert words in misuse("compile", "mine:net", "--calib", name, "--budget", "0.5", "--out", "out"), name
