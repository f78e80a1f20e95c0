"""Results that say what they are: types for a checker, attributes on the module, and a repr that fits on a screen."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxprune

ROOT = Path(fxprune.__file__).parent.parent


class Planner(nn.Module):
    """Has parts that are called like what a pruned model says of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.plan, self.report = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.report(self.plan(x).relu())


def deep() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 6) for _ in range(40)]
    for layer in layers:
        nn.init.orthogonal_(layer.weight, 1.5)
    return nn.Sequential(*[one for layer in layers for one in (layer, nn.Tanh())]).eval()


@pytest.fixture(scope="module")
def pruned() -> fxprune.PrunedModule:
    return fxprune.compile(deep(), [torch.randn(5, 6)], 0.7, recover=None, progress=False)


def test_the_module_says_what_was_done(pruned: fxprune.PrunedModule, tmp_path: Path) -> None:
    fxprune.save(pruned, tmp_path / "a")
    again = fxprune.load(tmp_path / "a")
    applied = fxprune.apply(deep(), pruned.plan)
    for module in (pruned, copy.deepcopy(pruned), copy.copy(pruned), pickle.loads(pickle.dumps(pruned)), again):
        assert module.report.to_dict() == fxprune.report(module).to_dict() == pruned.report.to_dict()
        assert module.plan.to_json() == pruned.plan.to_json()
        assert module.certificate == pruned.report.certificate and module.certificate.verified
    assert applied.plan == pruned.plan and applied.certificate is None
    assert fxprune.report(applied) is applied.report


def test_parts_of_the_same_name_come_first() -> None:
    pruned = fxprune.compile(Planner().eval(), [torch.randn(5, 4)], 0.7, progress=False)
    for module in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert isinstance(module.plan, nn.Linear) and isinstance(module.report, nn.Linear)
        assert fxprune.report(module).plan is not None and module.certificate is not None
        module(torch.randn(2, 4))


def test_a_doubt_is_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0)).eval()
    nn.init.zeros_(model[2].weight)
    pruned = fxprune.compile(model, [torch.randn(5, 4)], 0.7, recover=None, progress=False)
    assert pruned.certificate is not None and pruned.certificate.verified is None and pruned.certificate.note
    fxprune.save(pruned, tmp_path / "a")
    assert fxprune.load(tmp_path / "a").certificate == pruned.certificate


class Counter(HTMLParser):
    """Counts rows, and makes sure that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows, self.open = 0, []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.rows += tag == "tr"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_repr_fits_on_a_screen(pruned: fxprune.PrunedModule) -> None:
    captured = fxprune.capture(deep(), (torch.randn(5, 6),))
    coupling = fxprune.couple(captured)
    for thing in (pruned.report, pruned.plan, coupling, captured):
        text = repr(thing)
        assert text.startswith(f"fxprune.{type(thing).__name__}") and len(text.splitlines()) <= 25
        assert all(len(line) <= 200 for line in text.splitlines())
        assert 0 <= Counter(thing._repr_html_()).rows <= 27
    assert "more ..." in repr(coupling) and "5?" in repr(captured)
    assert len(repr(fxprune.Selection.nothing(coupling))) < 200


def test_names_are_text_in_html() -> None:
    model = nn.Sequential()
    model.add_module("<script>", nn.Linear(4, 8))
    model.add_module("out", nn.Linear(8, 2))
    coupling = fxprune.couple(fxprune.capture(model.eval(), (torch.randn(5, 4),)))
    assert "&lt;script&gt;" in coupling._repr_html_() and "<script>" not in coupling._repr_html_()


@pytest.mark.slow
def test_a_type_checker_knows_them(tmp_path: Path) -> None:
    mypy = pytest.importorskip("mypy")
    del mypy
    source = tmp_path / "use.py"
    source.write_text(
        """
import fxprune
from torch import nn

pruned = fxprune.compile(nn.Linear(2, 2), [], 0.5)
reveal_type(pruned)
reveal_type(pruned.report)
reveal_type(pruned.plan)
reveal_type(pruned.certificate)
reveal_type(fxprune.load("x"))
reveal_type(fxprune.apply(nn.Linear(2, 2), pruned.plan))
reveal_type(fxprune.apply(pruned.plan, "in", "out"))
reveal_type(fxprune.report(pruned).params)
fxprune.compile(nn.Linear(2, 2), [], 0.5, units="chanel")
"""
    )
    found = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--no-error-summary",
            "--config-file",
            str(ROOT / "pyproject.toml"),
            str(source),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,  # where the cache of earlier runs is
        env={"PATH": "", "HOME": str(tmp_path)},
    )
    types = [line.split('"')[1] for line in found.stdout.splitlines() if "Revealed type" in line]
    assert [name.rpartition(".")[2] for name in types[:2]] == ["PrunedModule", "Report"]
    assert types[2].endswith("Plan") and "Certificate" in types[3] and types[3] != types[2]
    assert types[4].endswith("PrunedModule") and types[5].endswith("PrunedModule") and types[6].endswith("Shards")
    assert "int" in types[7] and "units" in found.stdout
