"""What is damaged, or of another model, is refused with a clear error, and changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune._base.errors import PlanError
from fxprune.results.plan import _digest
from fxprune.storage import loading
from tests.models.stored import Tied, make_model
from tests.support.artifacts import edit_manifest, edit_tensors, flip, reseal, truncate
from tests.support.weights import fingerprint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "manifest.json is missing: expected a directory that fxprune.save wrote"),
        (lambda d: (d / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda d: (d / "plan.json").unlink(), "plan.json is missing"),
        (lambda d: (d / "model.safetensors").unlink(), "model.safetensors is missing"),
        (truncate("manifest.json"), "manifest.json: it is not valid JSON"),
        (truncate("plan.json"), "plan.json: expected .* bytes, got .*: is the file whole"),
        (truncate("report.json"), "report.json: expected .* bytes"),
        (truncate("model.safetensors"), "model.safetensors: expected .* bytes"),
        (flip("plan.json"), "plan.json: its checksum does not match manifest.json"),
        (flip("report.json"), "report.json: its checksum does not match"),
        (flip("model.safetensors"), "model.safetensors: its checksum does not match"),
        (truncate("plan.json", sealed=True), "plan.json: it is not valid JSON"),
        (truncate("report.json", sealed=True), "report.json: it is not valid JSON"),
        (truncate("model.safetensors", sealed=True), "model.safetensors: it is no safetensors file"),
        (edit_manifest(lambda m: m.update(format="zip")), "manifest.json: it is no fxprune artifact"),
        (edit_manifest(lambda m: m.update(schema=9)), "format 9 is not one .* upgrade"),
        (edit_manifest(lambda m: m.pop("ties")), "ties missing"),
        (edit_manifest(lambda m: m["files"].pop("plan.json")), "files: plan.json missing"),
        (edit_manifest(lambda m: m["files"].update({"../x": {}})), "unknown entries"),
        (edit_manifest(lambda m: m.update(ties={"head.weight": "nowhere"})), "ties: 'nowhere' does not fit"),
        (edit_manifest(lambda m: m.update(ties={})), "'head.weight' is missing"),
        (edit_manifest(lambda m: m["ties"].update(x="up.bias")), "'x' is not in the pruned model"),
        (edit_tensors(lambda t: t.pop("up.bias")), "'up.bias' is missing"),
        (edit_tensors(lambda t: t.update(more=torch.ones(1))), "'more' is not in the pruned model"),
        (
            edit_tensors(lambda t: t.update({"up.bias": torch.ones(99)})),
            r"up.bias: the plan leaves \[\d+\], got \[99\]",
        ),
    ],
)
def test_a_damaged_artifact(saved: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(saved)
    model = make_model()
    before = fingerprint(model)
    with pytest.raises(PlanError, match=message):
        fxprune.load(saved, model)
    assert fingerprint(model) == before


def test_an_artifact_of_another_model(saved: Path) -> None:
    with pytest.raises(PlanError, match=r"another model:\n  down.bias: expected \[12\], got \[14\]"):
        fxprune.load(saved, Tied(width=14))
    with pytest.raises(PlanError, match="the model has no such tensor"):
        fxprune.load(saved, nn.Linear(2, 2))


def test_nothing_in_the_files_is_executed(saved: Path) -> None:
    text = (saved / "plan.json").read_text().replace("builtins.dict", "antigravity.flight")
    (saved / "plan.json").write_text(text)
    reseal(saved)
    with pytest.raises(PlanError, match="not read from files"):
        fxprune.load(saved, make_model())
    assert "antigravity" not in sys.modules


def test_a_file_that_is_too_large_to_be_ours(saved: Path) -> None:
    os.truncate(saved / "plan.json", (1 << 27) + 1)
    with pytest.raises(PlanError, match=r"plan\.json: expected at most 134217728 bytes"):
        loading.load_report(saved)


def test_an_example_that_would_fill_the_memory(saved: Path) -> None:
    plan = json.loads((saved / "plan.json").read_text())
    plan["example"]["leaves"][0]["shape"] = [1 << 20, 1 << 20]
    plan["sha256"] = _digest({key: value for key, value in plan.items() if key != "sha256"})
    (saved / "plan.json").write_text(json.dumps(plan))
    reseal(saved)
    with pytest.raises(PlanError, match="example: expected at most"):
        fxprune.load(saved, make_model())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "graph.json").unlink(), "graph.json is missing"),
        (lambda d: (d / "constants.safetensors").unlink(), "constants.safetensors is missing"),
        (truncate("graph.json"), "graph.json: expected .* bytes"),
        (flip("graph.json"), "graph.json: its checksum does not match"),
        (flip("constants.safetensors"), "constants.safetensors: its checksum does not match"),
        (truncate("graph.json", sealed=True), "graph.json: it is not valid JSON"),
        (truncate("constants.safetensors", sealed=True), "constants.safetensors: it is no safetensors file"),
        (edit_manifest(lambda m: m.pop("no_graph")), "no_graph missing"),
        (edit_manifest(lambda m: m.update(no_graph="none")), "files: unknown entries"),
        (edit_manifest(lambda m: m.update(schema=1)), "unknown entries"),
        (edit_manifest(lambda m: m.update(ties={"head.weight": "nowhere"})), "ties: 'nowhere' does not fit"),
        (edit_manifest(lambda m: m["ties"].update(x="up.bias")), "'x' is not in the pruned model"),
        (edit_tensors(lambda t: t.pop("up.bias")), "'up.bias' is in no file"),
        (edit_tensors(lambda t: t.update(more=torch.ones(1))), "'more' is not in the pruned model"),
        (edit_tensors(lambda t: t.update({"up.bias": torch.ones(99)})), r"'up.bias': expected .*, the file .* \[99\]"),
    ],
)
def test_a_damaged_artifact_without_the_model(saved: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(saved)
    with pytest.raises(PlanError, match=message):
        fxprune.load(saved)
