"""Saving and loading: exact, with the model and without it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fxprune
from fxprune._base.errors import FxpruneError, MissingExtraError, PlanError
from fxprune.storage import artifact
from tests.models.stored import BATCH, make_model, scores
from tests.support.compiling import around, compile_small
from tests.support.weights import fingerprint


def test_what_is_loaded_is_what_was_saved(pruned: fxprune.PrunedModule, saved: Path) -> None:
    model = make_model(seed=1)  # of the same architecture, with other weights
    model.scale = make_model().scale
    before = fingerprint(model)
    again = fxprune.load(saved, model)
    assert fingerprint(model) == before
    assert list(again.state_dict()) == list(pruned.state_dict())
    assert all(torch.equal(again.state_dict()[name], value) for name, value in pruned.state_dict().items())
    assert torch.equal(scores(again), scores(pruned))
    assert fxprune.report(again) == fxprune.report(pruned)


def test_the_directory_holds_plain_files(saved: Path) -> None:
    assert sorted(p.name for p in saved.iterdir()) == [
        "README.md",
        "constants.safetensors",
        "graph.json",
        "manifest.json",
        "model.safetensors",
        "plan.json",
        "report.html",
        "report.json",
    ]
    assert [p.name for p in saved.parent.iterdir()] == ["out"]
    assert saved.stat().st_mode & 0o777 == 0o777 & ~_umask()
    assert fxprune.Plan.from_json((saved / "plan.json").read_text()).method == "variance"
    assert json.loads((saved / "report.json").read_text())["verified"] is True


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_ties_are_saved_once_and_stay_tied(pruned: fxprune.PrunedModule, saved: Path) -> None:
    assert "head.weight" in pruned.state_dict() and "embed.weight" in pruned.state_dict()
    assert "head.weight" not in load_file(saved / "model.safetensors")
    again = fxprune.load(saved, make_model())
    state = again.state_dict(keep_vars=True)
    assert state["head.weight"] is state["embed.weight"]


def test_training_and_another_dtype_survive(pruned: fxprune.PrunedModule, tmp_path: Path) -> None:
    optimiser = torch.optim.SGD(pruned.parameters(), 0.1)
    pruned(**BATCH)["scores"].square().mean().backward()
    optimiser.step()
    fxprune.save(pruned, tmp_path / "trained")
    assert torch.equal(scores(fxprune.load(tmp_path / "trained", make_model())), scores(pruned))
    half = pruned.to(torch.bfloat16)
    fxprune.save(half, tmp_path / "half")
    again = fxprune.load(tmp_path / "half", make_model())
    assert all(
        torch.equal(again.state_dict()[k], v) and v.dtype == torch.bfloat16 for k, v in half.state_dict().items()
    )
    state = again.state_dict(keep_vars=True)
    assert state["head.weight"] is state["embed.weight"]


def test_what_is_loaded_can_be_saved_and_trained(saved: Path, tmp_path: Path) -> None:
    again = fxprune.load(saved, make_model())
    again(**BATCH)["scores"].sum().backward()
    assert all(p.grad is not None for p in again.parameters())
    fxprune.save(again, tmp_path / "twice")
    for name in sorted(p.name for p in saved.iterdir()):
        assert (tmp_path / "twice" / name).read_bytes() == (saved / name).read_bytes()


def test_memory_that_tensors_share_is_written_apart(tmp_path: Path) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.arange(8.0)
            for name, part in {"a": whole[:4], "b": whole[2:6], "c": whole[:4], "d": whole.view(2, 4).t()}.items():
                self.register_buffer(name, part)
            self.lin = nn.Linear(2, 3, bias=False)
            self.register_buffer("flat", self.lin.weight.detach().view(-1))  # all of the same memory
            self.register_buffer("e", torch.ones(0))
            self.register_buffer("f", torch.ones(0))

    tensors, ties = artifact._tensors_once(Views())
    assert ties == {"c": "a"} and list(tensors) == ["a", "b", "d", "flat", "e", "f", "lin.weight"]
    assert all(value.is_contiguous() for value in tensors.values())
    assert tensors["d"].tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]] and tensors["b"].tolist() == [2, 3, 4, 5]
    save_file(tensors, tmp_path / "file")
    again = load_file(tmp_path / "file")
    assert again.keys() == tensors.keys() and all(torch.equal(again[n], v) for n, v in tensors.items())


# -- what is refused ------------------------------------------------------------------------------------------------


def test_only_pruned_models_are_saved(pruned: fxprune.PrunedModule, tmp_path: Path) -> None:
    with pytest.raises(FxpruneError, match=r"fxprune.compile or fxprune.load returned, got Linear"):
        fxprune.save(nn.Linear(2, 2), tmp_path / "out")
    pruned.to("meta")
    with pytest.raises(FxpruneError, match="meta device"):
        fxprune.save(pruned, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_other_people_s_files_are_left_alone(compiled: fxprune.PrunedModule, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(PlanError, match=r"holds other files \(thesis.tex\)"):
        fxprune.save(compiled, tmp_path)
    with pytest.raises(PlanError, match="expected a directory, got a file"):
        fxprune.save(compiled, tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


# -- without the original's class -----------------------------------------------------------------------------------


def test_it_loads_without_the_model(pruned: fxprune.PrunedModule, saved: Path, tmp_path: Path) -> None:
    again = fxprune.load(saved)
    assert isinstance(again, fxprune.PrunedModule) and not again.training
    assert torch.equal(scores(again), scores(pruned))
    assert list(again.state_dict()) == list(pruned.state_dict())
    assert all(torch.equal(again.state_dict()[name], value) for name, value in pruned.state_dict().items())
    state = again.state_dict(keep_vars=True)
    assert state["head.weight"] is state["embed.weight"]
    assert fxprune.report(again) == fxprune.report(pruned)
    fxprune.save(again, tmp_path / "twice")
    for name in sorted(p.name for p in saved.iterdir()):
        assert (tmp_path / "twice" / name).read_bytes() == (saved / name).read_bytes()


def older(directory: Path) -> None:
    """Makes the artifact one of the first format, which had no graph."""
    for name in ("graph.json", "constants.safetensors", "README.md", "report.html"):
        (directory / name).unlink()
    manifest = json.loads((directory / "manifest.json").read_text())
    files = {name: manifest["files"][name] for name in ("plan.json", "model.safetensors", "report.json")}
    first = {"format": manifest["format"], "schema": 1, "files": files, "ties": manifest["ties"]}
    (directory / "manifest.json").write_text(json.dumps(first))


def test_the_first_format_is_read(pruned: fxprune.PrunedModule, saved: Path) -> None:
    older(saved)
    with pytest.raises(PlanError, match=r"older fxprune.*fxprune.load\(directory, model\)"):
        fxprune.load(saved)
    model = make_model(1)
    model.scale = make_model().scale
    again = fxprune.load(saved, model)
    assert torch.equal(scores(again), scores(pruned))
    fxprune.save(again, saved)
    assert torch.equal(scores(fxprune.load(saved)), scores(pruned))


@pytest.mark.slow
def test_a_model_pruned_in_parts_needs_its_class(tmp_path: Path) -> None:
    class Threshold(nn.Module):
        """Does what cannot be captured, between two parts that can."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 6))
            self.second = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.second(x if float(x.sum()) > 1e9 else -x)

    torch.manual_seed(0)
    x = torch.randn(4, 6)
    pruned = fxprune.compile(Threshold(), [x], 0.7, progress=False)
    assert fxprune.report(pruned).islands == ("first", "second")
    fxprune.save(pruned, tmp_path / "out")
    assert not (tmp_path / "out" / "graph.json").exists()
    assert 'fxprune.load(".", model)' in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(PlanError, match=r"pruned in parts.*fxprune.load\(directory, model\)"):
        fxprune.load(tmp_path / "out")
    assert torch.equal(fxprune.load(tmp_path / "out", Threshold())(x), pruned(x))


def test_the_directory_says_how_to_load_it(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (saved / "README.md").read_text()
    monkeypatch.chdir(saved)
    code = text.partition("```python\n")[2].partition("```")[0]
    space: dict[str, Any] = {}
    exec(code, space)
    assert isinstance(space["pruned"], fxprune.PrunedModule)
    assert all(f"`{p.name}`" in text for p in saved.iterdir() if p.name != "README.md")


def test_a_page_that_cannot_be_drawn_is_left_out(
    compiled: fxprune.PrunedModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_extra(pruned: nn.Module) -> str:
        raise MissingExtraError("pip install 'fxprune[report]'")

    monkeypatch.setattr(artifact, "page", without_extra)
    fxprune.save(compiled, tmp_path / "out")
    assert not (tmp_path / "out" / "report.html").exists()
    assert torch.equal(scores(fxprune.load(tmp_path / "out")), scores(compiled))


def test_what_looks_like_an_artifact_is_left_alone(compiled: fxprune.PrunedModule, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(PlanError, match=r"holds other files \(README.md\)"):
        fxprune.save(compiled, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_model_that_moved_is_saved_loaded_and_applied_as_it_is(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return around(lambda h: h * torch.arange(h.shape[1], dtype=h.dtype, device=h.device).cos())

    x = torch.randn(3, 8, dtype=torch.bfloat16)
    pruned = compile_small(build()).to(torch.bfloat16)
    fxprune.save(pruned, tmp_path / "out")
    assert torch.equal(fxprune.load(tmp_path / "out", build())(x), pruned(x))
    plan = fxprune.report(pruned).plan
    assert fxprune.apply(build().to(torch.bfloat16), plan)(x).dtype == torch.bfloat16
