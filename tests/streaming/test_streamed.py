"""From files to files: the same plan and the same weights as in memory, whatever interrupts it on the way."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fxprune
from fxprune._base import pages, shelf
from fxprune.scoring.variance import Variance
from fxprune.streaming.work import Work, working


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width)
        self.conv2, self.bn2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.blocks(self.stem(x).relu()).mean((2, 3)))
        return found


def llama(tied: bool = False) -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        tie_word_embeddings=tied,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(config)


def images() -> list[Tensor]:
    return [torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in range(3)]


def tokens() -> list[dict[str, Tensor]]:
    return [{"input_ids": torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(n))} for n in range(4)]


def bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=50
    )
    return transformers.BertForSequenceClassification(config)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))


def vectors() -> list[Tensor]:
    return [torch.randn(40, 6, generator=torch.Generator().manual_seed(n)) for n in range(3)]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "mlp": (mlp, vectors),
    "convolutions": (Net, images),
    "llama": (llama, tokens),
    "bert": (bert, tokens),
    "tied": (lambda: llama(True), tokens),
}


def stored(make: Callable[[], nn.Module], folder: Path, files: int = 2) -> nn.Module:
    """Writes a model's random weights to some files, and returns it."""
    torch.manual_seed(0)
    model = make().eval()
    for buffer in (b for name, b in model.named_buffers() if "running" in name):
        buffer.uniform_(0.5, 1.5)
    folder.mkdir()
    state = {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight" or not tied(model)
    }
    names = sorted(state)
    for number in range(files):
        save_file({name: state[name] for name in names[number::files]}, folder / f"part-{number}.safetensors")
    return model


def tied(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "tie_word_embeddings", False))


def empty(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def in_files(tensors: Iterable[Tensor]) -> bool:
    """Returns whether tensors are mapped from files of weights instead of held in memory."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if ".safetensors" in line]
    places = [tuple(int(end, 16) for end in line[0].split("-")) for line in lines]
    return all(any(start <= tensor.data_ptr() < end for start, end in places) for tensor in tensors)


OPTIONS: dict[str, Any] = {"progress": False}


def streamed(name: str, tmp_path: Path, budget: Any = 0.7, **options: Any) -> fxprune.PrunedModule:
    make, data = MODELS[name]
    return fxprune.compile(
        empty(make),
        data(),
        budget,
        weights=tmp_path / "in" / "*.safetensors",
        out=tmp_path / "out",
        **OPTIONS,
        **options,
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("convolutions", {}),
        ("llama", {"uniform": True, "memory_limit": 20_000}),
        ("tied", {"units": ("channel", "block"), "ratios": {"model.layers.0": 1.0, "default": 0.2}, "budget": None}),
    ],
)
def test_it_is_of_its_own_class(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    make, data = MODELS[name]
    options = {"form": "module", "budget": 0.7, **options}
    model = stored(make, tmp_path / "in")
    here = fxprune.compile(model, data(), **OPTIONS, **options)
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    there = streamed(name, tmp_path, **options)
    assert type(there) is type(here) is type(model) and there.report.form == "module"
    assert there.plan == here.plan and same(there, here) and there.report.verified
    assert {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    if Path("/proc/self/maps").exists():
        assert in_files(there.parameters())
    assert name != "tied" or len(there.model.layers) == 1
    loaded = fxprune.load(tmp_path / "out", model)
    assert type(loaded) is type(model) and same(loaded, here)
    if isinstance(there, transformers.PreTrainedModel) and "ratios" not in options:
        fxprune.to_pretrained(there, tmp_path / "checkpoint")
        assert same(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint"), here)


@pytest.mark.parametrize("limit", [2_000, 20_000])
def test_it_is_judged_whatever_fits_into_memory(limit: int, tmp_path: Path) -> None:
    stored(MODELS["convolutions"][0], tmp_path / "in")
    found = streamed("convolutions", tmp_path, memory_limit=limit).report.fidelity
    assert found is not None and not found.why and found.data == "held out"


@pytest.mark.parametrize(
    ("name", "recover"),
    [
        ("convolutions", "sequential"),
        ("convolutions", "mean_shift"),
        ("llama", "covariance"),
        ("bert", "covariance"),
        ("tied", None),
    ],
)
def test_it_is_what_comes_of_it_in_memory(name: str, recover: str | None, tmp_path: Path) -> None:
    make, data = MODELS[name]
    model = stored(make, tmp_path / "in")
    here = fxprune.compile(model, data(), 0.7, recover=recover, **OPTIONS)
    before = {path: path.read_bytes() for path in (tmp_path / "in").iterdir()}
    there = streamed(name, tmp_path, recover=recover)
    assert here.plan is not None and there.plan == here.plan
    assert same(there, here)
    assert there.certificate is not None and there.certificate.verified
    assert there.report.skipped == here.report.skipped
    close, wanted = there.report.fidelity, here.report.fidelity
    assert (
        close is not None
        and wanted is not None
        and close.data == wanted.data == ("held out" if recover else "unfitted")
    )
    assert (close.samples, close.agreement) == (wanted.samples, wanted.agreement)
    assert [close.explained, close.error, close.divergence] == pytest.approx(
        [wanted.explained, wanted.error, wanted.divergence], rel=1e-3, abs=1e-6
    )
    assert "recover='reconstruct'" not in close.advice  # which needs the model in memory
    assert close.perplexity == (wanted.perplexity and pytest.approx(wanted.perplexity, rel=1e-4))
    assert (close.perplexity is not None) == (name in ("llama", "tied"))
    if Path("/proc/self/maps").exists():
        assert in_files(there.parameters()) and not in_files(here.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert {path: path.read_bytes() for path in (tmp_path / "in").iterdir()} == before
    loaded = fxprune.load(tmp_path / "out")
    assert loaded.report.fidelity == close
    call = data()[0]
    with torch.no_grad():
        results = [m(**call) if isinstance(call, dict) else m(call) for m in (here, there, loaded)]
    first, *others = (getattr(result, "logits", result) for result in results)
    assert all(torch.equal(first, other) for other in others)
    assert same(fxprune.load(tmp_path / "out", model), here)


def test_values_wait_in_files_and_layers_are_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(llama, tmp_path / "in")
    let_go = []
    monkeypatch.setattr(pages, "_let_go", lambda place, size: let_go.append(size))
    whole = streamed("llama", tmp_path)
    few = len(let_go)
    part = streamed("llama", tmp_path, memory_limit=100_000)
    assert same(part, whole) and len(let_go) - few > few


@pytest.mark.parametrize("recover", ["covariance", "sequential"])
def test_an_interrupted_one_goes_on(recover: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, data = MODELS["mlp"]
    here = fxprune.compile(stored(make, tmp_path / "in"), data(), 0.7, recover=recover, **OPTIONS)
    written = []

    def interrupted(tensors: dict[str, Tensor], path: Path, **more: Any) -> None:
        written.append(path)
        if len(written) == 2:  # each run makes one file
            path.write_bytes(b"half of a file")
            raise KeyboardInterrupt
        save_file(tensors, path, **more)

    monkeypatch.setattr(shelf, "save_file", interrupted)
    interruptions = 0
    for _ in range(20):
        written.clear()
        try:
            there = streamed("mlp", tmp_path, recover=recover)
            break
        except KeyboardInterrupt:
            interruptions += 1
            assert not (tmp_path / "out").exists()
    assert same(there, here) and sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    # the scores and two layers, which are fitted once more where they go in turn
    assert interruptions == (3 if recover == "covariance" else 5)


def test_nothing_is_made_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(mlp, tmp_path / "in")
    count = [0]

    def full(tensors: dict[str, Tensor], path: Path, **more: Any) -> None:
        count[0] += 1
        if count[0] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(tensors, path, **more)

    monkeypatch.setattr(shelf, "save_file", full)
    with pytest.raises(fxprune.FxpruneError, match=r"cannot be written: .*No space left.*make room, and call again"):
        streamed("mlp", tmp_path)
    made = sorted(path.name[:-29] for path in (tmp_path / ".out.fxprune-work").glob("*.safetensors"))
    assert made == ["once-00001", "scores-00001"]
    streamed("mlp", tmp_path)
    # the scores, two layers and what is left: the second layer was tried twice
    assert count[0] == 5


def test_other_work_is_not_taken_for_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another budget takes over the scores, other data nothing."""
    make, data = MODELS["mlp"]
    model = stored(make, tmp_path / "in")
    scored, score = [], Variance.score
    monkeypatch.setattr(Variance, "score", lambda self, context: scored.append(self) or score(self, context))
    with monkeypatch.context() as stopped, pytest.raises(RuntimeError, match="stopped") as raised:
        stopped.setattr("fxprune.streaming.streamed.save_with", _fails)
        streamed("mlp", tmp_path, 0.7)
    assert "goes on from there" in raised.value.__notes__[0]
    with pytest.raises(fxprune.BudgetError):
        streamed("mlp", tmp_path, 1e-9)
    with monkeypatch.context() as stopped, pytest.raises(RuntimeError, match="stopped"):
        stopped.setattr("fxprune.streaming.streamed.save_with", _fails)
        there = streamed("mlp", tmp_path, 0.5)
    assert len(scored) == 1
    there = streamed("mlp", tmp_path, 0.5)
    assert len(scored) == 1 and same(there, fxprune.compile(model, data(), 0.5, **OPTIONS))
    monkeypatch.setitem(MODELS, "mlp", (make, lambda: vectors()[:2]))
    there = streamed("mlp", tmp_path, 0.5)
    assert same(there, fxprune.compile(model, vectors()[:2], 0.5, **OPTIONS)) and len(scored) == 4


def _stopped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    with monkeypatch.context() as stopped, pytest.raises(RuntimeError, match="stopped"):
        stopped.setattr("fxprune.streaming.streamed.save_with", _fails)
        streamed(name, tmp_path, **options)


class Scaled(nn.Module):
    """A network whose result hangs on a number, a table that is in no file, and an activation."""

    def __init__(self, by: float = 1.0, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.by = by
        self.up, self.act, self.down = nn.Linear(6, 24), act(), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(self.act(self.up(x * self.by)))
        return found


@pytest.mark.parametrize("change", ["number", "activation", "weights"])
def test_another_computation_is_not_gone_on_with(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "scaled", (Scaled, vectors))
    stored(Scaled, tmp_path / "in", 1)
    _stopped("scaled", tmp_path, monkeypatch)
    path = tmp_path / "in" / "part-0.safetensors"
    if change == "weights":  # of the same size, at the same time
        at = path.stat().st_mtime_ns
        save_file({name: tensor.flip(0) for name, tensor in load_file(path).items()}, path)
        os.utime(path, ns=(at, at))
    other = {"number": lambda: Scaled(-3.0), "activation": lambda: Scaled(1.0, nn.Tanh), "weights": Scaled}[change]
    monkeypatch.setitem(MODELS, "scaled", (other, vectors))
    model = other()
    model.load_state_dict(load_file(path))
    assert same(streamed("scaled", tmp_path), fxprune.compile(model, vectors(), 0.7, **OPTIONS))


@pytest.mark.parametrize("damage", ["cut short", "a bit", "empty", "the key"])
def test_damaged_work_is_made_again(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, data = MODELS["mlp"]
    here = fxprune.compile(stored(make, tmp_path / "in"), data(), 0.7, **OPTIONS)
    _stopped("mlp", tmp_path, monkeypatch)
    work = tmp_path / ".out.fxprune-work"
    files = [work / "key"] if damage == "the key" else sorted(work.glob("*.safetensors"))
    assert len(files) == (1 if damage == "the key" else 4)
    for path in files:
        content = bytearray(path.read_bytes())
        content[-5] ^= 64
        path.write_bytes({"cut short": content[:-9], "empty": b"", "the key": b"\xff\xfe"}.get(damage, content))
    assert same(streamed("mlp", tmp_path), here)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_file_that_is_missing_among_others_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, data = MODELS["mlp"]
    here = fxprune.compile(stored(make, tmp_path / "in"), data(), 0.7, **OPTIONS)
    monkeypatch.setattr(shelf, "_ENOUGH", 1)
    _stopped("mlp", tmp_path, monkeypatch)
    first, *others = sorted((tmp_path / ".out.fxprune-work").glob("model-*"))
    first.unlink()
    assert len(others) > 3 and same(streamed("mlp", tmp_path), here)
    assert same(fxprune.load(tmp_path / "out"), here)


def test_an_error_of_the_data_comes_through(tmp_path: Path) -> None:
    stored(mlp, tmp_path / "in")

    class Vanishing:
        passes = 0

        def __len__(self) -> int:
            return 3

        def __iter__(self) -> Iterator[Tensor]:
            Vanishing.passes += 1
            if Vanishing.passes > 5:
                raise FileNotFoundError("the data are gone")
            yield from vectors()

    with pytest.raises(FileNotFoundError, match="the data are gone"):
        fxprune.compile(
            empty(mlp), Vanishing(), 0.7, weights=tmp_path / "in", out=tmp_path / "out", recover="sequential", **OPTIONS
        )


def test_lines_of_the_report_are_kept_over_interruptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, data = MODELS["mlp"]
    limit = {"memory_limit": 16 * 20 * 20, "recover": "sequential"}
    here = fxprune.compile(stored(make, tmp_path / "in"), data(), 0.7, **limit, **OPTIONS)
    assert any("blocks" in line for line in here.report.skipped)
    _stopped("mlp", tmp_path, monkeypatch, **limit)
    assert streamed("mlp", tmp_path, **limit).report.skipped == here.report.skipped


class Statistics(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.arange(6.0))
        self.register_buffer("scale", torch.ones(6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = (x - self.mean) * self.scale
        return found


class Begun(nn.Module):
    """A model with a rule for how a module begins, as those of transformers have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.up, self.down = Statistics(), nn.Linear(6, 24), nn.Linear(24, 4)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Statistics):
            module.mean.zero_()
            module.scale.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(self.up(self.first(x)).relu())
        return found


def test_buffers_of_files_are_not_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "begun", (Begun, vectors))
    model = stored(Begun, tmp_path / "in")
    there = streamed("begun", tmp_path)
    assert same(there, fxprune.compile(model, vectors(), 0.7, **OPTIONS))
    assert torch.equal(there.state_dict()["first.mean"], torch.arange(6.0))


class Keeping(nn.Module):
    """A model that keeps a tensor as a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.linspace(1, 2, 6)
        self.up, self.down = nn.Linear(6, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(self.up(x * self.scale).relu())
        return found


def test_a_tensor_that_a_module_keeps_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "keeping", (Keeping, vectors))
    stored(Keeping, tmp_path / "in")
    with pytest.raises(fxprune.CalibrationError, match="weights: scale is in no file, and lies on the meta device"):
        streamed("keeping", tmp_path)


def test_files_that_are_not_the_artifacts_stay(tmp_path: Path) -> None:
    stored(mlp, tmp_path / "in")
    streamed("mlp", tmp_path)
    (tmp_path / "out" / "model-00009.safetensors").write_bytes(b"mine")
    with pytest.raises(fxprune.PlanError, match=r"model-00009\.safetensors is not of the artifact there"):
        streamed("mlp", tmp_path)


def _fails(*_: Any) -> None:
    raise RuntimeError("stopped")


def test_two_processes_do_not_work_in_one_place(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="the system has no locks")
    with working(tmp_path / "out", {}, {}) as work:
        assert isinstance(work, Work)
        with (
            pytest.raises(fxprune.FxpruneError, match="another process works there"),
            working(tmp_path / "out", {}, {}),
        ):
            pass


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Path]:
    stored(llama, tmp_path / "in")
    before = sorted(tmp_path.iterdir())
    yield tmp_path
    assert sorted(tmp_path.iterdir()) == before  # nothing is left behind


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"method": "taylor"}, fxprune.ScorerError, "needs gradients, for which all of the model.*variance"),
        ({"method": "obs"}, fxprune.ScorerError, "needs .*gradients.*use one of"),
        ({"recover": "reconstruct"}, fxprune.RecoveryError, "needs all of the model in memory.*covariance"),
        ({"steps": 2}, ValueError, "steps=2 needs all"),
        ({"basis": "pca"}, ValueError, "basis='pca' needs all"),
        ({"budget": fxprune.Budget(latency=0.5)}, ValueError, "latency needs all of the model"),
        ({"method": "variants"}, fxprune.ScorerError, "variants"),
    ],
)
def test_what_needs_all_at_once_is_refused(
    there: Path, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        streamed("llama", there, **options)


def test_files_must_hold_the_model(there: Path) -> None:
    make, data = MODELS["llama"]
    good = {"weights": there / "in" / "*.safetensors", "out": there / "out"}
    with pytest.raises(fxprune.CalibrationError, match=r"has values already .*torch\.device"):
        fxprune.compile(make(), data(), 0.7, **good)
    with pytest.raises(ValueError, match="give out="):
        fxprune.compile(empty(make), data(), 0.7, weights=good["weights"])
    with pytest.raises(ValueError, match="give weights="):
        fxprune.compile(empty(make), data(), 0.7, out=good["out"])
    with pytest.raises(fxprune.PlanError, match="no such file"):
        fxprune.compile(empty(make), data(), 0.7, weights=there / "else" / "*.safetensors", out=good["out"])
    with pytest.raises(fxprune.CalibrationError, match="is in none of the files"):
        fxprune.compile(empty(make), data(), 0.7, weights=there / "in" / "part-0.safetensors", out=good["out"])
    with pytest.raises(fxprune.CalibrationError, match=r"expected \[\d+, 3, 3, 3\]|is in none"):
        fxprune.compile(empty(Net), images(), 0.7, **good)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        fxprune.compile("model", data(), 0.7, **good)  # type: ignore[arg-type]


def test_a_tensor_in_two_files_is_told(tmp_path: Path) -> None:
    stored(mlp, tmp_path / "in", 1)
    save_file({"0.weight": torch.zeros(24, 6)}, tmp_path / "in" / "part-9.safetensors")
    with pytest.raises(fxprune.PlanError, match=r"part-9\.safetensors: '0\.weight' is in another file as well"):
        streamed("mlp", tmp_path)


def test_what_is_in_the_way_is_told_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    monkeypatch.setattr("fxprune.streaming.streamed.filled", _fails)
    with pytest.raises(fxprune.PlanError, match="holds other files"):
        streamed("llama", tmp_path)
    assert os.listdir(tmp_path / "out") == ["mine.txt"]


def test_shape_that_differs_is_named(tmp_path: Path) -> None:
    stored(llama, tmp_path / "in", files=1)
    path = tmp_path / "in" / "part-0.safetensors"
    state = load_file(path)
    state["model.norm.weight"] = torch.ones(31)
    state["unheard.of"] = torch.ones(2)
    save_file(state, path)
    with pytest.raises(fxprune.CalibrationError, match=r"model.norm.weight: expected \[32\], the files hold \[31\]"):
        streamed("llama", tmp_path)
    state["model.norm.weight"] = torch.ones(32)
    save_file(state, path)
    with pytest.warns(fxprune.FxpruneWarning, match="does not have.*unheard.of"):
        streamed("llama", tmp_path)
    state["model.norm.weight"][0] = torch.nan
    save_file(state, path)
    with pytest.raises(fxprune.CalibrationError, match=r"model.norm.weight holds NaN"):
        streamed("llama", tmp_path)


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(1, 2, 8), persistent=False)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.down(self.up(x * self.scale).relu())
        return found


def test_a_buffer_that_no_file_holds_is_asked_for(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate", reason="builds models without weights")
    model = stored(Positions, tmp_path / "in")
    data = [torch.randn(16, 8, generator=torch.Generator().manual_seed(0))]
    way = {"weights": tmp_path / "in" / "*.safetensors", "out": tmp_path / "out", **OPTIONS}
    with pytest.raises(fxprune.CalibrationError, match=r"weights: scale is in no file.*init_empty_weights"):
        fxprune.compile(empty(Positions), data, 0.7, **way)
    with accelerate.init_empty_weights():
        bare = Positions()
    assert same(fxprune.compile(bare, data, 0.7, **way), fxprune.compile(model, data, 0.7, **OPTIONS))


def test_half_precision_stays_and_is_verified_in_float32(tmp_path: Path) -> None:
    make, data = MODELS["llama"]
    stored(lambda: make().to(torch.bfloat16), tmp_path / "in")
    there = fxprune.compile(
        empty(make), data(), 0.7, weights=tmp_path / "in" / "*.safetensors", out=tmp_path / "out", **OPTIONS
    )
    assert {parameter.dtype for parameter in there.parameters()} == {torch.bfloat16}
    assert there.certificate is not None and there.certificate.verified and there.certificate.dtype == "torch.float32"
    assert there.certificate.max_error < 1e-4
