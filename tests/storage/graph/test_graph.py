"""The stored graph: the same module without the original's class, and a reason where there cannot be one."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune._base.errors import PlanError
from fxprune.rewriting.pruned import PrunedModule
from fxprune.storage import graph as stored
from fxprune.storage.graph import silent, values
from fxprune.storage.graph.values import Unstorable
from tests.models.stored import MODELS, Small, images, small
from tests.support.artifacts import same
from tests.support.marks import but_slow

# -- the same module ------------------------------------------------------------------------------------------------


def test_names_may_be_of_any_language(tmp_path: Path) -> None:
    model, x = nn.Sequential(), torch.randn(4, 5)
    for name, layer in {"première": nn.Linear(5, 8), "層": nn.ReLU(), "a b": nn.Linear(8, 3)}.items():
        model.add_module(name, layer)
    pruned = fxprune.compile(model.eval(), [x], 0.7, progress=False)
    fxprune.save(pruned, tmp_path / "saved")
    loaded = fxprune.load(tmp_path / "saved")
    assert torch.equal(loaded(x), pruned(x)) and "première.weight" in loaded.state_dict()


def test_it_computes_the_same(pair: Any) -> None:
    _, pruned, directory, call = pair
    loaded = fxprune.load(directory)
    with torch.no_grad():
        for batch in (2, 3, 5):
            assert same(loaded(**call(batch)), pruned(**call(batch)))
    state = loaded.state_dict()
    assert list(state) == list(pruned.state_dict())
    assert all(torch.equal(state[name], value) for name, value in pruned.state_dict().items())
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in pruned.named_parameters()]
    flags = {name: p.requires_grad for name, p in pruned.named_parameters()}
    assert {name: p.requires_grad for name, p in loaded.named_parameters()} == flags
    bare = [p.replace(annotation=p.empty) for p in inspect.signature(pruned.forward).parameters.values()]
    names = [(p.name, p.kind) for p in inspect.signature(loaded.forward).parameters.values()]
    assert names == [(p.name, p.kind) for p in bare]
    assert type(loaded).__name__ == type(pruned).__name__
    assert fxprune.report(loaded) == fxprune.report(pruned)


def test_saving_it_again_gives_the_same_files(pair: Any, tmp_path: Path) -> None:
    _, _, directory, _ = pair
    fxprune.save(fxprune.load(directory), tmp_path / "again")
    for path in directory.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_it_trains_as_before(pair: Any) -> None:
    name, pruned, directory, call = pair
    pruned, loaded = copy.deepcopy(pruned).train(), fxprune.load(directory).train()
    states = []
    for model in (pruned, loaded):
        optimiser = torch.optim.SGD(model.parameters(), 0.01)
        for _ in range(2):
            torch.manual_seed(7)  # dropout, stochastic depth and attention draw the same
            sum(out.square().mean() for out in pytree.tree_leaves(model(**call(3)))).backward()
            optimiser.step()
            optimiser.zero_grad()
        states.append(model.state_dict())
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
    if name != "llama":  # it has no dropout
        torch.manual_seed(1)
        assert not same(loaded(**call(3)), loaded.eval()(**call(3)))


def test_it_is_copied_pickled_and_moved(pair: Any) -> None:
    _, pruned, directory, call = pair
    loaded = fxprune.load(directory)
    with torch.no_grad():
        expected = pruned(**call(3))
        assert same(copy.deepcopy(loaded)(**call(3)), expected)
        assert same(pickle.loads(pickle.dumps(loaded))(**call(3)), expected)
        low = {k: v.bfloat16() if v.is_floating_point() else v for k, v in call(3).items()}
        moved = copy.deepcopy(pruned).bfloat16()(**low)
        assert same(loaded.bfloat16()(**low), moved)
        empty = loaded.to("meta")(**{k: v.to("meta") for k, v in low.items()})
        for a, b in zip(pytree.tree_leaves(empty), pytree.tree_leaves(moved), strict=True):
            assert a.is_meta and a.shape == b.shape and a.dtype == b.dtype


@pytest.mark.parametrize("name", but_slow(["small", "bert"], quick=("small",)))
def test_it_is_exported_and_compiled(name: str, tmp_path: Path) -> None:
    if name == "bert":
        pytest.importorskip("transformers")
    make, call = MODELS[name]
    pruned = fxprune.compile(make().eval(), [call(2)], 0.7, recover=None, progress=False)
    fxprune.save(pruned, tmp_path / "out")
    loaded = fxprune.load(tmp_path / "out")
    with torch.no_grad():
        expected = pytree.tree_leaves(pruned(**call(2)))
        program = torch.export.export(loaded, (), call(2)).module()
        compiled = torch.compile(loaded, backend="eager", fullgraph=True)
        for model in (program, compiled):
            for a, b in zip(pytree.tree_leaves(model(**call(2))), expected, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_it_needs_no_class_and_imports_nothing(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    make, call = MODELS["bert"]
    pruned = fxprune.compile(make().eval(), [call(2)], 0.7, recover=None, progress=False)
    fxprune.save(pruned, tmp_path / "out")
    torch.save(call(2), tmp_path / "call.pt")
    code = (
        "import sys, torch, fxprune\n"
        f"pruned = fxprune.load({str(tmp_path / 'out')!r})\n"
        f"out = pruned(**torch.load({str(tmp_path / 'call.pt')!r}))\n"
        "assert 'transformers' not in sys.modules and type(out) is dict, type(out)\n"
        f"torch.save(out['logits'].detach(), {str(tmp_path / 'out.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
    assert torch.equal(torch.load(tmp_path / "out.pt"), pruned(**call(2)).logits)


def test_memory_order_survives(pruned_small: Any, tmp_path: Path) -> None:
    pruned = pruned_small
    pruned = pruned.to(memory_format=torch.channels_last)
    fxprune.save(pruned, tmp_path / "out")
    loaded = fxprune.load(tmp_path / "out")
    strides = {name: value.stride() for name, value in pruned.state_dict().items()}
    assert {name: value.stride() for name, value in loaded.state_dict().items()} == strides
    assert any(len(s) == 4 and s[1] == 1 < s[3] for s in strides.values())


def test_frozen_parameters_and_training_constants(pruned_small: Any, tmp_path: Path) -> None:
    pruned = pruned_small
    pruned.get_parameter("up.weight").requires_grad_(False)
    pruned.get_submodule("drop").p = 0.9
    fxprune.save(pruned, tmp_path / "out")
    loaded = fxprune.load(tmp_path / "out")
    assert not loaded.get_parameter("up.weight").requires_grad and loaded.get_submodule("drop").p == 0.9
    assert loaded.get_submodule("again") is loaded.get_submodule("head")
    assert "mask" not in loaded.state_dict() and torch.equal(loaded.mask, Small().mask)
    path = loaded.get_submodule("path")
    assert isinstance(path, silent.StochasticDepth) and (path.p, path.batch, path.scale) == (0.3, False, True)


def test_a_default_without_a_json_form_can_be_left_out(pruned_small: Any, tmp_path: Path) -> None:
    pruned = pruned_small
    fxprune.save(pruned, tmp_path / "out")
    loaded = fxprune.load(tmp_path / "out")
    assert inspect.signature(loaded.forward).parameters["mode"].default == values.Opaque("max")
    assert same(loaded(images(4, 6)["x"], scale=1.0), pruned(images(4, 6)["x"]))
    with pytest.raises(TypeError, match="scale"):
        loaded(images(4, 6)["x"], scale=2.0)
    assert pickle.loads(pickle.dumps(loaded)) is not None


# -- what has no place in a file ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p.add_module("drop", nn.Sequential(nn.Dropout())), "'drop' is a .*Sequential"),
        (lambda p: p.add_module("drop", nn.Hardtanh(0, 0.1)), "'drop' is a .*Hardtanh"),
        (lambda p: p.register_buffer("a", torch.ones(2).to_sparse()), "'a' is no dense tensor"),
        (lambda p: setattr(p.graph.find_nodes(op="output")[0], "type", None) or _call(p, print), "print"),
        (lambda p: _call(p, torch.ops.aten.from_file.default), "from_file"),
        (lambda p: p.add_module('a"+x+"', nn.Identity()), "cannot be read again"),
        (lambda p: p.register_buffer("wide", torch.ones(2, dtype=torch.complex128), persistent=False), "complex128"),
    ],
)
def test_it_still_loads_with_the_model(
    change: Callable[[Any], Any], reason: str, pruned_small: Any, tmp_path: Path
) -> None:
    pruned = pruned_small
    change(pruned)
    with pytest.raises(Unstorable, match=reason):
        stored.describe(pruned)


def _call(pruned: Any, target: Any) -> None:
    with pruned.graph.inserting_before(pruned.graph.output_node()):
        pruned.graph.call_function(target, ())


def test_arguments_named_self(pruned_small: Any, tmp_path: Path) -> None:
    pruned = pruned_small
    node = next(node for node in pruned.graph.nodes if node.target is torch.ops.aten.relu.default)
    node.args, node.kwargs = (), {"self": node.args[0]}
    pruned.recompile()
    fxprune.save(pruned, tmp_path / "out")
    assert same(fxprune.load(tmp_path / "out")(**images(2, 6)), pruned(**images(2, 6)))


def test_the_reason_is_kept(pruned_small: Any, tmp_path: Path) -> None:
    pruned = pruned_small
    pruned.add_module("drop", nn.Hardtanh(0, 0.1))
    fxprune.save(pruned, tmp_path / "out")
    with pytest.raises(PlanError, match=r"Hardtanh, which a file may not name.*fxprune.load\(directory, model\)"):
        fxprune.load(tmp_path / "out")
    assert isinstance(fxprune.load(tmp_path / "out", small()), PrunedModule)
