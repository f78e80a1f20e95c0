"""Saving and loading: exact, atomic, and a clear error for everything that is damaged or of another model."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fxprune
from fxprune._base import files
from fxprune._base.errors import FxpruneError, MissingExtraError, PlanError
from fxprune.results.plan import _digest
from fxprune.storage import artifact, manifest
from tests.support.weights import fingerprint, randomise


class Tied(nn.Module):
    """A token model whose head shares the embedding's weight, with a mask that is not saved."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.up, self.down = nn.Linear(width, 16), nn.Linear(16, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.rand(1), persistent=False)

    def forward(self, ids: Tensor, *, mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(ids) * self.scale
        x = self.norm(x + self.down(torch.relu(self.up(x))))
        return {"scores": self.head(x if mask is None else x * mask.unsqueeze(-1))}


def make_model(seed: int = 0) -> Tied:
    torch.manual_seed(seed)
    return randomise(Tied(), seed)  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def _a_blank_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the report takes longer than all else, and has its own tests."""
    monkeypatch.setattr(artifact, "page", lambda pruned: "<html></html>")


IDS = torch.arange(20).reshape(4, 5) % 10
BATCH = {"ids": IDS, "mask": torch.ones(4, 5)}


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


def scores(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(**BATCH)["scores"]


# -- exactness ------------------------------------------------------------------------------------------------------


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
        "README.md", "constants.safetensors", "graph.json", "manifest.json", "model.safetensors", "plan.json",
        "report.html", "report.json",
    ]  # fmt: skip
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


def reseal(directory: Path) -> None:
    """Writes the manifest that fits the files as they are now."""
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (directory / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def edit_manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        manifest = json.loads((directory / "manifest.json").read_text())
        change(manifest)
        (directory / "manifest.json").write_text(json.dumps(manifest))

    return edit


def edit_tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")
        reseal(directory)

    return edit


def truncate(name: str, sealed: bool = False) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) // 2])
        if sealed:
            reseal(directory)

    return edit


def flip(name: str) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        content = bytearray((directory / name).read_bytes())
        content[len(content) // 2] ^= 1
        (directory / name).write_bytes(content)

    return edit


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


# -- interruptions --------------------------------------------------------------------------------------------------


def marked(pruned: fxprune.PrunedModule, value: float) -> fxprune.PrunedModule:
    with torch.no_grad():
        pruned.get_parameter("up.bias").fill_(value)
    return pruned


def stored_mark(directory: Path) -> float:
    """Returns the mark of a whole artifact, found as ``load`` finds it."""
    directory = files.readable(directory)
    manifest.sealed(directory)
    return float(load_file(directory / "model.safetensors")["up.bias"][0])


def steps(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Has ``act`` called, with a running number, before each thing that ``save`` does to files."""
    count = iter(range(1000))

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def stepped(*args: Any, **kwargs: Any) -> Any:
            act(next(count))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, stepped)

    for owner, name in (
        (artifact, "save_file"), (files, "sync"), (shutil, "rmtree"),
        (Path, "write_text"), (Path, "rename"), (Path, "mkdir"),
    ):  # fmt: skip
        wrap(owner, name)


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is killed in its tracks")
@pytest.mark.parametrize("replace", [True, False])
def test_a_kill_leaves_the_old_or_the_new(pruned: fxprune.PrunedModule, tmp_path: Path, replace: bool) -> None:
    directory = tmp_path / "out"
    if replace:
        fxprune.save(marked(pruned, 1.0), directory)
    marked(pruned, 2.0)
    found = []
    for last in range(1000):
        if _saved_before_kill(pruned, directory, last):
            break
        if replace or directory.exists():
            found.append(stored_mark(directory))
    assert last > 10 and stored_mark(directory) == 2.0
    assert found == sorted(found) and set(found) <= {1.0, 2.0}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def _saved_before_kill(pruned: fxprune.PrunedModule, directory: Path, last: int) -> bool:
    """Saves in a child process that dies without a word before step ``last``; returns whether it was done by then."""
    child = os.fork()
    if not child:
        with pytest.MonkeyPatch.context() as patch:
            steps(patch, lambda step: os._exit(9) if step == last else None)
            fxprune.save(pruned, directory)
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_error_leaves_the_old_and_no_litter(pruned: fxprune.PrunedModule, tmp_path: Path) -> None:
    directory = tmp_path / "out"
    fxprune.save(marked(pruned, 1.0), directory)
    marked(pruned, 2.0)
    for failing in _failing_steps():
        with pytest.MonkeyPatch.context() as patch:
            steps(patch, failing)
            try:
                fxprune.save(pruned, directory)
            except OSError as error:
                assert "disk" in str(error)
            else:
                break
        assert stored_mark(directory) in (1.0, 2.0)
    assert stored_mark(directory) == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def _failing_steps() -> Iterator[Callable[[int], None]]:
    for last in range(1000):

        def fail(step: int, last: int = last) -> None:
            if step == last:
                raise OSError("no space left on disk")

        yield fail


def test_reading_moves_and_removes_nothing(pruned: fxprune.PrunedModule, tmp_path: Path) -> None:
    directory, previous = tmp_path / "out", tmp_path / ".out.previous"
    fxprune.save(marked(pruned, 1.0), directory)
    directory.rename(previous)
    again = fxprune.load(directory)
    assert again.get_parameter("up.bias")[0] == 1 and artifact.load_report(directory) == fxprune.report(again)
    assert list(tmp_path.iterdir()) == [previous]
    shutil.copytree(previous, directory)
    artifact.load_report(directory)
    assert sorted(tmp_path.iterdir()) == [previous, directory]
    fxprune.save(marked(pruned, 2.0), directory)
    assert list(tmp_path.iterdir()) == [directory] and stored_mark(directory) == 2.0


@pytest.mark.parametrize("code", [errno.EACCES, errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EIO])
def test_systems_that_cannot_sync_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def fsync(_: int) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(files.os, "fsync", fsync)
    if code == errno.EIO:
        with pytest.raises(OSError, match="no"):
            files.write_text(tmp_path / "a", "b")
    else:
        files.write_text(tmp_path / "a", "b")
        assert (tmp_path / "a").read_text() == "b"


def test_a_file_that_is_too_large_to_be_ours(saved: Path) -> None:
    os.truncate(saved / "plan.json", (1 << 27) + 1)
    with pytest.raises(PlanError, match=r"plan\.json: expected at most 134217728 bytes"):
        artifact.load_report(saved)


def test_saving_again_replaces(pruned: fxprune.PrunedModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fxprune.save(marked(pruned, 1.0), "a/b")
    fxprune.save(marked(pruned, 2.0), Path("a") / "b")
    assert stored_mark(tmp_path / "a" / "b") == 2.0


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
)  # fmt: skip
def test_a_damaged_artifact_without_the_model(saved: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(saved)
    with pytest.raises(PlanError, match=message):
        fxprune.load(saved)
