"""An emitted module keeps its call, its types, its ties and its record through everything that is done to modules."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune._base.errors import CallError, FxpruneError
from fxprune.rewriting.pruned import PrunedModule
from tests.models.calls import Pair
from tests.support.capturing import assert_equal
from tests.support.emitting import emit_of, emitted
from tests.support.marks import but_slow

pytestmark = pytest.mark.filterwarnings(
    "ignore:The tensor attributes self:UserWarning", "ignore:LSTM with projections:UserWarning"
)

MODELS = ["structured", "bert", "shared", "noisy", "recurrent", "attentive", "layers"]


def _saved(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def _pickled(module):
    return pickle.loads(pickle.dumps(module))


COPIES = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": _pickled, "save": _saved}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", but_slow(MODELS, quick=[name for name in MODELS if name != "bert"]))
def test_survives(name, way):
    case = emitted(name)
    case.pruned.record = {"kept": [1, 2]}
    twin = COPIES[way](COPIES[way](case.pruned))
    assert isinstance(twin, PrunedModule)
    assert twin is not case.pruned
    assert twin.code == case.pruned.code
    assert repr(twin) == repr(case.pruned)
    assert twin.record == {"kept": [1, 2]}
    assert not twin.training
    assert list(twin.state_dict()) == list(case.pruned.state_dict())
    assert [key for key, _ in twin.named_parameters()] == [key for key, _ in case.pruned.named_parameters()]
    flags = [p.requires_grad for p in case.pruned.parameters()]
    assert [p.requires_grad for p in twin.parameters()] == flags
    shares = [a is b for a, b in zip(twin.parameters(), case.pruned.parameters(), strict=True)]
    assert all(shares) if way == "copy" else not any(shares)
    with torch.no_grad():
        got = twin(*case.args, **case.kwargs)
        expected = case.pruned(*case.args, **case.kwargs)
    assert type(got) is type(expected)
    assert_equal(got, expected)
    twin.graph.lint()


def test_a_copy_is_changed_alone():
    pruned = copy.deepcopy(emitted("structured").pruned)
    pruned.record = "own"
    twin = copy.copy(pruned)
    twin.layer = nn.Identity()
    twin.record = "other"
    twin.train()
    assert isinstance(pruned.layer, nn.Linear)
    assert pruned.record == "own"
    assert not pruned.training


def test_attributes_that_a_user_adds_survive():
    pruned = copy.deepcopy(emitted("structured").pruned)
    pruned.config = {"classes": 5}
    pruned.meta["note"] = 1
    twin = _pickled(pruned)
    assert twin.config == {"classes": 5}
    assert twin.meta == {"note": 1}


def test_an_edited_graph_survives():
    pruned = emit_of(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3))
    output = pruned.graph.output_node()
    (value,) = output.args[0]
    with pruned.graph.inserting_before(output):
        output.args = ((pruned.graph.call_method("neg", (value,)),),)
    pruned.recompile()
    x = torch.randn(2, 3)
    for way in COPIES.values():
        assert torch.equal(way(pruned)(x), pruned(x))
        assert pruned(x).max() <= 0


# -- the call ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_signature_is_the_originals():
    case = emitted("structured")
    assert str(inspect.signature(case.pruned.forward)) == str(inspect.signature(case.model.forward))
    bert = emitted("bert")
    ours, theirs = (inspect.signature(m.forward).parameters.values() for m in (bert.pruned, bert.model))
    assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs]


def test_generated_code_reads_like_a_forward():
    assert emitted("structured").pruned.code.strip() == (
        "def forward(self, batch, weight=None, scale=_defaults.scale, *, mode='sum', mask=None, **extra):\n"
        "    batch_x, batch_more_0, weight, mask, shift, = "
        "_inputs_of((batch, weight, scale, mode, mask, extra,))\n"
        "    linear = self.layer(batch_x);  batch_x = None\n"
        "    add = torch.ops.aten.add.Tensor(linear, batch_more_0);  linear = batch_more_0 = None\n"
        "    mul = torch.ops.aten.mul.Tensor(add, weight);  add = weight = None\n"
        "    mul_1 = torch.ops.aten.mul.Tensor(mul, mask);  mul = mask = None\n"
        "    mul_2 = torch.ops.aten.mul.Tensor(shift, 2.0);  shift = None\n"
        "    add_1 = torch.ops.aten.add.Tensor(mul_1, mul_2);  mul_1 = mul_2 = None\n"
        "    sum_1 = torch.ops.aten.sum.dim_IntList(add_1, [1])\n"
        "    mul_3 = torch.ops.aten.mul.Tensor(add_1, 2)\n"
        "    return _outputs_of([add_1, sum_1, 'mean', None, mul_3])"
    )


def test_arguments_may_be_spelled_in_any_way():
    case = emitted("structured")
    batch, weight = case.args
    expected = case.model(*case.args, **case.kwargs)
    assert isinstance(case.pruned(batch, weight, **case.kwargs)["pair"], Pair)
    assert_equal(case.pruned(weight=weight, batch=batch, scale=2.0, **case.kwargs), expected)
    turned = {"more": batch["more"], "x": batch["x"]}
    assert_equal(case.pruned(turned, weight, **case.kwargs), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight": None}, "'weight' of forward.. was captured with a tensor and must be one, got None"),
        ({"weight": 2.0}, "'weight' of forward.. was captured with a tensor and must be one, got 2.0"),
        ({"mode": ...}, "'mode' of forward.. was captured with 'mean' .* got 'sum' .given, or the default."),
        ({"mode": "other"}, "'mode' of forward.. was captured with 'mean' .* got 'other'"),
        ({"mode": torch.ones(2)}, "'mode' of forward.. was captured with 'mean' .* got a tensor of shape"),
        ({"scale": 3.0}, "'scale' of forward.. was not given .* got 3.0: leave it at 2.0"),
        ({"shift": ...}, "captured with 'shift' and needs it"),
        ({"other": 1}, "'other' of forward.. was not given .* leave it out"),
        ({"batch": {"x": torch.ones(3, 4)}}, "'batch' of forward.. differs in structure"),
        ({"batch": ...}, "missing 1 required positional argument: 'batch'"),
    ],
)
def test_another_call_than_the_captured_one_is_refused(changes, message):
    case = emitted("structured")
    call = {"batch": case.args[0], "weight": case.args[1], **case.kwargs, **changes}
    call = {name: value for name, value in call.items() if value is not ...}
    with pytest.raises(TypeError, match=message):
        case.pruned(**call)


@pytest.mark.slow
def test_model_outputs_keep_their_class():
    case = emitted("bert")
    out = case.pruned(**case.kwargs)
    assert type(out).__name__ == "MaskedLMOutput"
    assert out.logits is out["logits"]
    assert out.loss is None


_ONES = torch.ones(3)


class _Shifted(nn.Module):
    """Has a parameter that comes first and has no name, and defaults that no code can be written with."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, /, shift=_ONES, dtype=torch.float32):
        return (self.layer(x) + shift).to(dtype)


@pytest.mark.parametrize("way", COPIES)
def test_positional_only_parameters_and_tensors_as_defaults(way):
    model, x = _Shifted().eval(), torch.randn(2, 4)
    pruned = COPIES[way](emit_of(model, x))
    assert str(inspect.signature(pruned.forward)).startswith("(x, /, shift=")
    assert_equal(pruned(x), model(x))
    with pytest.raises(TypeError, match="positional-only"):
        pruned(x=x)
    with pytest.raises(TypeError, match=r"'shift' of forward.. was not given"):
        pruned(x, torch.zeros(3))


# -- what PyTorch does to modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", but_slow(["structured", "bert", "recurrent", "noisy"], quick=("structured", "noisy")))
def test_compiles_in_one_graph(name):
    case = emitted(name)
    torch.compiler.reset()
    compiled = torch.compile(case.pruned, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_equal(compiled(*case.args, **case.kwargs), case.model(*case.args, **case.kwargs))


class _Scaled(nn.Module):
    """Has arguments that are no tensors, and a default that is not what it is called with."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, scale=1.0, count=1, flag=False, dtype=torch.float64):
        y = self.layer(x).to(dtype) * scale * count
        return -y if flag else y


def _scaled():
    model, x = _Scaled().double().eval(), torch.randn(2, 4).double()
    return model, x, emit_of(model, x, 2.0, 3, True)


def test_constants_are_held_to_when_compiled():
    model, x, pruned = _scaled()
    torch.compiler.reset()
    compiled = torch.compile(pruned, fullgraph=True, backend="eager")
    for scale, count in ((2.0, 3), (2, 3), (2.0, 3.0)):
        assert_equal(compiled(x, scale, count, True, torch.float64), model(x, 2.0, 3, True))
    torch.compiler.reset()
    broken = torch.compile(pruned, backend="eager")
    assert_equal(broken(x, 2.0, 3, True), model(x, 2.0, 3, True))
    for call in ((x, 2.5, 3, True), (x, 2.0, 4, True), (x, 2.0, 3, False), (x,)):
        with pytest.raises(CallError, match=r"was captured with"):
            broken(*call)


@pytest.mark.parametrize("strict", [False, True])
def test_constants_are_held_to_when_exported(strict):
    model, x, pruned = _scaled()
    program = torch.export.export(pruned, (x, 2.0, 3, True), strict=strict)
    assert_equal(program.module()(x, 2.0, 3, True), model(x, 2.0, 3, True))
    with pytest.raises(Exception, match=r"was captured with"):
        torch.export.export(pruned, (x, 1.0, 3, True), strict=strict)


@pytest.mark.slow
def test_trains_compiled():
    case = emitted("attentive")
    pruned = copy.deepcopy(case.pruned).train()
    torch.compiler.reset()
    out, _ = torch.compile(pruned, fullgraph=True, backend="eager")(*case.args)
    out.sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", but_slow(["structured", "bert", "noisy"], quick=("structured", "noisy")))
def test_exports(name, strict):
    case = emitted(name)
    program = torch.export.export(copy.deepcopy(case.pruned), case.args, dict(case.kwargs), strict=strict)
    with torch.no_grad():
        assert_equal(program.module()(*case.args, **case.kwargs), case.model(*case.args, **case.kwargs))


@pytest.mark.parametrize("name", ["shared", "layers"])
def test_is_traced_symbolically_as_it_is_called(name):
    case = emitted(name)
    traced = fx.symbolic_trace(case.pruned)
    assert_equal(traced(*case.args, **case.kwargs), case.model(*case.args, **case.kwargs))


def test_torchscript_is_told_what_to_do_instead():
    pruned = emit_of(nn.Linear(4, 3).eval(), torch.randn(2, 4))
    with pytest.raises(FxpruneError, match=r"use torch.jit.trace"):
        torch.jit.script(pruned)


@pytest.mark.slow
def test_runs_in_an_interpreter():
    case = emitted("swin")
    assert_equal(fx.Interpreter(case.pruned).run(*case.args), case.pruned(*case.args))
    structured = emitted("structured")
    with pytest.raises(TypeError, match=r"missing|captured"):
        fx.Interpreter(structured.pruned).run(structured.args[0])


@pytest.mark.parametrize("name", but_slow(["bert", "swin", "recurrent", "layers"], quick=("recurrent", "layers")))
def test_moves(name):
    case = emitted(name)
    pruned = copy.deepcopy(case.pruned).float()
    args, kwargs = pytree.tree_map_only(
        torch.Tensor, lambda t: t.float() if t.is_floating_point() else t, (case.args, case.kwargs)
    )
    first = pytree.tree_leaves(pruned(*args, **kwargs))[0]
    assert first.dtype == torch.float32
    pruned.to("meta")
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs))
    assert pytree.tree_leaves(pruned(*args, **kwargs))[0].shape == first.shape


def test_can_be_read_and_printed(capsys):
    pruned = emitted("structured").pruned
    pruned.print_readable()
    assert "self.layer(batch_x)" in capsys.readouterr().out
    assert "layer" in str(pruned)


def test_loads_the_originals_state():
    case = emitted("shared")
    pruned = copy.deepcopy(case.pruned)
    for parameter in pruned.parameters():
        nn.init.zeros_(parameter)
    pruned.load_state_dict(case.model.state_dict())
    assert_equal(pruned(*case.args), case.model(*case.args))
