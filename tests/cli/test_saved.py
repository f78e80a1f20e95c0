"""Commands on what was saved: report, bench, export, finetune, and the device that it lies on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune.cli import models
from fxprune.cli.models import device_named, make
from fxprune.cli.specs import ModelSpec
from tests.support.cli import TINY, complaint, done, misuse


@pytest.mark.slow
def test_bench_export_and_finetune(here: Path) -> None:
    done("compile", *TINY, "--budget", "0.6", "--out", "out", "-q")
    bench = ("bench", "out", "--model", "mine:net", "--seconds", "0", "--repeats", "2", "--threads", "1")
    data = json.loads(done(*bench, "--batch-sizes", "1,2", "--json").stdout)
    assert [(row["model"], row["batch_size"]) for row in data["rows"]] == [
        ("dense", 1),
        ("pruned", 1),
        ("dense", 2),
        ("pruned", 2),
    ]
    assert "another model" in complaint(*bench, "--arg", "width=4")
    assert "backend" in misuse(*bench, "--backend", "tpu")
    assert "--arg is about the dense model: give --model too" in misuse("bench", "out", "--arg", "width=4")
    assert "--weights is about the dense model" in misuse("bench", "out", "--weights", "none")
    done("export", "out", "out.pt2")
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(torch.export.load(here / "out.pt2").module()(x), fxprune.load(here / "out")(x))
    assert ".onnx" in misuse("export", "out", "out.engine")
    assert "; did you mean .onnx?" in misuse("export", "out", "out.onx")
    found = done("finetune", "out", "--data", "pictures", "--image-size", "8", "--epochs", "1", "--out", "tuned")
    assert "training loss" in found.stdout
    before, after = (fxprune.load(here / name).state_dict() for name in ("out", "tuned"))
    assert list(before) == list(after) and not torch.equal(before["0.weight"], after["0.weight"])
    distill = ("--distill", "--model", "mine:net", "--weights", "none", "--json")
    found = done("finetune", "out", "--data", "mine:batches", "--epochs", "1", "--out", "taught", *distill)
    assert len(json.loads(found.stdout)["epochs"]) == 1
    tune = ("finetune", "out", "--data", "mine:loader", "--out", "more")
    assert "expected the dense model as teacher" in misuse(*tune, "--distill")
    assert "; did you mean default?" in misuse(*tune, "--recipe", "defalt")
    assert "; did you mean momentum?" in misuse(*tune, "--set", "momentun=0.5")
    assert "at least 1" in misuse(*tune, "--epochs", "0")
    assert "--validation no.npz: no such file" in misuse(*tune, "--validation", "no.npz")


def test_what_helps_is_said_as_the_command_takes_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("compile", *TINY, "--budget", "0.6", "--out", "out", "-q")

    def fixed(*_: Any, **__: Any) -> None:
        raise fxprune.ExportError("the batch is not free: pass dynamic_batch=False, or dynamic_shapes= with the sizes")

    monkeypatch.setattr(fxprune, "export", fixed)
    assert "pass --fixed-batch, or dynamic_shapes= (in Python) with" in complaint("export", "out", "out.pt2")


@pytest.mark.slow
def test_lost_training_is_told_unless_the_model_is_given(here: Path) -> None:
    done("compile", "mine:odd", "--calib", "mine:loader", "--budget", "0.7", "--out", "out", "-q")
    argv = ("finetune", "out", "--data", "mine:loader", "--epochs", "1", "-q")
    lost = "fxprune: warning: 3 (mine.Odd): what this does while training is not stored"
    assert done(*argv, "--out", "tuned").stderr.startswith(lost)
    assert lost not in done(*argv, "--out", "more", "--model", "mine:odd").stderr


@pytest.mark.parametrize("device", ["toaster", "meta", "cuda:99"])
@pytest.mark.parametrize("argv", ["bench no", "export no x.pt2", "finetune no --data mine:loader --out o"])
def test_a_device_that_cannot_be_used(here: Path, argv: str, device: str) -> None:
    (here / "no").mkdir()
    assert f"--device {device}: it cannot be used here" in misuse(*argv.split(), "--device", device)


def test_the_pruned_model_lies_on_the_device(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("compile", *TINY, "--budget", "0.6", "--out", "out", "-q")
    assert device_named("cpu") == torch.device("cpu")
    monkeypatch.setattr(models, "device_named", torch.device)
    for dense in (None, make(ModelSpec(spec="mine:net", weights="none"))):
        pruned = models.load_pruned("out", dense, "meta")
        assert {tensor.device.type for tensor in pruned.state_dict().values()} == {"meta"}


@pytest.mark.slow
def test_the_report_as_a_page(here: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    done("compile", *TINY, "--budget", "0.6", "--out", "out", "-q")
    done("report", "out", "--html", "report.html")
    assert "<html" in (here / "report.html").read_text(encoding="utf-8")
    assert "got a directory" in misuse("report", "out", "--html", "pictures")


def test_directories_that_hold_no_pruned_model(here: Path) -> None:
    for command in (("report",), ("bench",), ("export", "x.onnx"), ("finetune", "--data", "mine:loader", "--out", "o")):
        name, rest = command[0], command[1:]
        assert "nowhere: expected a directory" in misuse(name, "nowhere", *rest)
        assert "mine.py: expected a directory" in misuse(name, "mine.py", *rest)
        assert "error: pictures: manifest.json is missing" in complaint(name, "pictures", *rest)
    done("compile", *TINY, "--budget", "0.6", "--out", "out", "-q")
    report = here / "out" / "report.json"
    report.write_text(report.read_text().replace('"verified": true', '"verified": null'))
    assert "its checksum does not match" in complaint("report", "out")
    assert "its checksum does not match" in complaint("export", "out", "x.pt2")


@pytest.mark.slow
def test_finetune_says_what_it_wants(here: Path) -> None:
    done("compile", *TINY, "--budget", "0.6", "--out", "out", "-q")
    argv = ("finetune", "out", "--data", "mine:batches")
    assert "another directory than the one" in misuse(*argv, "--out", "./out")
    ways = r"--data mine:batches: it has no targets: .*subfolders.*`labels`.*--label-column.*--distill"
    assert re.search(ways, complaint(*argv, "--out", "tuned"))
    assert "--weights none where" in misuse(*argv, "--out", "tuned", "--distill", "--model", "mine:net")
