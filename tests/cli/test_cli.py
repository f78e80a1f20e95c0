"""The command line: what each command does, and what it says to a wrong input."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import fxprune
from fxprune._base.errors import FxpruneWarning
from fxprune.cli import images, main, saved
from fxprune.cli.data import DataSpec, load_data
from fxprune.cli.errors import is_the_users, one_line
from fxprune.cli.images import Preparation, transform_of
from fxprune.cli.main import HINT
from fxprune.cli.models import Made, ModelSpec, device_named, make
from fxprune.cli.values import BACKENDS, amount, literal
from fxprune.cli.weights import load_weights
from fxprune.compiler.options import MethodName, RecoveryOption, UnitKind
from fxprune.contrib import demo
from fxprune.runtimes.registry import BackendName
from fxprune.runtimes.setting import threads_set

MODELS = """
import torch
from torch import nn

torch.manual_seed(0)


def net(width=8, classes=3):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                         nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, classes))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, first, second):
        return self.b(self.a(first + second).relu())


def loader():
    return [(torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4,))) for _ in range(2)]


def generator():
    yield torch.randn(4, 3, 8, 8)


def number():
    return 3


def fails():
    raise ZeroDivisionError("by zero")


batches = [torch.randn(4, 3, 8, 8)]


class Odd(nn.Module):
    def forward(self, x):
        return x * (1 + torch.rand(())) if self.training else x


def odd():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), Odd(), nn.Flatten(), nn.Linear(128, 3))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with models of the user's own, and images of three classes."""
    (tmp_path / "mine.py").write_text(MODELS)
    generator = np.random.default_rng(0)
    for index in range(9):
        folder = tmp_path / "pictures" / f"kind{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("mine", None)
    yield tmp_path
    sys.modules.pop("mine", None)


def run(*argv: str) -> Result:
    return CliRunner().invoke(main, argv)


def done(*argv: str) -> Result:
    found = run(*argv)
    assert found.exit_code == 0, found.output
    return found


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)


def complaint(*argv: str) -> str:
    """Returns what a failing command says: one line, and nothing is written."""
    before = listing(Path.cwd())
    found = run(*argv)
    assert found.exit_code == 1, found.output
    errors = [line for line in found.stderr.splitlines() if not line.startswith("fxprune: ") or "error" in line[:15]]
    assert len(errors) == 1 and errors[0].startswith("fxprune: error: "), found.stderr
    assert listing(Path.cwd()) == before
    return errors[0]


TINY = ("mine:net", "--calib", "mine:loader")


# -- what the commands do -----------------------------------------------------------------------------------------


def test_from_images_to_a_verified_model_and_its_report(here: Path) -> None:
    argv = ("compile", "mine:net", "--calib", "pictures", "--image-size", "8", "--budget", "0.6", "--method", "taylor")
    found = done(*argv, "--out", "out", "--plan", "plan.json")
    assert "verified: equal to the masked twin" in found.stdout and "saved: the model in out" in found.stdout
    pruned = fxprune.load(here / "out")
    report = fxprune.report(pruned)
    assert report.verified is True and report.method == "taylor"
    assert report.params[1] == sum(p.numel() for p in pruned.parameters()) <= 0.6 * report.params[0]
    assert report.plan is not None and (here / "plan.json").read_text() == report.plan.to_json()
    assert done("report", "out").stdout == f"{report}\n"
    assert json.loads(done("report", "out", "--json").stdout) == report.to_dict()
    assert "mine:net" in report.notes[-1]


def test_bounds_together_and_as_json(here: Path) -> None:
    found = done("compile", *TINY, "--params", "80%", "--macs", "0.5", "--out", "out", "--json", "--quiet")
    data = json.loads(found.stdout)
    assert data["params"][1] <= 0.8 * data["params"][0] and data["macs"][1] <= 0.5 * data["macs"][0]
    absolute = done("compile", *TINY, "--macs", str(data["macs"][1]), "--dry-run", "--json")
    assert json.loads(absolute.stdout)["macs"][1] <= data["macs"][1]


def test_ratios_by_pattern(here: Path) -> None:
    argv = ("--ratio", "0=0.5", "--ratio", "default=0", "--recover", "none", "--no-verify")
    data = json.loads(done("compile", *TINY, *argv, "--dry-run", "--json").stdout)
    assert [(row[0], row[3], row[4]) for row in data["groups"]] == [("0", 8, 4), ("3", 8, 8)]


def test_a_dry_run_writes_nothing(here: Path) -> None:
    before = listing(here)
    found = done("compile", *TINY, "--budget", "0.5", "--dry-run", "--out", "out", "--plan", "plan.json")
    assert "groups: 2, of which" in found.stdout and "nothing is written" in found.stdout
    assert listing(here) == before


def test_quiet_says_nothing(here: Path) -> None:
    found = done("compile", *TINY, "--weights", "none", "--budget", "0.6", "--out", "out", "--quiet")
    assert found.output == ""


def test_random_weights_and_noise_are_warned_of(here: Path) -> None:
    found = done("compile", "mine:net", "--calib", "random:4x3x8x8", "--budget", "0.6", "--dry-run")
    assert "warning: mine:net: the weights are random" in found.stderr and "this is noise" in found.stderr
    assert found.stderr.count("\n") == 3  # and what is compiled


def test_a_pattern_that_matches_nothing_is_warned_of_in_one_line(here: Path) -> None:
    found = done("compile", *TINY, "--weights", "none", "--budget", "0.6", "--dry-run", "--ignore", "head*")
    assert "fxprune: warning: ignore pattern 'head*' matches no layer\n" in found.stderr


def test_weights_from_a_file_reach_the_pruned_model(here: Path) -> None:
    import mine  # type: ignore[import-not-found]

    model = mine.net()
    save_file(model.state_dict(), here / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, here / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        found = make(ModelSpec(spec="mine:net", weights=name)).model.state_dict()
        assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())
    done("compile", *TINY, "--weights", "w.pt", "--budget", "1.0", "--out", "out")
    pruned = fxprune.load(here / "out")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(pruned(x), model.eval()(x))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_what_wrappers_put_before_names_is_taken_off(here: Path, prefix: str) -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    bare, expected = nn.Linear(2, 2), nn.Linear(2, 2)
    for loaded, inner in ((bare, ""), (model, "module.")):
        save_file({f"{prefix}{inner}{k}": v for k, v in expected.state_dict().items()}, here / "w.safetensors")
        load_weights(loaded, here / "w.safetensors")
        assert torch.equal(loaded.state_dict()[f"{inner}weight"], expected.weight)


def test_apply_to_a_model_and_to_files(here: Path) -> None:
    import mine

    torch.manual_seed(5)
    model = mine.net()
    save_file(model.state_dict(), here / "w.safetensors")
    data = ("--calib", "mine:batches", "--budget", "0.6", "--method", "random", "--recover", "none")
    done("compile", "mine:net", "--weights", "w.safetensors", *data, "--out", "out")
    done("apply", "out", "mine:net", "--weights", "w.safetensors", "--out", "again")
    done("apply", "out/plan.json", "w.safetensors", "--out", "files")
    first, second = fxprune.load(here / "out"), fxprune.load(here / "again")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(first(x), second(x))
    second.load_state_dict(load_file(here / "files" / "w.safetensors"))
    torch.testing.assert_close(first(x), second(x))
    assert "choose a new or empty directory" in complaint("apply", "out", "w.safetensors", "--out", "files")
    assert "expected [8" in complaint("apply", "out", "mine:net", "--arg", "width=4", "--out", "other")
    (here / "bad.json").write_text((here / "out" / "plan.json").read_text().replace("random", "chance"))
    assert "checksum" in complaint("apply", "bad.json", "mine:net", "--out", "other")
    assert "No such file" in complaint("apply", "no.json", "mine:net", "--out", "other")


def test_a_plan_without_weights(here: Path) -> None:
    argv = ("--meta", "--method", "random", "--budget", "0.6")
    assert "leave --out out" in complaint("compile", *TINY, *argv, "--out", "out")
    assert "meta device" in complaint("compile", *TINY, "--meta", "--budget", "0.6", "--plan", "plan.json")
    done("compile", *TINY, *argv, "--plan", "plan.json")
    plan = fxprune.Plan.from_json((here / "plan.json").read_text())
    assert plan.after["params"] <= 0.6 * plan.before["params"]


def test_explain_as_text_json_and_graph(here: Path) -> None:
    base = ("explain", "mine:net", "--calib", "random:2x3x8x8")
    text = done(*base).stdout
    assert "2 groups, 16 units" in text and "frozen, and why" in text and "7.weight[0]" in text
    data = json.loads(done(*base, "--json").stdout)
    assert [(g["name"], g["units"], g["makers"], g["readers"]) for g in data["groups"]] == [
        ("0", 8, ["0", "1"], ["3"]), ("3", 8, ["3"], ["7"]),
    ]  # fmt: skip
    assert {"tensor": "7.bias", "axis": 0, "coordinates": 3, "size": 3} in [
        {k: row[k] for k in ("tensor", "axis", "coordinates", "size")} for row in data["frozen"]
    ]
    dot = done(*base, "--dot").stdout
    assert dot.startswith("digraph fxprune {") and '"layer 3" -> "group 3";' in dot and '"group 3" -> "layer 7";' in dot
    one = done(*base, "3").stdout
    assert "3.weight axis 0 (8)" in one and "read by 7" in one and "0.weight axis 0" not in one
    assert [g["name"] for g in json.loads(done(*base, "7", "--json").stdout)["groups"]] == ["3"]
    assert "did you mean 7" in complaint(*base, "77")


def test_explain_needs_no_data_where_the_library_says_what_a_model_takes() -> None:
    data = json.loads(done("explain", "torchvision:squeezenet1_1", "--image-size", "64", "--json", "--meta").stdout)
    assert "features.3.squeeze" in [group["name"] for group in data["groups"]]
    assert "say it with --calib" in complaint("explain", "mine:net")


def test_explain_finds_the_parts_of_a_model_that_cannot_be_captured_whole() -> None:
    class Rim(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.part(x)
            return out if float(out.detach().sum().item()) > 0 else -out

    from fxprune.compiler.explanation import explain

    found = explain(Rim().eval(), [torch.randn(3, 4)])
    assert found.islands == ("part",) and [g.units for g in found.groups] == [8]
    assert "islands: part" in str(found)


def test_bench_export_and_finetune(here: Path) -> None:
    done("compile", *TINY, "--budget", "0.6", "--out", "out", "-q")
    bench = ("bench", "out", "--model", "mine:net", "--seconds", "0", "--repeats", "2", "--threads", "1")
    data = json.loads(done(*bench, "--batch-sizes", "1,2", "--json").stdout)
    assert [(row["model"], row["batch_size"]) for row in data["rows"]] == [
        ("dense", 1), ("pruned", 1), ("dense", 2), ("pruned", 2),
    ]  # fmt: skip
    assert "another model" in complaint(*bench, "--arg", "width=4")
    assert "backend" in complaint(*bench, "--backend", "tpu")
    assert "--arg is about the dense model: give --model too" in complaint("bench", "out", "--arg", "width=4")
    assert "--weights is about the dense model" in complaint("bench", "out", "--weights", "none")
    done("export", "out", "out.pt2")
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(torch.export.load(here / "out.pt2").module()(x), fxprune.load(here / "out")(x))
    assert ".onnx" in complaint("export", "out", "out.tflite")
    found = done("finetune", "out", "--data", "pictures", "--image-size", "8", "--epochs", "1", "--out", "tuned")
    assert "training loss" in found.stdout
    before, after = (fxprune.load(here / name).state_dict() for name in ("out", "tuned"))
    assert list(before) == list(after) and not torch.equal(before["0.weight"], after["0.weight"])
    distill = ("--distill", "--model", "mine:net", "--weights", "none", "--json")
    found = done("finetune", "out", "--data", "mine:batches", "--epochs", "1", "--out", "taught", *distill)
    assert len(json.loads(found.stdout)["epochs"]) == 1
    tune = ("finetune", "out", "--data", "mine:loader", "--out", "more")
    assert "expected the dense model as teacher" in complaint(*tune, "--distill")
    assert "expected one of" in complaint(*tune, "--recipe", "magic")
    assert "momentun" in complaint(*tune, "--set", "momentun=0.5")


def test_lost_training_is_told_unless_the_model_is_given(here: Path) -> None:
    done("compile", "mine:odd", "--calib", "mine:loader", "--budget", "0.7", "--out", "out", "-q")
    argv = ("finetune", "out", "--data", "mine:loader", "--epochs", "1", "-q")
    lost = "fxprune: warning: 3 (mine.Odd): what this does while training is not stored"
    assert done(*argv, "--out", "tuned").stderr.startswith(lost)
    assert lost not in done(*argv, "--out", "more", "--model", "mine:odd").stderr


@pytest.mark.parametrize("device", ["toaster", "meta", "cuda:99"])
@pytest.mark.parametrize("argv", ["bench no", "export no x.pt2", "finetune no --data mine:loader --out o"])
def test_a_device_that_cannot_be_used(argv: str, device: str) -> None:
    assert f"--device {device}: it cannot be used here" in complaint(*argv.split(), "--device", device)


def test_the_pruned_model_lies_on_the_device(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("compile", *TINY, "--budget", "0.6", "--out", "out", "-q")
    assert device_named("cpu") == torch.device("cpu")
    monkeypatch.setattr(saved, "device_named", torch.device)
    for dense in (None, make(ModelSpec(spec="mine:net", weights="none"))):
        pruned = saved.load_pruned("out", dense, "meta")
        assert {tensor.device.type for tensor in pruned.state_dict().values()} == {"meta"}


def test_the_report_as_a_page(here: Path) -> None:
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    done("compile", *TINY, "--budget", "0.6", "--out", "out", "-q")
    done("report", "out", "--html", "report.html")
    assert "<html" in (here / "report.html").read_text(encoding="utf-8")
    assert "got a directory" in complaint("report", "out", "--html", "pictures")


# -- data ---------------------------------------------------------------------------------------------------------


def made(model: nn.Module, library: str = "", name: str = "") -> Made:
    return Made(model.eval(), ModelSpec(spec=f"{library}:{name}"), library, name)


def test_images_are_prepared_as_torchvision_and_timm_say() -> None:
    import timm
    import torchvision

    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 260, 3), dtype=np.uint8))
    transform = transform_of(made(nn.Identity(), "torchvision", "mobilenet_v2"), Preparation())
    expected = torchvision.models.MobileNet_V2_Weights.DEFAULT.transforms()(picture)
    assert torch.equal(transform(picture), expected)
    smaller = transform_of(made(nn.Identity(), "torchvision", "mobilenet_v2"), Preparation(size=64))
    assert smaller(picture).shape == (3, 64, 64)
    model = timm.create_model("vit_tiny_patch16_224")
    config = timm.data.resolve_model_data_config(model)
    expected = timm.data.create_transform(**config, is_training=False)(picture)
    assert torch.equal(transform_of(made(model, "timm", "vit_tiny_patch16_224"), Preparation())(picture), expected)
    plain = transform_of(made(nn.Identity()), Preparation(size=6, mean=(0.0,), std=(1.0,), channels=1))(
        picture.convert("L")
    )
    assert plain.shape == (1, 6, 6) and plain.min() >= 0 and plain.max() <= 1


def test_an_unnamed_vit_takes_the_images_that_it_was_made_for() -> None:
    vit = nn.Identity()
    vit.image_size = 32  # type: ignore[assignment]
    for model, size in ((vit, 32), (nn.Identity(), 518)):
        assert images.default_shape(made(model, "torchvision", "vit_h_14"), Preparation()) == (2, 3, size, size)
        transform = transform_of(made(model, "torchvision", "vit_h_14"), Preparation())
        assert transform(Image.new("RGB", (60, 50))).shape == (3, size, size)
    shape = images.default_shape(made(vit, "torchvision", "vit_h_14"), Preparation(size=64))
    assert shape == (2, 3, 64, 64)


def test_only_a_library_s_own_weights_have_its_classes() -> None:
    for weights, count in ((None, 0), ("none", 0), ("mine.pt", 0), ("DEFAULT", 1000), ("IMAGENET1K_V1", 1000)):
        spec = ModelSpec(spec="torchvision:resnet18", weights=weights)
        assert len(images.class_names(Made(nn.Identity(), spec, "torchvision", "resnet18"))) == count


@pytest.mark.parametrize("out", [(), None, 3, {"loss": torch.tensor(1.0)}])
def test_classes_need_an_output_that_tells_them_apart(out: Any) -> None:
    class Says(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return out

    spec = DataSpec(source="pictures", images=Preparation(size=8))
    with pytest.raises(fxprune.FxpruneError, match="no output is a tensor with an axis of classes"):
        load_data(spec, made(Says()), targets=True)


def test_classes_are_read_off_subfolders(here: Path) -> None:
    files = images.image_files(here / "pictures")
    folder = here / "pictures"
    assert images.classes_of(files, folder, (), 3) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert images.classes_of(files, folder, ("x", "kind2", "kind0", "kind1"), 4) == [2, 2, 2, 3, 3, 3, 1, 1, 1]
    with pytest.raises(fxprune.FxpruneError, match="3 subfolders, and the model has 1000 classes"):
        images.classes_of(files, folder, (), 1000)
    for index in range(3):
        (folder / f"kind{index}").rename(folder / str(5 * index))
    files = images.image_files(folder)
    assert sorted(images.classes_of(files, folder, (), 1000)) == [0, 0, 0, 5, 5, 5, 10, 10, 10]
    with pytest.raises(fxprune.FxpruneError, match="subfolder 10: the model has 3 classes"):
        images.classes_of(files, folder, (), 3)


def test_images_are_drawn_alike_for_the_same_seed(here: Path) -> None:
    import mine

    def read(**options: Any) -> list[Any]:
        spec = DataSpec(source="pictures", images=Preparation(size=8), batch_size=4, **options)
        return load_data(spec, made(mine.net()), targets=True)  # type: ignore[no-any-return]

    first, again, other = read(samples=6), read(samples=6), read(samples=6, seed=1)
    assert [len(labels) for _, labels in first] == [4, 2]
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


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


def bert(here: Path) -> Path:
    """Returns a folder with a small BERT and its tokenizer."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "one", "two", "three", "four", "five"])}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    folder = here / "bert"
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=2,
        id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1},
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def test_texts_and_tables_for_a_transformer(here: Path) -> None:
    folder = bert(here)
    (here / "texts.txt").write_text("one two three\n\nfour\nfive one one two\n")
    (here / "texts.csv").write_text("sentence,answer\none two,yes\nthree,no\nfour five one,yes\n")
    model = make(ModelSpec(spec=f"transformers:{folder}", weights="DEFAULT"))
    assert type(model.model).__name__ == "BertForSequenceClassification"
    (batch,) = load_data(DataSpec(source="texts.txt"), model)
    assert batch["input_ids"].shape == (3, 4) and int(batch["attention_mask"].sum()) == 8
    spec = DataSpec(source="texts.csv", column="sentence", label_column="answer", batch_size=2)
    labels = torch.cat([batch["labels"] for batch in load_data(spec, model)])
    assert sorted(labels.tolist()) == [0, 1, 1]
    argv = ("compile", f"transformers:{folder}", "--weights", "DEFAULT", "--calib", "texts.csv", "--column", "sentence")
    done(*argv, "--label-column", "answer", "--method", "taylor", "--budget", "0.8", "--out", "out", "-q")
    pruned = fxprune.load(here / "out")
    assert pruned(**{k: v for k, v in batch.items() if k != "labels"})["logits"].shape == (3, 2)
    assert "did you mean sentence" in complaint(*argv[:-1], "sentences", "--budget", "0.8", "--out", "more")
    assert "which column" in complaint(*argv[:-2], "--budget", "0.8", "--out", "more")
    kind = ("transformers:distilbert", "--config", "n_layers=1")
    assert "--tokenizer" in complaint("compile", *kind, "--calib", "texts.txt", "--budget", "0.8", "--out", "more")
    assert "did you mean num_hidden_layers" in complaint("explain", "transformers:bert", "--config", "hidden_layers=1")


def test_values() -> None:
    assert [amount(text) for text in ("0.5", "50%", "1200000", "1.2M", "2G", ".25")] == [
        0.5, 0.5, 1_200_000, 1_200_000, 2_000_000_000, 0.25,
    ]  # fmt: skip
    assert [type(amount(text)) for text in ("1.0", "1", "100%")] == [float, int, float]
    assert [literal(text) for text in ("3", "true", "none", "[1, 2]", "relu", "1e-3")] == [
        3, True, None, [1, 2], "relu", 1e-3,
    ]  # fmt: skip


# -- wrong input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--budget", "2"), "(0, 1]"),
        (("--budget", "0"), "(0, 1]"),
        (("--budget", "0.01"), "the smallest is"),
        ((), "neither"),
        (("--budget", "0.5", "--ratio", "0.5"), "either"),
        (("--budget", "0.5", "--params", "0.5"), "give one of them"),
        (("--ratio", "0=1.5"), "[0, 1]"),
        (("--ratio", "half"), "PATTERN=SHARE"),
        (("--macs", "1.5"), "(0, 1]"),
        (("--budget", "0.5", "--latency-batch", "4"), "latency"),
        (("--budget", "0.5", "--method", "magic"), "variance"),
        (("--budget", "0.5", "--recover", "magic"), "covariance"),
        (("--budget", "0.5", "--round-to", "0"), "round_to"),
        (("--budget", "0.5", "--round-to", "x"), "expected a whole number or auto"),
        (("--budget", "0.5", "--min-keep", "-1"), "min_keep"),
        (("--budget", "0.5", "--ignore", "*"), "ignore"),
        (("--budget", "0.5", "--units", "chanel"), "head_dim"),
        (("--budget", "0.5", "--ridge", "0"), "ridge"),
        (("--budget", "0.5", "--steps", "0"), "steps"),
        (("--budget", "0.5", "--loss", "mine:nothing"), "no 'nothing'"),
        (("--budget", "0.5", "--device", "toaster"), "--device toaster"),
        (("--budget", "0.5", "--config", "a=1"), "--arg"),
        (("--budget", "0.5", "--arg", "depth=3"), "depth"),
    ],
)  # fmt: skip
def test_a_wrong_argument(argv: tuple[str, ...], words: str) -> None:
    assert words in complaint("compile", *TINY, "--out", "out", *argv)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("torchvision:resnet81", "did you mean resnet18"),
        ("torchvison:resnet18", "did you mean torchvision"),
        ("resnet18", "did you mean torchvision:resnet18"),
        ("resnet", "expected torchvision:NAME"),
        ("timm:vit_tiny_patch16_225", "did you mean vit_tiny_patch16_224"),
        ("transformers:./nowhere", "expected a folder"),
        ("mine:nett", "did you mean net"),
        ("yours:net", "no module named 'yours'"),
        ("mine:batches", "expected a function or class"),
        ("mine:number", "torch.nn.Module, got int"),
        ("mine:fails", "ZeroDivisionError: by zero"),
    ],
)
def test_an_unknown_model(model: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if model.startswith("transformers"):
        constants = pytest.importorskip("huggingface_hub").constants
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert words in complaint("compile", model, "--calib", "mine:loader", "--budget", "0.5", "--out", "out")


def test_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'fxprune[models]'" in complaint("explain", "timm:resnet18")


class Bomb:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def test_weights_that_do_not_fit(here: Path) -> None:
    import mine

    state = mine.net().state_dict()
    save_file({**state, "7.bias": torch.zeros(9)}, here / "shape.safetensors")
    save_file({k: v for k, v in state.items() if k != "3.weight"}, here / "missing.safetensors")
    torch.save({**state, "9.weight": torch.zeros(1)}, here / "more.pt")
    (here / "junk.safetensors").write_bytes(b"junk")
    (here / "bomb.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save([1, 2], here / "list.pt")
    for name, words in (
        ("shape.safetensors", "size mismatch for 7.bias"),
        ("missing.safetensors", "'3.weight' is missing"),
        ("more.pt", "'9.weight' is unknown to the model"),
        ("junk.safetensors", "no safetensors file"),
        ("bomb.pt", "no plain state dict"),
        ("list.pt", "expected a state dict"),
        ("nowhere.safetensors", "no such file"),
        ("IMAGENET1K_V9", "no such file"),
    ):
        argv = ("compile", *TINY, "--weights", name, "--budget", "0.5", "--out", "out")
        assert words in complaint(*argv), name
    assert not (here / "exploded").exists()
    assert "IMAGENET1K_V2" in complaint("explain", "torchvision:resnet50", "--weights", "IMAGENET1K_V9")


def test_images_that_cannot_be_used(here: Path) -> None:
    def said(folder: str, *more: str) -> str:
        data = ("--calib", folder, "--image-size", "8")
        return complaint("compile", "mine:net", *data, "--budget", "0.5", "--out", "out", *more)

    (here / "empty").mkdir()
    assert "no images in this folder" in said("empty")
    assert "no such file or folder" in said("nowhere")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(here / "pictures" / "loose.png")
    assert "images lie outside subfolders" in said("pictures", "--method", "taylor")
    assert "needs targets" in said("pictures", "--method", "taylor", "--labels", "none")
    (here / "pictures" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut short")
    assert "broken.jpg: it cannot be read as an image" in said("pictures")
    assert "--mean: expected one number, or one a channel (3), got 2" in said("pictures", "--mean", "0.5,0.5")
    assert "--std: expected numbers above 0, got 0.0" in said("pictures", "--std", "0")


def test_means_and_deviations_are_checked_for_every_library() -> None:
    for model in ("torchvision:squeezenet1_1", "timm:vit_tiny_patch16_224", "mine:net"):
        base = ("compile", model, "--weights", "none", "--calib", "pictures", "--budget", "0.5", "--out", "out")
        assert "one a channel (3), got 2" in complaint(*base, "--std", "1,1")
        assert "one a channel (1), got 3" in complaint(*base, "--channels", "1", "--mean", "0,0,0")
        assert "numbers above 0" in complaint(*base, "--std", "1,1,nan")
    transform = transform_of(made(nn.Identity(), "torchvision", "resnet18"), Preparation(mean=(0.5,), std=(1.0,)))
    assert transform(Image.new("RGB", (9, 9))).unique().tolist() == [-0.5]


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
    (here / "data.parquet").write_bytes(b"junk")
    for name, words in (
        ("uneven.npz", "as many samples in each array, got x 4, labels 3"),
        ("objects.npz", "numpy.savez"),
        ("labels.npz", "no arrays for the model's inputs"),
        ("nan.npz", "NaN"),
        ("deep.npz", "[4, 5, 8, 8]"),
        ("words.npz", "expected numbers"),
        ("junk.npz", "numpy.savez"),
        ("nowhere.npz", "no such file"),
        ("data.parquet", "this kind of file is not read"),
        ("random:4,three", "expected random:SHAPE"),
        ("random:0x3x8x8", "a size is 0"),
        ("mine:nothing", "mine has no 'nothing'"),
        ("mine:generator", "generator"),
        ("mine:number", "expected a DataLoader"),
        ("nowhere/images", "no such file or folder"),
    ):
        assert words in complaint("compile", "mine:net", "--calib", name, "--budget", "0.5", "--out", "out"), name
    said = complaint("compile", "mine:Two", "--calib", "named.npz", "--budget", "0.5", "--out", "out")
    assert "'secnd' is no argument of the model" in said and "did you mean second" in said
    assert not (here / "exploded").exists()
    (here / "some.txt").write_text("one\n")
    assert "transformers" in complaint("compile", "mine:net", "--calib", "some.txt", "--budget", "0.5", "--out", "out")


def no_work(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a place that cannot be written is found before any work is done")


def test_places_that_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxprune, "compile", no_work)
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("x")
    argv = ("compile", *TINY, "--budget", "0.5")
    assert "notes.txt" in complaint(*argv, "--out", "full")
    assert "got a file" in complaint(*argv, "--out", "mine.py")
    assert "mine.py" in complaint(*argv, "--out", "mine.py/out")
    assert "got a directory" in complaint(*argv, "--plan", "full")
    if sys.platform == "linux":
        assert "/proc" in complaint(*argv, "--out", "/proc/fxprune/out")


def test_directories_that_hold_no_pruned_model(here: Path) -> None:
    for command in (("report",), ("bench",), ("export", "x.onnx"), ("finetune", "--data", "mine:loader", "--out", "o")):
        name, rest = command[0], command[1:]
        for directory in ("nowhere", "pictures"):
            assert "manifest.json is missing" in complaint(name, directory, *rest)
    done("compile", *TINY, "--budget", "0.6", "--out", "out", "-q")
    report = here / "out" / "report.json"
    report.write_text(report.read_text().replace('"verified": true', '"verified": null'))
    assert "its checksum does not match" in complaint("report", "out")
    assert "its checksum does not match" in complaint("export", "out", "x.pt2")


# -- exit codes, help, and errors of fxprune itself ---------------------------------------------------------------


@pytest.mark.parametrize(
    "argv",
    [
        ["prune"], ["demo", "--budget", "half"], ["demo", "more"], ["compile"], ["compile", "mine:net"],
        ["compile", *TINY, "--budget", "0.5"], ["compile", *TINY, "--params", "half", "--out", "o"],
        ["compile", *TINY, "--arg", "width", "--out", "o"], ["bench", "o", "--batch-sizes", "1,two"],
        ["compile", *TINY, "--mean", "a,b", "--out", "o"], ["apply", "plan.json", "--out", "o"],
    ],
)  # fmt: skip
def test_a_wrong_usage(argv: list[str]) -> None:
    found = run(*argv)
    assert found.exit_code == 2 and found.stderr.startswith("Usage: fxprune") and "Error: " in found.stderr


def test_exit_codes_of_the_program_itself(tmp_path: Path) -> None:
    def called(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fxprune.cli", *argv], capture_output=True, text=True, cwd=tmp_path
        )

    wrong = called("report", "nowhere")
    assert wrong.returncode == 1 and wrong.stdout == ""
    assert wrong.stderr.startswith("fxprune: error: ") and wrong.stderr.count("\n") == 1
    assert "nowhere: manifest.json is missing: expected a directory that" in wrong.stderr
    right = called("--version")
    assert (right.returncode, right.stdout, right.stderr) == (0, f"fxprune {fxprune.__version__}\n", "")


def test_the_console_script_is_the_program() -> None:
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'fxprune = "fxprune.cli:main"' in text and isinstance(main, click.Command)


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Result:
    def fail(**options: Any) -> None:
        raise error

    monkeypatch.setattr(demo, "run", fail)
    return run("demo")


def test_a_system_s_error_and_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    found = failing(monkeypatch, PermissionError(13, "Permission denied", "/there"))
    assert (found.exit_code, found.stderr) == (1, "fxprune: error: Permission denied: /there\n")
    found = failing(monkeypatch, KeyboardInterrupt())
    assert (found.exit_code, found.stderr) == (130, "fxprune: interrupted\n")


def test_a_fault_keeps_its_traceback_and_asks_to_be_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    found = failing(monkeypatch, ZeroDivisionError("by zero"))
    assert isinstance(found.exception, ZeroDivisionError) and found.exception.__notes__ == [HINT]
    with pytest.raises(ValueError) as caught:
        torch.distributions.Normal(torch.tensor(0.0), torch.tensor(-1.0), validate_args=True)
    assert not is_the_users(caught.value)
    with pytest.raises(ValueError) as caught:
        fxprune.compile(nn.Linear(2, 2), [torch.ones(2, 2)], 0.5, round_to=0)
    assert is_the_users(caught.value)


def test_a_message_of_several_lines_becomes_one() -> None:
    assert one_line(ValueError("the plan does not fit:\n  a: expected 3\n  b: expected 4\n")) == (
        "the plan does not fit: a: expected 3; b: expected 4"
    )
    assert one_line(KeyError()) == "KeyError" and one_line(OSError(2, "No such file", "x")) == "No such file: x"


def test_where_an_error_came_from_is_shown_on_demand() -> None:
    found = run("--traceback", "report", "nowhere")
    assert isinstance(found.exception, fxprune.FxpruneError) and found.stderr == ""


def test_other_libraries_warnings_stay_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(**options: Any) -> Any:
        warnings.warn("something old", DeprecationWarning, stacklevel=1)
        return type("Outcome", (), {"reloaded": True})

    monkeypatch.setattr(demo, "run", warn)
    monkeypatch.setattr(sys, "warnoptions", [])
    assert done("demo").stderr == ""


def test_fxprune_s_own_warnings_are_shown_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(**options: Any) -> Any:
        for text in ("first", "second", "first"):
            warnings.warn(text, FxpruneWarning, stacklevel=1)
        return type("Outcome", (), {"reloaded": True})

    monkeypatch.setattr(demo, "run", warn)
    assert done("demo").stderr == "fxprune: warning: first\nfxprune: warning: second\n"
    assert issubclass(fxprune.IgnoredPatternWarning, FxpruneWarning)


COMMANDS = sorted(main.commands)


def test_the_options_of_compile_are_those_of_the_package() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(fxprune.Options)}
    found = {parameter.name: parameter for parameter in main.commands["compile"].params}
    not_here = {"dynamic_shapes", "verify_dtype", "memory_limit"}
    assert defaults.keys() - found.keys() == {*not_here, "verify", "progress"}  # --no-verify and --quiet
    assert all(found[name].default == default for name, default in defaults.items() if name in found)
    texts = {name: " ".join(str(parameter.help).split()) for name, parameter in found.items() if name in defaults}
    assert "as a share of the mean variance" in texts["ridge"] and "``" not in "".join(texts.values())
    for name, names in (("method", MethodName), ("recover", RecoveryOption), ("units", UnitKind)):
        assert all(each in texts[name] for each in get_args(names))
    assert BACKENDS.replace(" or ", ", ") == ", ".join(get_args(BackendName))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_the_program_understands(name: str) -> None:
    command = main.commands[name]
    text = done(name, "--help").stdout
    examples = getattr(command, "examples", ())
    assert examples and all(f"  {line}\n" in text for line in examples)
    for line in examples:
        assert_parses(line.partition(" | ")[0])
    for parameter in command.params:
        assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None), parameter.name


def assert_parses(line: str) -> None:
    """Makes sure that a line names a command and only options that it has."""
    program, name, *rest = shlex.split(line)
    assert program == "fxprune"
    main.commands[name].make_context(name, rest)  # raises where it does not parse


def test_the_guide_s_commands_parse_and_name_every_command() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.startswith("fxprune")]
    for line in lines:
        assert_parses(line.partition(" | ")[0].partition(" #")[0])
    assert {shlex.split(line)[1] for line in lines} == set(COMMANDS)


def test_help_and_version() -> None:
    assert done("--version").stdout == f"fxprune {fxprune.__version__}\n"
    text = done("--help").stdout
    assert all(re.search(rf"^  {name} ", text, re.MULTILINE) for name in COMMANDS)
    assert len(main.examples) == 3 and all(f"\n  {line}\n" in text for line in main.examples) and "\\b" not in text
    for line in main.examples:
        assert_parses(line)
    assert "[default: 0.25]" in done("demo", "-h").stdout


# -- the demo -----------------------------------------------------------------------------------------------------


FLAGS = ["demo", "--seed", "3", "--budget", "0.5", "--method", "l1", "--out", "there"]


def no_training(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("an unusable argument is found before anything is trained")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch, here: Path) -> Path:
    monkeypatch.setattr(demo, "finetune", no_training)
    return here


def test_an_impossible_budget(untrained: Path) -> None:
    assert "must lie in (0, 1]" in complaint("demo", "--budget", "2")


def test_an_unknown_method_lists_the_known_ones(untrained: Path) -> None:
    found = complaint("demo", "--method", "guess")
    assert "'guess'" in found and "variance" in found


def test_a_directory_with_other_files(untrained: Path) -> None:
    (untrained / "notes.txt").write_text("x")
    assert "notes.txt" in complaint("demo", "--out", str(untrained))


@pytest.mark.parametrize("package", ["sklearn.datasets", "accelerate"])
def test_a_missing_extra(untrained: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert f"the demo needs {package}" in (found := complaint("demo"))
    assert "pip install 'fxprune[demo]'" in found


def test_the_flags_reach_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Differs:
        reloaded = False

    monkeypatch.setattr(demo, "run", lambda **options: seen.update(options) or Differs())
    assert run(*FLAGS).exit_code == 1
    assert seen == {"seed": 3, "budget": 0.5, "method": "l1", "out": "there"}


def test_the_digits_are_real_and_split_by_seed() -> None:
    digits, again, other = (demo.load_digits(seed) for seed in (0, 0, 1))
    assert [len(part[1]) for part in (digits.train, digits.test)] == [1347, 450]
    assert digits.train[0].shape[1:] == (1, 8, 8) and digits.train[0].abs().max() == 1
    assert torch.equal(digits.test[0], again.test[0]) and not torch.equal(digits.test[1], other.test[1])
    assert torch.cat([digits.train[1], digits.test[1]]).unique().tolist() == list(range(10))


def test_the_demo_s_network_is_the_same_for_the_same_seed() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second = (demo.make_model(seed=7, width=4).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_demo_with_a_short_training(tmp_path: Path) -> None:
    lines: list[str] = []
    outcome = demo.run(seed=1, epochs=4, out=tmp_path / "digits", say=lines.append)
    before, after = outcome.report.params
    assert outcome.report.verified is True and after <= before / 4
    assert outcome.reloaded and sorted(outcome.latency_ms) == [1, 64]
    dense, _, tuned = outcome.accuracy
    assert dense > 95 and tuned > 93
    printed = "\n".join(lines)
    assert str(outcome.report) in printed and "pruned, fine-tuned" in printed and "outputs equal" in printed
    again = fxprune.load(tmp_path / "digits", demo.make_model())
    assert demo.accuracy(again, demo.load_digits(1).test) == tuned


def test_one_thread_is_given_back() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads_set(1):
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
