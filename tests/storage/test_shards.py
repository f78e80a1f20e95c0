"""Plans made on the meta device, and applied from safetensors files to safetensors files."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fxprune
from tests.models import small
from tests.support.weights import randomise

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


def _model() -> nn.Module:
    return randomise(small.Transformer(), 0, (IDS,)).eval()


@functools.cache
def _plan() -> fxprune.Plan:
    with torch.device("meta"):
        model = small.Transformer().eval()
    pruned = fxprune.compile(model, [IDS], 0.5, method="random", recover=None, verify=False, progress=False)
    plan = fxprune.report(pruned).plan
    assert plan is not None and next(pruned.parameters()).is_meta
    return plan


def _write(folder: Path, count: int = 3, **changes: Tensor) -> str:
    folder.mkdir()
    tensors = dict(_model().named_parameters()) | changes  # a tie once
    names = list(tensors)
    for i in range(count):
        save_file({n: tensors[n].detach().contiguous() for n in names[i::count]}, folder / f"model-{i}.safetensors")
    where = {name: f"model-{i % count}.safetensors" for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return str(folder / "*.safetensors")


@pytest.mark.slow
def test_files_hold_what_applying_to_the_model_gives(tmp_path: Path) -> None:
    plan, files = _plan(), _write(tmp_path / "in", extra=torch.ones(3))
    done = fxprune.apply(plan, files, tmp_path / "out")
    assert [path.name for path in done.files] == [f"model-{i}.safetensors" for i in range(3)] and done.dropped == (
        "extra",
    )
    found = {name: value for path in done.files for name, value in load_file(path).items()}
    expected = fxprune.apply(_model(), plan)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        n: tuple(p.shape) for n, p in expected.named_parameters()
    }
    with torch.device("meta"):
        empty = small.Transformer().eval()
    loaded = fxprune.apply(empty, plan)
    state = found | {name: found["embedding.weight"] for name in loaded.state_dict() if name not in found}  # the tie
    loaded.load_state_dict(state, assign=True)
    assert torch.equal(loaded(IDS), expected.eval()(IDS))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == found.keys()
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in found.values())


@pytest.mark.parametrize("what", ["missing", "shape", "twice", "damaged", "none", "used"])
def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path: Path, what: str) -> None:
    plan, out = _plan(), tmp_path / "out"
    files = _write(tmp_path / "in", **({"norm.weight": torch.ones(3)} if what == "shape" else {}))
    first = tmp_path / "in" / "model-0.safetensors"
    message = {
        "missing": "the files do not",
        "shape": r"norm.weight: expected \[12\], the files hold \[3\]",
        "twice": "in another file",
        "damaged": "no safetensors file",
        "none": "no such file",
        "used": "new or empty directory",
    }[what]
    if what == "missing":
        first.unlink()
    elif what == "twice":
        save_file(load_file(first), tmp_path / "in" / "more.safetensors")
    elif what == "damaged":
        first.write_bytes(first.read_bytes()[:40])
    elif what == "none":
        files = str(tmp_path / "nowhere" / "*.safetensors")
    elif what == "used":
        out.mkdir()
        (out / "mine.txt").write_text("keep")
    with pytest.raises(fxprune.PlanError, match=message):
        fxprune.apply(plan, files, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["in", "out"] if what == "used" else ["in"])


def test_files_of_one_name_are_refused(tmp_path: Path) -> None:
    plan = _plan()
    for part in ("s1", "s2"):
        _write(tmp_path / part, 1)
    with pytest.raises(fxprune.PlanError, match=r"several files are called model-0\.safetensors"):
        fxprune.apply(plan, tmp_path / "s*" / "*.safetensors", tmp_path / "out")
    (tmp_path / "s2" / "model-0.safetensors").rename(tmp_path / "s2" / "more.safetensors")
    with pytest.raises(fxprune.PlanError, match=r"several files are called model\.safetensors\.index\.json"):
        fxprune.apply(plan, tmp_path / "s*" / "*.safetensors", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s1", "s2"]


def test_a_path_with_brackets_is_a_path(tmp_path: Path) -> None:
    _write(tmp_path / "run[1]", 1)
    done = fxprune.apply(_plan(), tmp_path / "run[1]" / "model-0.safetensors", tmp_path / "out")
    assert [path.name for path in done.files] == ["model-0.safetensors"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    from fxprune.storage import shards

    plan, files = _plan(), _write(tmp_path / "in")
    done: list[Path] = []

    def save(tensors: Any, path: Path, **options: Any) -> None:
        if done:
            raise OSError("the disk is full")
        done.append(path)
        save_file(tensors, path, **options)

    monkeypatch.setattr(shards, "save_file", save)
    with pytest.raises(OSError, match="full"):
        fxprune.apply(plan, files, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_plan_that_removes_layers_needs_the_model(tmp_path: Path) -> None:
    model = randomise(small.Residual(), 0, (torch.randn(4, 3, 6, 6),)).eval()
    pruned = fxprune.compile(
        model, [torch.randn(4, 3, 6, 6)], ratios={"one*": 1.0}, min_keep=0, recover=None, progress=False
    )
    plan = fxprune.report(pruned).plan
    assert plan is not None and plan.collapsed
    save_file(dict(model.state_dict()), tmp_path / "all.safetensors")
    with pytest.raises(fxprune.PlanError, match="removes whole layers"):
        fxprune.apply(plan, tmp_path / "all.safetensors", tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "l2", "recover": None, "verify": False}, "the method needs weights"),
        ({"method": "random", "verify": False}, "recover='covariance'"),
        ({"method": "random", "recover": None}, "verify=True"),
    ],
)
def test_without_values_only_what_needs_none_is_done(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"):
        model = small.Transformer().eval()
    with pytest.raises(fxprune.CalibrationError, match=message):
        fxprune.compile(model, [IDS], 0.5, progress=False, **options)


def test_apply_says_how_it_is_called() -> None:
    plan = _plan()
    for arguments in ((plan, "in/*.safetensors"), (_model(), plan, "out")):
        with pytest.raises(TypeError, match=r"expected \(model, plan\), or \(plan, files, out\)"):
            fxprune.apply(*arguments)  # type: ignore[call-overload]
    by_name = fxprune.apply(model=_model(), plan=plan)
    assert fxprune.report(by_name).plan is plan


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 16), nn.RMSNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)))


@pytest.mark.parametrize("steps", [1, 2])
def test_weights_of_norms_take_their_factor_in_files_as_well(tmp_path: Path, steps: int) -> None:
    torch.manual_seed(0)
    model, x = Normed().eval(), torch.randn(8, 6)
    pruned = fxprune.compile(model, [x], 0.5, method="l2", recover=None, steps=steps, progress=False)
    plan = fxprune.report(pruned).plan
    assert plan is not None
    left = pruned.get_parameter("norm.weight").numel()
    assert plan.scaled == {"norm.weight": pytest.approx((16 / left) ** 0.5)}
    assert fxprune.Plan.from_json(plan.to_json()) == plan
    save_file(model.state_dict(), tmp_path / "in.safetensors")
    (done,) = fxprune.apply(plan, tmp_path / "in.safetensors", tmp_path / "out").files
    empty = fxprune.apply(Normed().to("meta").eval(), plan)
    empty.load_state_dict(load_file(done), assign=True)
    torch.testing.assert_close(empty(x), pruned(x))


def test_weights_that_are_computed_are_not_sliced_in_files(tmp_path: Path) -> None:
    class Standardised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), self.bias)

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 16), Standardised(16, 3)).eval(), torch.randn(8, 6)
    plan = fxprune.report(fxprune.compile(model, [x], 0.5, recover=None, progress=False)).plan
    assert plan is not None and plan.computed == ("1.weight",)
    assert fxprune.Plan.from_json(plan.to_json()) == plan
    save_file(model.state_dict(), tmp_path / "in.safetensors")
    with pytest.raises(fxprune.PlanError, match=r"computes weights from others \(1.weight\)"):
        fxprune.apply(plan, tmp_path / "in.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
