"""`fxprune compile --stream`: from files of weights to a model in a directory, the same as without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.cli import TINY, complaint, done, misuse

transformers = pytest.importorskip("transformers")


@pytest.fixture
def lm(here: Path) -> Path:
    """A language model in two files of weights."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=40
    )
    transformers.LlamaForCausalLM(config).eval().save_pretrained(here / "lm", max_shard_size="12KB")
    assert len(list((here / "lm").glob("*.safetensors"))) > 1
    return here


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("model*.safetensors") for name, tensor in load_file(path).items()}


def test_it_is_what_comes_of_it_in_memory(lm: Path) -> None:
    data = ("--calib", "random:8x12:40", "--budget", "0.7", "--quiet", "--seed", "0")
    done("compile", "transformers:./lm", "--weights", "DEFAULT", *data, "--out", "here")
    found = done("compile", "transformers:./lm", "--stream", *data, "--out", "there", "--json")
    assert json.loads(found.stdout)["verified"] is True
    here, there = weights(lm / "here"), weights(lm / "there")
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
    assert done("report", "there").stdout.splitlines()[0] == done("report", "here").stdout.splitlines()[0]
    folder = done("compile", "transformers:./lm", "--stream", "--weights", "lm", *data, "--out", "again", "--json")
    assert json.loads(folder.stdout)["params"] == json.loads(found.stdout)["params"]


def test_processes_of_torchrun_share_the_work(here: Path) -> None:
    plan = ("--weights", "none", "--budget", "0.7", "--plan")
    done("compile", *TINY, *plan, "alone.json")
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fxprune"]
    argv += ["compile", *TINY, *plan, "together.json", "--out", "out"]
    found = subprocess.run(
        argv, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("saved: the model in out, the plan in together.json") == 1
    assert (here / "together.json").read_text() == (here / "alone.json").read_text()
    wrong = subprocess.run([*argv, "--method", "vbp"], capture_output=True, text=True, timeout=300)
    assert wrong.returncode != 0 and "expects hidden units of an MLP" in wrong.stderr


def test_a_factory_and_a_file(here: Path) -> None:
    from mine import net  # type: ignore[import-not-found]

    save_file(net().state_dict(), "net.safetensors")
    done("compile", *TINY, "--stream", "--weights", "net.safetensors", "--budget", "0.7", "--out", "out")
    assert (here / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--stream", "--weights", "lm", "--plan", "plan.json"), "give --out"),
        (("--stream", "--weights", "lm", "--out", "out", "--dry-run"), "leave --meta and --dry-run out"),
        (("--stream", "--out", "out"), "expected --weights FILE"),
        (("--stream", "--weights", "none", "--out", "out"), "no safetensors files"),
        (("--stream", "--weights", "weights.pt", "--out", "out"), "no safetensors files at weights.pt"),
        (("--stream", "--weights", "nowhere/*.safetensors", "--out", "out"), "no safetensors files at nowhere"),
    ],
)
def test_what_cannot_be_streamed(here: Path, argv: tuple[str, ...], words: str) -> None:
    assert words in misuse("compile", *TINY, "--budget", "0.7", *argv)


def test_a_method_that_cannot_be_streamed(here: Path) -> None:
    from mine import net

    save_file(net().state_dict(), "net.safetensors")
    argv = ("--stream", "--weights", "net.safetensors", "--out", "out", "--method", "taylor")
    assert "needs gradients" in complaint("compile", *TINY, "--budget", "0.7", *argv)
