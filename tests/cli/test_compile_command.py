"""`fxprune compile`: from data to a verified model, and what it says to a wrong input."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import fxprune
from fxprune.cli.errors import in_options
from fxprune.runtimes import registry
from fxprune.scoring import scorer
from tests.support.cli import TINY, complaint, done, listing, misuse

# -- what the commands do -----------------------------------------------------------------------------------------


def test_from_images_to_a_verified_model_and_its_report(here: Path) -> None:
    argv = ("compile", "mine:net", "--calib", "pictures", "--image-size", "8", "--budget", "0.6", "--method", "taylor")
    found = done(*argv, "--out", "out", "--plan", "plan.json")
    assert (
        "verified: the rewriting is exact: equal to the masked twin" in found.stdout
        and "saved: the model in out" in found.stdout
    )
    pruned = fxprune.load(here / "out")
    report = fxprune.report(pruned)
    assert report.verified is True and report.method == "taylor"
    assert report.params[1] == sum(p.numel() for p in pruned.parameters()) <= 0.6 * report.params[0]
    assert report.plan is not None and (here / "plan.json").read_text() == report.plan.to_json()
    assert done("report", "out").stdout == in_options(f"{report}\n")
    assert (
        report.fidelity is not None
        and f"fidelity: {report.fidelity.level}: " in found.stdout
        and "\x1b" not in found.stdout
    )
    assert json.loads(done("report", "out", "--json").stdout) == report.to_dict()
    assert report.notes[-1] == shlex.join(["fxprune", *argv, "--out", "out", "--plan", "plan.json"])


@pytest.mark.slow
def test_bounds_together_and_as_json(here: Path) -> None:
    found = done("compile", *TINY, "--params", "80%", "--macs", "0.5", "--out", "out", "--json", "--quiet")
    data = json.loads(found.stdout)
    assert data["params"][1] <= 0.8 * data["params"][0] and data["macs"][1] <= 0.5 * data["macs"][0]
    absolute = done("compile", *TINY, "--macs", str(data["macs"][1]), "--dry-run", "--json")
    assert json.loads(absolute.stdout)["macs"][1] <= data["macs"][1]


def test_what_is_not_recovered_is_not_judged_and_what_is_held_out_can_be_told() -> None:
    dry = done("compile", *TINY, "--budget", "0.6", "--dry-run")
    assert "fidelity: not measured: nothing is recovered where only a plan is made\n" in dry.stdout
    argv = ("compile", *TINY, "--budget", "0.6", "--out", "out", "--json")
    for share, data in (("0.5", "held out"), ("0", "seen")):
        found = json.loads(done(*argv, "--holdout", share).stdout)["fidelity"]
        assert found["data"] == data and found["samples"] == 4 and found["level"] in ("good", "fair", "poor")


def test_shares_in_per_cent_and_bounds_by_name() -> None:
    def sizes(*budget: str) -> tuple[Any, Any]:
        argv = ("compile", *TINY, "--method", "l2", *budget, "--dry-run", "--json")
        data = json.loads(done(*argv).stdout)
        return data["params"], data["macs"]

    assert sizes("--budget", "0.6") == sizes("--budget", "60%") == sizes("--budget", "params=60%")
    both = sizes("--budget", "params=80%,macs=60%")
    assert both == sizes("--params", "0.8", "--macs", "0.6") == sizes("--budget", "params=80%", "--macs", "60%")
    assert sizes("--ratio", "50%") == sizes("--ratio", "0.5")


PLUG = """
import fxprune
from mine import loader, net


class ByIndex(fxprune.Scorer):
    name, needs, per_cost = "byindex", (), False

    def score(self, context):
        return {group.name: 1.0 + torch.arange(len(group.units)) for group in context.coupling.groups}


class Mine:
    name, fuses, devices, peak_on = "mine_rt", False, (), ()

    def runner(self, model, args, kwargs, setting):
        return lambda: model(*args, **kwargs)


import torch
"""


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered meanwhile is gone afterwards."""
    for module, table in ((scorer, "_SCORERS"), (registry, "_RUNTIMES")):
        monkeypatch.setattr(module, table, dict(getattr(module, table)))


@pytest.mark.parametrize("argv", [("plug:net", "--calib", "mine:loader"), ("mine:net", "--calib", "plug:loader")])
def test_what_the_model_s_or_the_loader_s_module_registers(here: Path, registries: None, argv: tuple[str, ...]) -> None:
    (here / "plug.py").write_text(
        f"{PLUG}\nfxprune.register_scorer('byindex', ByIndex)\nfxprune.register_runtime(Mine())"
    )
    sys.modules.pop("plug", None)
    own = ("--budget", "0.6", "--latency-ms", "1000", "--method", "byindex", "--latency-backend", "mine_rt")
    data = json.loads(done("compile", *argv, *own, "--dry-run", "--json").stdout)
    assert data["method"] == "byindex" and data["latency"]["backend"] == "mine_rt"


def test_ratios_by_pattern(here: Path) -> None:
    argv = ("--ratio", "0=0.5", "--ratio", "default=0", "--recover", "none", "--no-verify")
    data = json.loads(done("compile", *TINY, *argv, "--dry-run", "--json").stdout)
    assert [(row[0], row[3], row[4]) for row in data["groups"]] == [("0", 8, 4), ("3", 8, 8)]


def test_a_budget_of_some_layers(here: Path) -> None:
    for own in (("--budget", "0.6"), ("--params", "60%")):
        argv = (*own, "--of", "3", "--recover", "none", "--no-verify", "--dry-run", "--json")
        data = json.loads(done("compile", *TINY, *argv).stdout)
        assert any(note.startswith("the budget counts 3: ") for note in data["notes"])


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
    assert (
        "warning: mine:net: the weights are as the factory makes them" in found.stderr
        and "this is noise" in found.stderr
    )
    others = [line for line in found.stderr.splitlines() if not re.fullmatch(r"fxprune: \w+: \d+\.\d s", line)]
    assert len(others) == 3  # and what is compiled


@pytest.mark.parametrize("argv", [("--budget", "0.6", "--ignore", "head*"), ("--ratio", "head*=0.5")])
def test_a_pattern_that_matches_nothing_is_an_error_in_one_line(here: Path, argv: tuple[str, ...]) -> None:
    said = complaint("compile", *TINY, "--weights", "none", *argv, "--dry-run")
    assert re.search(r"pattern 'head\*' matches no (layer|group); there are 0", said)


def test_a_plan_without_weights(here: Path) -> None:
    argv = ("--meta", "--method", "random", "--budget", "0.6")
    assert "leave --out out" in misuse("compile", *TINY, *argv, "--out", "out")
    assert "meta device" in complaint("compile", *TINY, "--meta", "--budget", "0.6", "--plan", "plan.json")
    done("compile", *TINY, *argv, "--plan", "plan.json")
    plan = fxprune.Plan.from_json((here / "plan.json").read_text())
    assert plan.after["params"] <= 0.6 * plan.before["params"]


# -- wrong input --------------------------------------------------------------------------------------------------


def no_work(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("this is found before any work is done")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--budget", "2"), "(0, 1]"),
        (("--budget", "0"), "(0, 1]"),
        (
            ("--budget", "50"),
            "expected a share in (0, 1], such as 0.5 or 50%, got '50'; for a number of parameters use params=",
        ),
        (("--budget", "0.5", "--ratio", "0.5"), "--budget and --ratio: give either"),
        (("--budget", "0.5", "--params", "0.5"), "give one of them"),
        (("--ratio", "0=1.5"), "[0, 1]"),
        (("--ratio", "half"), "PATTERN=SHARE"),
        (("--macs", "1.5"), "(0, 1]"),
        (("--budget", "0.5", "--latency-batch", "4"), "latency"),
        (("--budget", "0.5", "--method", "varience"), "; did you mean variance?"),
        (("--budget", "0.5", "--recover", "covarience"), "; did you mean covariance"),
        (("--budget", "0.5", "--round-to", "0"), "round_to"),
        (("--budget", "0.5", "--round-to", "x"), "expected a whole number, auto or measure"),
        (("--budget", "0.5", "--ridge", "x"), "--ridge x: expected a number or auto"),
        (("--budget", "0.5", "--min-keep", "-1"), "min_keep"),
        (("--budget", "0.5", "--units", "chanel"), "; did you mean channel?"),
        (("--budget", "0.5", "--ridge", "0"), "ridge"),
        (("--budget", "0.5", "--steps", "0"), "steps"),
        (("--budget", "0.5", "--loss", "mine:nothing"), "no 'nothing'"),
        (("--budget", "0.5", "--device", "toaster"), "--device toaster"),
        (("--budget", "0.5", "--device", "cdua"), "; did you mean cuda"),
        (("--budget", "0.5", "--form", "modul"), "; did you mean module?"),
        (("--budget", "0.5", "--latency", "0.5", "--latency-backend", "onnx"), "; did you mean onnxruntime?"),
        (("--budget", "0.5", "--weights", "no.pt"), "--weights no.pt: no such file"),
        (("--budget", "0.5", "--cache-dir", "mine.py/cache"), "mine.py/cache: it cannot be written"),
        (("--budget", "0.5", "--plan", ""), "expected a name, got an empty one"),
        (("--budget", "150%"), "got '150%'"),
        (("--budget", "abc"), "got 'abc'"),
        (("--budget", "nan"), "got 'nan'"),
        (("--budget", "parms=50%"), "got 'parms=50%'; did you mean params?"),
        (("--budget", "params=50%,params=40%"), "params is bounded twice"),
        (("--budget", "macs=60%", "--macs", "0.5"), "--budget bounds macs, and so does --macs"),
        (("--budget", "0.5", "--budget", "0.6"), "'--budget' is given twice"),
        (("--budget", "0.5", "--config", "a=1"), "--arg"),
    ],
)
def test_a_wrong_word_is_found_before_the_model_is_made(
    monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], words: str
) -> None:
    monkeypatch.setattr(nn.Conv2d, "__init__", no_work)
    assert words in misuse("compile", *TINY, "--out", "out", *argv)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--budget", "0.01"), "the smallest is"),
        (("--budget", "0.5", "--basis", "pca"), "no channels can be given in another basis"),
        (("--budget", "0.5", "--ignore", "*"), "ignore"),
        (("--budget", "0.5", "--arg", "depth=3"), "depth"),
    ],
)
def test_what_only_the_model_can_tell(argv: tuple[str, ...], words: str) -> None:
    assert words in complaint("compile", *TINY, "--out", "out", *argv)


def test_places_that_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fxprune, "compile", no_work)
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("x")
    argv = ("compile", *TINY, "--budget", "0.5")
    assert "notes.txt" in misuse(*argv, "--out", "full")
    assert "got a file" in misuse(*argv, "--out", "mine.py")
    assert "mine.py" in misuse(*argv, "--out", "mine.py/out")
    assert "got a directory" in misuse(*argv, "--plan", "full")
    if sys.platform == "linux":
        assert "/proc" in misuse(*argv, "--out", "/proc/fxprune/out")
