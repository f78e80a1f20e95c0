"""The stored graph: the same module without the original's class, and nothing but a PlanError for what is damaged."""

from __future__ import annotations

import collections
import copy
import dataclasses
import hashlib
import inspect
import json
import pickle
import random
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune._base.errors import PlanError
from fxprune.capturing.call import CallSpec
from fxprune.results.plan import _digest
from fxprune.rewriting.pruned import PrunedModule
from fxprune.storage import artifact
from fxprune.storage import graph as stored
from fxprune.storage.graph import convention, layers, silent, targets, values
from fxprune.storage.graph.values import Unstorable
from tests.support.weights import randomise

JSON_FILES = ("plan.json", "report.json", "graph.json", "manifest.json")
TENSOR_FILES = ("model.safetensors", "constants.safetensors")


@pytest.fixture(autouse=True)
def _a_blank_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the report takes longer than all else, and has its own tests."""
    monkeypatch.setattr(artifact, "page", lambda pruned: "<html></html>")


# -- models ---------------------------------------------------------------------------------------------------------


class DropPath(nn.Module):
    """Stochastic depth as timm writes it."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        kept = 1 - self.drop_prob
        return x * x.new_empty([len(x)] + [1] * (x.dim() - 1)).bernoulli_(kept).div_(kept)


class Small(nn.Module):
    """A convolutional network with everything that evaluation mode hides, a constant, a tie and a namedtuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.up, self.down = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.drop, self.path = nn.Dropout(0.2), DropPath(0.3)
        self.head = nn.Linear(8, 4)
        self.again = self.head
        self.register_buffer("mask", (torch.arange(36) % 5 > 0).reshape(6, 6).float(), persistent=False)

    def forward(self, x: Tensor, *, scale: float = 1.0, mode: Any = max) -> dict[str, Tensor]:
        x = self.stem(x) * self.mask
        x = x + self.path(self.down(self.drop(torch.relu(self.up(x))))) * scale
        features = x.mean((2, 3))
        return {"scores": self.head(features), "again": self.again(-features)}


def small() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Small(), 0)


def vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    return randomise(VisionTransformer(16, 8, 2, 4, 32, 64, dropout=0.1, attention_dropout=0.1, num_classes=5))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=50,
            max_position_embeddings=32, num_labels=3,
        )
    )  # fmt: skip


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
            vocab_size=50, max_position_embeddings=32,
        )
    )  # fmt: skip


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.lstm = nn.LSTM(16, 12, 2, batch_first=True, dropout=0.2, bidirectional=True)
        self.head = nn.Linear(24, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(ids))[0].mean(1))


def lstm() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Recurrent(), 0)


def images(batch: int, size: int) -> dict[str, Any]:
    return {"x": torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))}


def tokens(batch: int, name: str = "input_ids", mask: bool = False) -> dict[str, Any]:
    ids = torch.randint(20, (batch, 5 + batch), generator=torch.Generator().manual_seed(batch))
    return {name: ids, **({"attention_mask": torch.ones_like(ids)} if mask else {})}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, Any]]]] = {
    "small": (small, lambda batch: images(batch, 6)),
    "vit": (vit, lambda batch: images(batch, 16)),
    "bert": (bert, lambda batch: tokens(batch, mask=True)),
    "llama": (llama, tokens),
    "lstm": (lstm, lambda batch: {"ids": tokens(batch)["input_ids"][:, :6]}),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Yields the name, a pruned model, its directory, and what makes calls of so many samples."""
    make, call = MODELS[request.param]
    if request.param in ("bert", "llama"):
        pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp(request.param) / "out"
    pruned = fxprune.compile(make().eval(), [call(2), call(3)], 0.7, recover=None, progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "page", lambda pruned: "<html></html>")
        fxprune.save(pruned, directory)
    yield request.param, pruned, directory, call


def same(first: Any, second: Any) -> bool:
    """Returns whether two outputs are of one structure and hold the same bits."""
    (a, first_spec), (b, second_spec) = pytree.tree_flatten(first), pytree.tree_flatten(second)
    return first_spec == second_spec and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# -- the same module ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["small", "bert"])
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


def test_memory_order_survives(tmp_path: Path) -> None:
    pruned = fxprune.compile(small().eval(), [images(2, 6)], 0.7, recover=None, progress=False)
    pruned = pruned.to(memory_format=torch.channels_last)
    fxprune.save(pruned, tmp_path / "out")
    loaded = fxprune.load(tmp_path / "out")
    strides = {name: value.stride() for name, value in pruned.state_dict().items()}
    assert {name: value.stride() for name, value in loaded.state_dict().items()} == strides
    assert any(len(s) == 4 and s[1] == 1 < s[3] for s in strides.values())


def test_frozen_parameters_and_training_constants(tmp_path: Path) -> None:
    pruned = fxprune.compile(small().eval(), [images(2, 6)], 0.7, recover=None, progress=False)
    pruned.get_parameter("up.weight").requires_grad_(False)
    pruned.get_submodule("drop").p = 0.9
    fxprune.save(pruned, tmp_path / "out")
    loaded = fxprune.load(tmp_path / "out")
    assert not loaded.get_parameter("up.weight").requires_grad and loaded.get_submodule("drop").p == 0.9
    assert loaded.get_submodule("again") is loaded.get_submodule("head")
    assert "mask" not in loaded.state_dict() and torch.equal(loaded.mask, Small().mask)
    path = loaded.get_submodule("path")
    assert isinstance(path, silent.StochasticDepth) and (path.p, path.batch, path.scale) == (0.3, False, True)


def test_a_default_without_a_json_form_can_be_left_out(tmp_path: Path) -> None:
    pruned = fxprune.compile(small().eval(), [images(2, 6)], 0.7, recover=None, progress=False)
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
def test_it_still_loads_with_the_model(change: Callable[[Any], Any], reason: str, tmp_path: Path) -> None:
    pruned = fxprune.compile(small().eval(), [images(2, 6)], 0.7, recover=None, progress=False)
    change(pruned)
    with pytest.raises(Unstorable, match=reason):
        stored.describe(pruned)


def _call(pruned: Any, target: Any) -> None:
    with pruned.graph.inserting_before(pruned.graph.output_node()):
        pruned.graph.call_function(target, ())


def test_arguments_named_self(tmp_path: Path) -> None:
    pruned = fxprune.compile(small().eval(), [images(2, 6)], 0.7, recover=None, progress=False)
    node = next(node for node in pruned.graph.nodes if node.target is torch.ops.aten.relu.default)
    node.args, node.kwargs = (), {"self": node.args[0]}
    pruned.recompile()
    fxprune.save(pruned, tmp_path / "out")
    assert same(fxprune.load(tmp_path / "out")(**images(2, 6)), pruned(**images(2, 6)))


def test_the_reason_is_kept(tmp_path: Path) -> None:
    pruned = fxprune.compile(small().eval(), [images(2, 6)], 0.7, recover=None, progress=False)
    pruned.add_module("drop", nn.Hardtanh(0, 0.1))
    fxprune.save(pruned, tmp_path / "out")
    with pytest.raises(PlanError, match=r"Hardtanh, which a file may not name.*fxprune.load\(directory, model\)"):
        fxprune.load(tmp_path / "out")
    assert isinstance(fxprune.load(tmp_path / "out", small()), PrunedModule)


# -- what is silent in evaluation mode ------------------------------------------------------------------------------


class Odd(nn.Module):
    """Drops single values."""

    p = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return torch.dropout(x, self.p, True) if self.training else x


class Blinking(nn.Module):
    """Drops everything or nothing, by Python's own generator, and scales nothing."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.other = 0.5
        self.keep = 1
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.training and random.random() < self.p else x


def test_silent_modules_are_told_by_what_they_do() -> None:
    from torchvision.ops import StochasticDepth

    linear = nn.Linear(2, 2)
    before = random.getstate(), torch.get_rng_state()
    found = silent.recognise(DropPath(0.0))
    assert isinstance(found, silent.StochasticDepth) and (found.p, found.batch, found.scale) == (0.0, False, True)
    for mode in ("row", "batch"):
        found = silent.recognise(StochasticDepth(0.01, mode))
        assert isinstance(found, silent.StochasticDepth)
        assert (found.p, found.batch, found.scale) == (0.01, mode == "batch", True)
    found = silent.recognise(Blinking(0.25))
    assert isinstance(found, silent.StochasticDepth) and (found.p, found.batch, found.scale) == (0.25, True, False)
    assert isinstance(silent.recognise(nn.Identity()), nn.Identity)
    assert isinstance(silent.recognise(Odd()), silent.Lost)
    assert silent.recognise(nn.ReLU6()) is None and silent.recognise(linear) is None
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_the_generators_of_other_devices_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    assert isinstance(silent.recognise(DropPath(0.2)), silent.StochasticDepth) and not seeds


def test_stochastic_depth_drops_as_torchvision_s() -> None:
    from torchvision.ops import StochasticDepth

    x = torch.randn(6, 3, 2, 2)
    for mode in ("row", "batch"):
        for p in (0.0, 0.4, 1.0):
            torch.manual_seed(0)
            expected = StochasticDepth(p, mode)(x)
            torch.manual_seed(0)
            assert torch.equal(silent.StochasticDepth(p, mode == "batch")(x), expected)


def test_lost_behaviour_is_told(tmp_path: Path) -> None:
    model = small()
    model.path = Odd()
    pruned = fxprune.compile(model.eval(), [images(2, 6)], 0.7, recover=None, progress=False)
    fxprune.save(pruned, tmp_path / "out")
    with pytest.warns(UserWarning, match=r"path \(.*Odd\): what this does while training is not stored"):
        loaded = fxprune.load(tmp_path / "out")
    assert same(loaded(**images(2, 6)), pruned(**images(2, 6)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fxprune.save(loaded, tmp_path / "again")
    assert (tmp_path / "again/graph.json").read_text() == (tmp_path / "out/graph.json").read_text()


# -- arguments ------------------------------------------------------------------------------------------------------

ARGUMENTS = [
    None, True, False, 0, -(2**63), 2**63 - 1, 0.1, -0.0, 1e308, float("inf"), float("-inf"), 1j, complex(2.5, -1), "", 'a"\\\n',
    [1, [2.0, None]], (1, (), [()]), slice(None, 3, None), slice(1, 2, 3), torch.float32, torch.bool, torch.complex64,
    torch.device("cpu"), torch.device("cuda:1"), torch.strided, torch.channels_last, {"a": [1, (2,)]}, {}, values.Opaque("f"),
]  # fmt: skip


@pytest.mark.parametrize("value", ARGUMENTS, ids=repr)
def test_arguments_come_back(value: Any) -> None:
    again = values.plain(json.loads(json.dumps(values.to_json(value), allow_nan=False)), "here")
    assert type(again) is type(value) and again == value and repr(again) == repr(value)


def test_every_float_is_a_float() -> None:
    for value in (np.float64(0.1), np.float64("inf")):
        again = values.plain(json.loads(json.dumps(values.to_json(value), allow_nan=False)), "here")
        assert type(again) is float and again == value


def test_nodes_and_nan_come_back() -> None:
    node = fx.Graph().placeholder("x")
    again = values.from_json(values.to_json([node, (node, float("nan"))]), "here", {"x": node})
    assert again[0] is node and again[1][0] is node and again[1][1] != again[1][1]
    assert values.to_json(torch.Size([1, 2])) == {"tuple": [1, 2]}


@pytest.mark.parametrize("value", [2**63, print, object(), torch.ones(1), {1: 2}, "\ud800", int, {"a": print}])
def test_arguments_without_a_json_form(value: Any) -> None:
    with pytest.raises(Unstorable):
        values.to_json(value)


@pytest.mark.parametrize(
    "data",
    [
        {}, {"node": "y"}, {"node": 1}, {"float": "1"}, {"a": 1}, {"tuple": 1}, {"tuple": [], "node": "x"}, {"slice": [1]},
        {"dtype": "Tensor"}, {"dtype": "float32 "}, {"device": "cpu:x"}, {"device": "os.system"}, {"layout": "float32"},
        {"complex": [1, 2]}, {"dict": [1]}, 2**63, float("inf"), {"memory_format": []}, {"opaque": 3}, {"float": {}},
    ],
    ids=repr,
)  # fmt: skip
def test_arguments_that_are_refused(data: Any) -> None:
    with pytest.raises(PlanError, match=r"^here"):
        values.from_json(data, "here", {})


def test_deep_arguments_are_refused() -> None:
    data: Any = 1
    for _ in range(400):
        data = {"tuple": [data]}
    with pytest.raises(PlanError, match="too deeply"):
        values.plain(data, "here")


# -- targets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["aten::linear.default", "aten::add.Tensor", "aten::sym_size.int", "fxprune::mark.default", "operator.mul",
     "operator.getitem", "builtins.getattr", "torch.sym_max", "math.ceil", "aten::conv2d.padding", "aten::einsum.default"],
)  # fmt: skip
def test_targets_come_back(name: str) -> None:
    assert targets.name_of(targets.find(name, "here")) == name


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "builtins.exec", "builtins.__import__", "operator.attrgetter", "operator.methodcaller",
     "aten::from_file.default", "aten::save.default", "aten::_print.default", "aten::warn.default", "aten::linear", "linear",
     "aten::__class__.default", "aten::linear.__class__", "aten::nothing.default", "aten::linear.nothing", "subprocess::run.x",
     "prims::add.default", "aten::linear.default\n", "aten.linear.default", "torch.load", "", "transformers::nothing.default",
     "inductor::x.default", "aten::_linalg_check_errors.default", "aten::linear.default; import os"],
)  # fmt: skip
def test_targets_that_are_refused(name: str) -> None:
    with pytest.raises(PlanError, match=r"^here"):
        targets.find(name, "here")


def test_getattr_asks_for_device_and_dtype_alone() -> None:
    node = fx.Graph().placeholder("x")
    targets.check_call(getattr, (node, "dtype"), {}, "here")
    for args in ((node, "__class__"), (node, "data"), (1, "dtype"), (node,), (node, "dtype", 1)):
        with pytest.raises(PlanError):
            targets.check_call(getattr, args, {}, "here")


# -- calls ----------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Boxes:
    boxes: Any
    scores: Any = None


pytree.register_dataclass(Boxes)

TREES = [
    1, (1, 2), [1, [2, (3,)]], {"a": 1, 2: [3]}, {}, (), collections.OrderedDict(b=1, a=2), collections.deque([1, 2]),
    collections.deque([1], maxlen=3), Pair(1, {"x": 2}), Boxes(1, 2), Boxes(1), {"deep": [Pair(Boxes(1), (2,))]},
]  # fmt: skip


@pytest.mark.parametrize("value", TREES, ids=repr)
def test_trees_come_back(value: Any) -> None:
    spec = pytree.tree_structure(value)
    data = json.loads(json.dumps(convention._write_tree(spec)))
    again = convention._read_tree(data, "here")
    leaves = pytree.tree_leaves(value)
    assert again == spec and pytree.tree_unflatten(leaves, again) == value


def test_what_is_not_there_comes_as_plain_containers() -> None:
    value = {"a": Pair(1, 2), "b": Boxes(3), "c": collections.defaultdict(list, x=4)}
    data = convention._write_tree(pytree.tree_structure(value))
    text = json.dumps(data).replace(__name__, "antigravity")
    spec = convention._read_tree(json.loads(text), "here")
    assert pytree.tree_unflatten([1, 2, 3, 4], spec) == {"a": (1, 2), "b": {"boxes": 3}, "c": {"x": 4}}
    assert "antigravity" not in sys.modules


def test_a_class_that_is_no_container_is_not_made() -> None:
    for name in ("os.system", "subprocess.Popen", "collections.Counter", "torch.nn.modules.linear.Linear"):
        data = {"kind": "registered", "class": name, "context": ["a"], "names": ["a"], "children": [None]}
        assert convention._read_tree(data, "here").type is dict
        data = {"kind": "namedtuple", "class": name, "names": ["a"], "children": [None]}
        assert convention._read_tree(data, "here").type is tuple
    data = {
        "kind": "registered",
        "class": f"{__name__}.Boxes",
        "context": [["x"], []],
        "names": ["x"],
        "children": [None],
    }
    with pytest.raises(PlanError, match="no such fields"):
        convention._read_tree(data, "here")


def test_calls_come_back() -> None:
    def forward(a: Any, /, b: Any, c: Any = 1.5, *rest: Any, d: Any, e: Any = (1, [2]), **more: Any) -> None: ...

    arguments = {"a": 1, "b": {"x": 2, "y": 3}, "rest": (4,), "d": None, "more": {"z": 5}}
    leaves, in_spec = pytree.tree_flatten(arguments)
    names = tuple(f"n{value}" if value else None for value in leaves)
    out_spec = pytree.tree_structure([1, 2])
    call = CallSpec(inspect.signature(forward), in_spec, out_spec, names, (None,) * len(names))
    again = convention.read_call(json.loads(json.dumps(convention.describe_call(call))), "here")
    assert again.in_spec == in_spec and again.out_spec == out_spec and again.placeholders == names
    bare = [p.replace(annotation=p.empty) for p in call.signature.parameters.values()]
    assert list(again.signature.parameters.values()) == bare


# -- graphs that were tampered with ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pruned = fxprune.compile(small().eval(), [images(2, 6)], 0.7, recover=None, progress=False)
    directory = tmp_path_factory.mktemp("saved") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "page", lambda pruned: "<html></html>")
        fxprune.save(pruned, directory)
    return directory


def reseal(directory: Path) -> None:
    """Writes the checksums that fit the files as they are now."""
    try:
        plan = json.loads((directory / "plan.json").read_text())
        plan["sha256"] = _digest({key: value for key, value in plan.items() if key != "sha256"})
        (directory / "plan.json").write_text(json.dumps(plan))
    except (ValueError, TypeError, KeyError):
        pass
    manifest = json.loads((directory / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (directory / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def tampered(saved: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    directory = tmp_path / "out"
    shutil.copytree(saved, directory)
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


EVIL = 'x"+__import__("os").system("true")+"'

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
    (lambda g: g["tensors"].append(["evil", {"role": "buffer", "dtype": "float32", "shape": [1 << 60], "trains": False}]),
     "'evil' is in no file"),
    (lambda g: tensor(g, "up.weight").update(shape=[1 << 40, 1 << 40]), r"the file holds"),
    (lambda g: tensor(g, "up.weight").update(dtype="float64"), r"the file holds"),
    (lambda g: tensor(g, "up.weight").update(strides=[0, 1, 1, 1]), "steps that fill the memory"),
    (lambda g: tensor(g, "up.weight").update(role="constant"), "'up.weight' is in no file"),
    (lambda g: tensor(g, "stem.1.num_batches_tracked").update(trains=True), "it cannot be made"),
    (lambda g: g["tensors"].append(["x.y", {"role": "buffer", "same": "up.weight"}]), "there is no module 'x'"),
    (lambda g: g["tensors"].append(["y", {"role": "buffer", "same": "z"}]), "there is no tensor 'z' before it"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), TAMPERED)
def test_a_graph_that_was_tampered_with(
    saved: Path, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    directory = tampered(saved, tmp_path, change)
    with watched(), pytest.raises(PlanError, match=message):
        fxprune.load(directory)


@pytest.mark.parametrize("names", [5, "ab", ["weight"], {"tuple": [1]}, {"node": "x"}])
def test_a_recurrent_layer_whose_names_are_none(names: Any) -> None:
    options = {"has_biases": True, "num_layers": 1, "dropout": 0.0, "bidirectional": False, "batch_first": True}
    with pytest.raises(PlanError, match=r"^here"):
        layers.make_layer("Recurrent", {"op": "gru", "names": names, "options": {"dict": options}}, "here")


# -- fuzz -----------------------------------------------------------------------------------------------------------

_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "os.fork",
    "shutil.rmtree",
)
_SEEN: list[str] = []
_ACTIVE: list[bool] = []


def _hook(event: str, args: Any) -> None:
    if _ACTIVE and (event in _FORBIDDEN or (event == "import" and args[0] in ("antigravity", "this"))):
        _SEEN.append(event)


sys.addaudithook(_hook)


class watched:  # noqa: N801 - used as a statement
    """Fails if anything is executed within that loading has no business with, or memory grows by 500 MB."""

    def __enter__(self) -> None:
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _ACTIVE.append(True)

    def __exit__(self, *_: object) -> None:
        _ACTIVE.pop()
        assert not _SEEN, _SEEN
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before
        assert grown * (1 if sys.platform == "darwin" else 1024) < 500e6


STRANGE = [
    None, True, False, -1, 0, 1, 2, 3, 7, 10**6, 2**31, 2**62, 2**63 - 1, 2**63, 10**400, -(2**63), 0.5, 1e308, -0.0, "", "x",
    "os.system", "builtins.eval", "antigravity.x", "this", "same", "Lost", "Module", "Recurrent", "Conv2d", "parameter", "buffer",
    "constant", "input", "node", "tuple", EVIL, "\x00", "é", "self", "output", "float32", "aten::from_file.default",
    "aten::add.Tensor", "operator.getitem", "builtins.getattr", "registered", "namedtuple", "posixpath.join", [], {}, [[]], [1], [""],
    {"node": "x"}, {"tuple": []}, {"float": "nan"}, {"same": "up.weight"}, {"input": "x"}, [2**40, 2**40], {"kind": "tuple", "children": []},
]  # fmt: skip


def mutate(data: Any, generator: random.Random) -> Any:
    """Returns JSON data in which one thing, somewhere, is another, is gone, or is there twice."""
    places: list[tuple[Any, Any]] = []
    stack = [data]
    while stack:
        here = stack.pop()
        for key, value in here.items() if isinstance(here, dict) else enumerate(here):
            places.append((here, key))
            if isinstance(value, (dict, list)):
                stack.append(value)
    holder, key = generator.choice(places)
    kind = generator.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(generator.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
    elif kind == 2:
        other, place = generator.choice(places)
        value = copy.deepcopy(holder[key])
        if place in other if isinstance(other, dict) else place < len(other):
            other[place] = value
    elif kind == 3 and isinstance(holder, dict):
        holder[str(generator.choice(STRANGE))] = holder.pop(key)
    elif kind == 4:
        deep: Any = 1
        for _ in range(generator.choice([5, 60, 150])):
            deep = generator.choice(
                [lambda d: [d], lambda d: {"tuple": [d]}, lambda d: {"children": [d], "kind": "list"}]
            )(deep)
        holder[key] = deep
    else:
        holder[key] = copy.deepcopy(generator.choice(STRANGE))
    return data


def damage(directory: Path, generator: random.Random) -> str:
    """Damages one file, seals the directory again (mostly), and returns what was done."""
    name = generator.choice([*JSON_FILES, "graph.json", "graph.json", *TENSOR_FILES])
    path = directory / name
    content = bytearray(path.read_bytes())
    how = generator.choice(["flip", "cut", "edit", "edit", "edit", "edit"])
    if how == "cut":
        path.write_bytes(content[: generator.randrange(len(content) + 1)])
    elif how == "edit" and name in JSON_FILES:
        data = json.loads(content)
        for _ in range(generator.choice([1, 1, 1, 2, 4])):
            data = mutate(data, generator)
        path.write_text(json.dumps(data))
    elif how == "edit":
        length = int.from_bytes(content[:8], "little")
        header = mutate(json.loads(content[8 : 8 + length]), generator)
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    else:
        for _ in range(generator.choice([1, 1, 3, 30])):
            content[generator.randrange(min(len(content), generator.choice([60, 10**9])))] ^= 1 << generator.randrange(
                8
            )
        path.write_bytes(content)
    if name != "manifest.json":
        reseal(directory)
    return f"{name} {how}"


def fuzz(saved: Path, scratch: Path, seeds: range, model: nn.Module | None = None) -> collections.Counter[str]:
    """Loads damaged copies; returns how many loaded and how many were refused. Whatever else happens is raised."""
    found: collections.Counter[str] = collections.Counter()
    for seed in seeds:
        directory = scratch / str(seed)
        shutil.copytree(saved, directory)
        done = damage(directory, random.Random(seed))
        with watched(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                fxprune.load(directory, model)
                found["loaded"] += 1
            except PlanError as error:
                assert str(error)
                found["refused"] += 1
            except BaseException as error:
                raise AssertionError(f"seed {seed}, {done}: {type(error).__name__}: {error}") from error
        shutil.rmtree(directory)
    return found


def test_fuzzed_files_are_refused_cleanly(saved: Path, tmp_path: Path) -> None:
    found = fuzz(saved, tmp_path, range(250))
    assert found["refused"] > 125


def test_fuzzed_files_are_refused_cleanly_with_the_model(saved: Path, tmp_path: Path) -> None:
    found = fuzz(saved, tmp_path, range(1000, 1020), small())
    assert found["refused"] > 5


def test_the_fuzzer_reaches_deep(saved: Path, tmp_path: Path) -> None:
    directory = tmp_path / "out"
    shutil.copytree(saved, directory)
    reseal(directory)
    assert same(fxprune.load(directory)(**images(2, 6)), fxprune.load(saved)(**images(2, 6)))
