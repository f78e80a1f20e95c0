"""`fxprune apply`: a plan for a model, and for files."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import fxprune
from tests.support.cli import complaint, done, misuse


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
    assert "choose a new or empty directory" in misuse("apply", "out", "w.safetensors", "--out", "files")
    assert "expected [8" in complaint("apply", "out", "mine:net", "--arg", "width=4", "--out", "other")
    (here / "bad.json").write_text((here / "out" / "plan.json").read_text().replace("random", "chance"))
    assert "checksum" in complaint("apply", "bad.json", "mine:net", "--out", "other")
    assert "no.json: there is no such file" in misuse("apply", "no.json", "mine:net", "--out", "other")
    assert "no/*.safetensors: there are no such files" in misuse("apply", "out", "no/*.safetensors", "--out", "other")


def test_what_was_done_as_json(here: Path) -> None:
    import mine

    (here / "in").mkdir()
    save_file(mine.net().state_dict(), here / "in" / "w.safetensors")
    data = ("--calib", "mine:batches", "--budget", "0.6", "--method", "random", "--recover", "none")
    done("compile", "mine:net", "--weights", "none", *data, "--out", "out")
    found = json.loads(done("apply", "out", "in", "--out", "cut", "--json").stdout)
    assert found == {"files": ["cut/w.safetensors"], "dropped": ["1.num_batches_tracked"]}
    found = json.loads(done("apply", "out", "mine:net", "--out", "again", "--json").stdout)
    assert found == fxprune.report(fxprune.load(here / "again")).to_dict()
