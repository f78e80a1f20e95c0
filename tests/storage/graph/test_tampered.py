"""A graph that was tampered with gives an error, and nothing of it is executed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fxprune
from fxprune._base.errors import PlanError
from fxprune.storage.graph import layers
from tests.support.artifacts import EVIL, reseal, watched


def tampered(intact: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    directory = tmp_path / "out"
    shutil.copytree(intact, directory)
    graph = json.loads((directory / "graph.json").read_text())
    change(graph)
    (directory / "graph.json").write_text(json.dumps(graph))
    reseal(directory)
    return directory


def node(graph: dict[str, Any], op: str) -> list[Any]:
    return next(row for row in graph["nodes"] if row[0] == op)


def tensor(graph: dict[str, Any], name: str) -> dict[str, Any]:
    return next(facts for known, facts in graph["tensors"] if known == name)


def layer(graph: dict[str, Any], path: str) -> list[Any]:
    return next(row for row in graph["modules"] if row[0] == path)


def laugh(graph: dict[str, Any]) -> None:
    """Has forty modules hold the next one twice."""
    for i in range(40):
        graph["modules"].append([f"l{i}", "Module", {}])
        if i:
            graph["modules"] += [[f"l{i}.a", "same", f"l{i - 1}"], [f"l{i}.b", "same", f"l{i - 1}"]]


TAMPERED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda g: g.update(schema=2), "graph.json: format 2 is not one .* upgrade"),
    (lambda g: g.update(schema=0), "schema: expected one of 1"),
    (lambda g: g.update(format="x"), "it is no fxprune graph"),
    (lambda g: g.update(more=1), "unknown entries"),
    (lambda g: g.update(name="x y"), "name: expected a Python name"),
    (lambda g: g.update(nodes=[]), "expected an output at the end"),
    (lambda g: node(g, "call_function").__setitem__(2, "os.system"), "expected an operator"),
    (lambda g: node(g, "call_function").__setitem__(2, "builtins.eval"), "expected an operator"),
    (lambda g: node(g, "call_function").__setitem__(0, "call_method"), "expected one of placeholder"),
    (lambda g: node(g, "call_function").__setitem__(4, {"x=1)#": 1}), "expected a Python name"),
    (lambda g: node(g, "call_function").__setitem__(4, {"strange": 1}), "arguments are not those of"),
    (lambda g: node(g, "call_function").__setitem__(1, "self"), "leaves free"),
    (lambda g: node(g, "call_function").__setitem__(1, "torch"), "not free as a name"),
    (lambda g: node(g, "call_function").__setitem__(1, "a = 1; b"), "expected a Python name"),
    (lambda g: node(g, "call_module").__setitem__(2, EVIL), "there is no module"),
    (lambda g: node(g, "call_module").__setitem__(2, "forward"), "there is no module"),
    (lambda g: node(g, "call_module").__setitem__(2, ""), "there is no module"),
    (lambda g: node(g, "get_attr").__setitem__(2, "__class__"), "there is no tensor"),
    (lambda g: node(g, "placeholder").__setitem__(2, "x = print()"), "expected a Python name"),
    (lambda g: node(g, "placeholder").__setitem__(2, "y"), "the inputs are not those of the call"),
    (lambda g: node(g, "output").__setitem__(3, [[]]), "expected 2 outputs, got 0"),
    (lambda g: g["nodes"].append(g["nodes"][-1]), "a node after the output"),
    (lambda g: g["nodes"].insert(0, g["nodes"][3]), "there is no"),
    (lambda g: g["nodes"].insert(1, g["nodes"][0]), "not free as a name"),
    (lambda g: g["call"]["parameters"][0].update(name="x, y=print()"), "expected a Python name"),
    (lambda g: g["call"]["parameters"][0].update(name="self"), "leaves free"),
    (lambda g: g["call"]["parameters"][0].update(name="lambda"), "expected a Python name"),
    (lambda g: g["call"]["parameters"].append(g["call"]["parameters"][0]), "parameters: it cannot be made"),
    (lambda g: g["call"].update(arguments=None), "expected a dict of the signature"),
    (lambda g: g["call"]["leaves"].append({"literal": 1}), "leaves, got"),
    (lambda g: g["modules"].append(["evil", "os.system", {}]), "expected a layer such as"),
    (lambda g: g["modules"].append(['x"+exit()+"', "Identity", {}]), "expected a name of letters"),
    (lambda g: g["modules"].append(["forward", "Identity", {}]), "expected a name of letters"),
    (lambda g: g["modules"].append(["stem.0", "Identity", {}]), "is there twice"),
    (lambda g: g["modules"].append(["nowhere.a", "Identity", {}]), "does not follow its parent"),
    (lambda g: g["modules"].append(["loop", "same", ""]), "no module '' before it"),
    (lambda g: g["modules"].insert(0, ["a", "Identity", {}]), "expected the root first"),
    (laugh, "names of modules"),
    (lambda g: layer(g, "up")[2].update(in_channels=10**15), r"'up.weight': the layer takes|up\]|cannot be made"),
    (lambda g: layer(g, "up")[2].update(groups=0), "it cannot be made"),
    (lambda g: layer(g, "up")[2].update(device="cuda"), "unknown entries"),
    (lambda g: layer(g, "up")[2].update(bias=False), "'up.bias': the layer takes none"),
    (lambda g: layer(g, "up").__setitem__(1, "Identity"), "unknown entries"),
    (lambda g: layer(g, "up").__setitem__(1, "Module"), "unknown entries"),
    (lambda g: g["tensors"].remove(["up.weight", tensor(g, "up.weight")]), "'up.weight' is missing"),
    (
        lambda g: g["tensors"].append(
            ["evil", {"role": "buffer", "dtype": "float32", "shape": [1 << 60], "trains": False}]
        ),
        "'evil' is in no file",
    ),
    (lambda g: tensor(g, "up.weight").update(shape=[1 << 40, 1 << 40]), r"the file holds"),
    (lambda g: tensor(g, "up.weight").update(dtype="float64"), r"the file holds"),
    (lambda g: tensor(g, "up.weight").update(strides=[0, 1, 1, 1]), "steps that fill the memory"),
    (lambda g: tensor(g, "up.weight").update(role="constant"), "'up.weight' is in no file"),
    (lambda g: tensor(g, "stem.1.num_batches_tracked").update(trains=True), "it cannot be made"),
    (lambda g: g["tensors"].append(["x.y", {"role": "buffer", "same": "up.weight"}]), "there is no module 'x'"),
    (lambda g: g["tensors"].append(["y", {"role": "buffer", "same": "z"}]), "there is no tensor 'z' before it"),
]


@pytest.mark.parametrize(("change", "message"), TAMPERED)
def test_a_graph_that_was_tampered_with(
    intact: Path, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    directory = tampered(intact, tmp_path, change)
    with watched(), pytest.raises(PlanError, match=message):
        fxprune.load(directory)


@pytest.mark.parametrize("names", [5, "ab", ["weight"], {"tuple": [1]}, {"node": "x"}])
def test_a_recurrent_layer_whose_names_are_none(names: Any) -> None:
    options = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "bidirectional": False, "batch_first": True}
    with pytest.raises(PlanError, match=r"^here"):
        layers.make_layer("Recurrent", {"op": "gru", "names": names, "options": {"dict": options}}, "here")
