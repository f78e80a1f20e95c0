"""A stranger's file: whatever it names, loading and calling it writes out of no bounds, changes no flag, and comes to an end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune
from fxprune._base.errors import PlanError
from tests.models.stored import images, small
from tests.support.artifacts import reseal
from tests.support.strangers import HARMLESS, state

Row = list[Any]
X = {"node": "input_1"}
LONG = {"dtype": {"dtype": "int64"}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small perceptron, whose graph is one input and three calls."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    directory = tmp_path_factory.mktemp("plain") / "out"
    fxprune.save(fxprune.compile(net, [torch.randn(4, 6)], 0.5, recover=None, progress=False), directory)
    return directory


def call(name: str, op: str, *args: Any, **kwargs: Any) -> Row:
    return ["call_function", name, op, list(args), kwargs]


def node(name: str) -> dict[str, str]:
    return {"node": name}


def evil(plain: Path, directory: Path, *rows: Row) -> Path:
    """Returns a copy whose graph runs these rows and returns the last one's result."""
    shutil.copytree(plain, directory)
    graph = json.loads((directory / "graph.json").read_text())
    given = graph["nodes"][0]
    renamed = json.loads(json.dumps(rows).replace('"input_1"', json.dumps(given[1])))
    graph["nodes"] = [given, *renamed, ["output", "output", "output", [{"tuple": [node(renamed[-1][1])]}], {}]]
    (directory / "graph.json").write_text(json.dumps(graph))
    reseal(directory)
    return directory


ATTACKS: dict[str, tuple[list[Row], str]] = {
    "an unchecked sparse tensor": (
        [
            call("i", "aten::full.default", [1, 1], 500_000_000, **LONG),
            call("v", "aten::full.default", [1], 7.0),
            call("s", "aten::_sparse_coo_tensor_unsafe.default", node("i"), node("v"), [4]),
            call("d", "aten::_to_dense.default", node("s")),
        ],
        "may not be called from a file",
    ),
    "autograd off": ([call("e", "aten::set_grad_enabled.default", False)], "may not be called"),
    "the seed": ([call("e", "aten::manual_seed.default", 1)], "may not be called|not registered"),
    "another storage": ([call("e", "aten::set_.source_Tensor", X, X)], "may not be called"),
    "a larger storage": ([call("e", "aten::resize_.default", X, [10**6])], "may not be called"),
    "a file": ([call("e", "aten::from_file.default", "/etc/passwd")], "may not be called"),
    "offsets of bags": ([call("e", "aten::_embedding_bag.default", X, X, X)], "may not be called"),
    "labels of a loss": ([call("e", "aten::ctc_loss.IntList", X, X, [5], [2])], "may not be called"),
    "lengths of segments": ([call("e", "aten::segment_reduce.default", X, "sum")], "may not be called"),
    "dimensions of a transform": ([call("e", "aten::_fft_c2c.default", X, [2**62], 0, True)], "may not be called"),
    "a polynomial of a great degree": (
        [call("e", "aten::special_chebyshev_polynomial_t.n_scalar", X, 10**12)],
        "may not be called",
    ),
    "a list of many": ([call("e", "aten::mul.left_t", [0], 10**12)], "may not be called"),
    "too few norms": (
        [call("g", "aten::full.default", [1], 1.0), call("e", "aten::_weight_norm.default", X, node("g"), 0)],
        "tensors of the model alone",
    ),
    "the smallest number over -1": (
        [
            call("a", "aten::full.default", [8], -(2**63), **LONG),
            call("b", "aten::full.default", [8], -1, **LONG),
            call("e", "aten::div.Tensor_mode", node("a"), node("b"), rounding_mode="trunc"),
        ],
        "a constant other than -1",
    ),
    "the input": ([call("e", "aten::add_.Tensor", X, 1.0)], "a value of the graph's own"),
    "a view of the input": (
        [call("v", "aten::slice.Tensor", X, 0, 0, 1), call("e", "aten::fill_.Scalar", node("v"), 1.0)],
        "a value of the graph's own",
    ),
    "a huge tensor": ([call("e", "aten::full.default", [10**12], 1.0)], r"'e'.*(expected at most|it fails)"),
    "a size beyond int64": ([call("e", "aten::full.default", [2**40, 2**40], 1.0)], "'e'"),
    "nothing, a billion times": ([call("e", "aten::adaptive_avg_pool2d.default", X, [2**32, 0])], "'e'"),
    "repeats of repeats": (
        [
            call("a", "aten::repeat.default", X, [1000, 1000]),
            call("e", "aten::repeat.default", node("a"), [1000, 1000]),
        ],
        "'e'.*expected at most",
    ),
    "a tower of products": (
        [call("s", "aten::sym_size.int", X, 0), call("p0", "operator.mul", node("s"), node("s"))]
        + [call(f"p{i + 1}", "operator.mul", node(f"p{i}"), node(f"p{i}")) for i in range(60)],
        "a product that may have",
    ),
    "a power of a power": (
        [call("s", "aten::sym_size.int", X, 0), call("e", "operator.pow", 10, node("s"))],
        "a constant exponent",
    ),
    "a shift without end": ([call("e", "operator.lshift", 1, 10**12)], "a constant exponent"),
    "a text of many digits": ([call("e", "operator.mod", "%1000000000d", 5)], "expected numbers"),
    "a list times a number": ([call("e", "operator.mul", [0], 10**12)], "expected numbers"),
    "many small parts": (
        [call("a", "aten::full.default", [2**24], 1.0), call("e", "aten::split.Tensor", node("a"), 1)],
        "expected at most 65536 results",
    ),
    "a size that a value tells": ([call("e", "aten::one_hot.default", X)], "'e'"),
    "products without end": (
        [call("m0", "aten::full.default", [8192, 8192], 1.0)]
        + [call(f"m{i + 1}", "aten::mm.default", node(f"m{i}"), node("m0")) for i in range(40)],
        "expected at most .* operations",
    ),
    "windows as large as what they slide over": (
        [
            call("a", "aten::full.default", [1, 8000, 8000], 1.0),
            call("e", "aten::avg_pool2d.default", node("a"), [4000, 4000], [1, 1]),
        ],
        "expected at most .* operations",
    ),
    "a strange type": ([call("e", "aten::zeros.default", [1], dtype={"dtype": "quint8"})], "a dtype of plain numbers"),
    "a number in the place of a type": (
        [call("e", "aten::empty_like.default", X, dtype=-7, memory_format=100_000)],
        "expected a dtype",
    ),
    "a strange layout": ([call("e", "aten::zeros.default", [1], layout={"layout": "sparse_coo"})], "a dense layout"),
    "a strange device": ([call("e", "aten::zeros.default", [1], device={"device": "lazy"})], "one of the devices"),
    "a size read of a value": (
        [
            call("v", "aten::select.int", X, 0, 0),
            call("n", "aten::sum.default", node("v")),
            call("i", "aten::item.default", node("n")),
            call("e", "aten::arange.default", node("i")),
        ],
        "a value, of which no size is made",
    ),
    "a size made of a value": (
        [
            call("n", "aten::sum.default", X),
            call("i", "aten::item.default", node("n")),
            call("j", "operator.mul", node("i"), 2),
            call("e", "aten::zeros.default", [node("j")]),
        ],
        "a value, of which no size is made",
    ),
    "a whole number read of a value": (
        [
            call("g", "aten::gt.Scalar", X, 0),
            call("n", "aten::sum.default", node("g")),
            call("i", "aten::item.default", node("n")),
            call("e", "aten::mul.Scalar", X, node("i")),
        ],
        "a tensor of one floating number",
    ),
    "what does not fit": ([call("e", "aten::mm.default", X, X)], "it fails at the size of the example"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused(plain: Path, tmp_path: Path, attack: str) -> None:
    rows, message = ATTACKS[attack]
    before = state()
    with pytest.raises(PlanError, match=message):
        fxprune.load(evil(plain, tmp_path / "out", *rows))
    assert state() == before


@pytest.mark.parametrize(
    "rows",
    [
        [call("a", "aten::zeros.default", [4]), call("e", "aten::fill_.Scalar", node("a"), 2.0)],
        [
            call("a", "aten::mul.Tensor", X, 2.0),
            call("v", "aten::select.int", node("a"), 0, 0),
            call("e", "aten::copy_.default", node("v"), node("v")),
        ],
        [
            call("s", "aten::sym_size.int", X, 0),
            call("d", "operator.mul", node("s"), 2),
            call("e", "aten::zeros.default", [node("d")]),
        ],
        [call("m", "aten::gt.Scalar", X, 0), call("e", "aten::index.Tensor", X, [node("m")])],
        [call("e", "aten::div.Tensor_mode", X, X, rounding_mode="trunc")],
        [
            call("n", "aten::sum.default", X),
            call("i", "aten::item.default", node("n")),
            call("e", "aten::full.default", [3], node("i")),
        ],
    ],
)
def test_what_is_sound_loads_and_runs(plain: Path, tmp_path: Path, rows: list[Row]) -> None:
    fxprune.load(evil(plain, tmp_path / "out", *rows))(torch.ones(2, 6))


def test_files_changed_at_random_do_no_harm(tmp_path: Path) -> None:
    fxprune.save(fxprune.compile(small().eval(), [images(2, 6)], 0.7, recover=None, progress=False), tmp_path / "out")
    command = [sys.executable, "-m", "tests.support.strangers", "small"]
    command += [str(tmp_path / "out"), str(tmp_path / "changed"), "0", "150"]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=root, env={**os.environ, "PYTHONPATH": root}
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"{lines[-1:]}: ended with {done.returncode}: {done.stderr[-500:]}"
    found = [json.loads(line) for line in lines[1::2]]
    assert [entry for entry in found if entry[0] not in HARMLESS] == []
    counts = Counter(outcome for outcome, _ in found)
    assert counts["refused"] > 75 and counts["ran"] > 5
