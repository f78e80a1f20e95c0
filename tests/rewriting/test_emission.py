"""What emit gives for unpruned graphs is the original again: values, training behaviour, names, tensors."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from fxprune._base.errors import FxpruneError
from fxprune.capturing.captured import MARK, Captured, capture
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.ops.layers import FeatureDropout, ScaledDotProductAttention
from fxprune.rewriting.emission import emit
from fxprune.rewriting.places import Place
from fxprune.rewriting.slicing import slice_graph
from tests.models.calls import CASES
from tests.support.capturing import assert_equal
from tests.support.certificates import network
from tests.support.emitting import emit_of, emitted
from tests.support.marks import but_slow

#: Those that are small.
QUICK = ("structured", "shared", "layers", "noisy", "attentive", "recurrent")

pytestmark = pytest.mark.filterwarnings("ignore:The tensor attributes self:UserWarning")


# -- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", but_slow(CASES, QUICK, every=3))
def test_equals_the_original_in_evaluation(name):
    case = emitted(name)
    with torch.no_grad():
        expected = case.model(*case.args, **case.kwargs)
        got = case.pruned(*case.args, **case.kwargs)
    assert type(got) is type(expected)
    assert_equal(got, expected)


@pytest.mark.parametrize("name", but_slow([name for name in CASES if name != "googlenet"], QUICK))
def test_equals_the_original_in_training(name):
    case = emitted(name)
    model, pruned = copy.deepcopy(case.model).train(), copy.deepcopy(case.pruned).train()
    for _ in range(2):
        torch.manual_seed(1)
        expected = model(*case.args, **case.kwargs)
        torch.manual_seed(1)
        assert_equal(pruned(*case.args, **case.kwargs), expected)
    state = model.state_dict()
    for key, value in pruned.state_dict().items():
        assert_equal(value.double(), state[key].double())
    still = pruned.eval()(*case.args, **case.kwargs)
    assert_equal(still, pruned(*case.args, **case.kwargs))


@pytest.mark.parametrize(
    "name", but_slow(["noisy", "vit", "swin", "bert", "llama", "attentive", "recurrent"], QUICK[3:])
)
def test_is_random_in_training(name):
    case = emitted(name)
    pruned = copy.deepcopy(case.pruned).train()
    one, two = (pytree.tree_leaves(pruned(*case.args, **case.kwargs))[0] for _ in range(2))
    assert (one - two).abs().max() > 1e-6


def test_gradients_equal_the_originals():
    case = emitted("attentive")
    model, pruned = copy.deepcopy(case.model), copy.deepcopy(case.pruned)
    for module in (model, pruned):
        module(*case.args)[0].square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in pruned.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-9, atol=1e-12)


# -- names and tensors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", but_slow(CASES, QUICK))
def test_state_dict_is_the_originals_without_what_is_never_used(name):
    case = emitted(name)
    unused = case.captured.unused
    orphans = {key.rpartition(".")[0] for key in unused}
    expected = {key: value for key, value in case.model.state_dict().items() if key.rpartition(".")[0] not in orphans}
    got = case.pruned.state_dict()
    assert list(got) == list(expected)
    for key, value in expected.items():
        assert torch.equal(got[key], value)
        assert got[key].dtype == value.dtype


@pytest.mark.parametrize("name", but_slow(CASES, QUICK))
@pytest.mark.slow
def test_owns_its_tensors_and_changes_nobody_elses(name):
    case = emitted(name)
    theirs = {t.untyped_storage().data_ptr() for t in (*case.model.parameters(), *case.model.buffers())}
    ours = [*case.pruned.parameters(), *case.pruned.buffers()]
    assert not theirs & {t.untyped_storage().data_ptr() for t in ours if t.numel()}
    flags = dict(case.model.named_parameters(remove_duplicate=False))
    for key, parameter in case.pruned.named_parameters(remove_duplicate=False):
        assert parameter.requires_grad == flags[key].requires_grad


def test_emission_leaves_model_and_graph_alone():
    case = emitted("shared")
    before = {key: (id(t), t._version) for key, t in case.model.state_dict(keep_vars=True).items()}
    code, attributes = case.captured.module.code, set(vars(case.model))
    emit(case.captured, case.captured.module)
    assert {key: (id(t), t._version) for key, t in case.model.state_dict(keep_vars=True).items()} == before
    assert case.captured.module.code == code
    assert set(vars(case.model)) == attributes


@pytest.mark.parametrize("name", but_slow(CASES, QUICK))
def test_graph_has_nothing_dead_and_no_marks(name):
    pruned = emitted(name).pruned
    assert not any(node.target is MARK for node in pruned.graph.nodes)
    assert all(node.users for node in pruned.graph.nodes if node.op in ("get_attr", "call_module"))
    assert len({module.training for module in pruned.modules()}) == 1
    assert not pruned.training
    used = set()
    for node in pruned.graph.nodes:
        if node.op == "call_module":
            used |= {id(parameter) for parameter in pruned.get_submodule(node.target).parameters()}
        elif node.op == "get_attr":
            path, _, leaf = node.target.rpartition(".")
            used.add(id(getattr(pruned.get_submodule(path), leaf)))
    assert used >= {id(parameter) for parameter in pruned.parameters()}
    pruned.graph.lint()


@pytest.mark.slow
def test_ties_stay_ties():
    llama, shared = emitted("llama").pruned, emitted("shared").pruned
    assert llama.lm_head.weight is llama.model.embed_tokens.weight
    assert isinstance(llama.lm_head, nn.Linear)
    assert isinstance(llama.model.embed_tokens, nn.Embedding)
    assert shared.tied.weight is shared.frozen.weight
    assert shared.second is shared.first
    bert = emitted("bert").pruned
    assert bert.cls.predictions.bias is bert.cls.predictions.decoder.bias
    assert bert.cls.predictions.decoder.weight is bert.bert.embeddings.word_embeddings.weight


# -- which module ------------------------------------------------------------------------------------------------------


def test_layers_are_plain_modules_with_the_originals_hyperparameters():
    layers = emitted("layers").pruned
    assert {name: repr(module) for name, module in layers.named_children()} == {
        "circular": "Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))",
        "same": "Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1), padding=same, groups=4, bias=False)",
        "cumulative": repr(nn.BatchNorm2d(8, eps=1e-3, momentum=None)),
        "sync": repr(nn.BatchNorm2d(8)),
        "instance": repr(nn.InstanceNorm2d(8, affine=True, track_running_stats=True)),
        "group": repr(nn.GroupNorm(2, 8, eps=1e-4)),
        "prelu": "PReLU(num_parameters=8)",
        "up": repr(nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2)),
        "conv1": repr(nn.Conv1d(6, 8, 3, dilation=2)),
        "norm1": repr(nn.BatchNorm1d(8)),
        "up1": repr(nn.ConvTranspose1d(8, 4, 2, stride=2)),
        "conv3": repr(nn.Conv3d(1, 2, 3, stride=(1, 2, 1), padding=(1, 0, 1))),
        "norm3": repr(nn.BatchNorm3d(2, affine=False)),
        "up3": repr(nn.ConvTranspose3d(2, 2, 2)),
        "layer": repr(nn.LayerNorm(7, bias=False)),
        "rms": repr(nn.RMSNorm(7, eps=1e-5)),
        "embed": repr(nn.Embedding(11, 7, padding_idx=2)),
    }
    assert "offset" not in layers.state_dict()
    assert "idle" in layers.state_dict()


def test_parameters_that_no_layer_holds_stay_under_their_names():
    shared = emitted("shared").pruned
    reads = [node.target for node in shared.graph.nodes if node.op == "get_attr"]
    assert reads == ["scales.1", "borrowed.weight", "scales.0"]
    attention = emitted("attentive").pruned.attn
    assert type(attention) is Place
    assert [name for name, _ in attention.named_parameters()] == [
        "in_proj_weight",
        "in_proj_bias",
        "out_proj.weight",
        "out_proj.bias",
    ]
    assert type(attention.out_proj) is nn.Linear


def test_a_module_called_twice_is_one_module():
    targets = [node.target for node in emitted("shared").pruned.graph.nodes if node.op == "call_module"]
    assert targets[:6] == ["first.0", "first.1", "first.2"] * 2


def test_random_modules_stand_at_their_names():
    noisy = emitted("noisy").pruned
    kinds = {name: type(module).__name__ for name, module in noisy.named_children()}
    assert kinds == {
        "conv": "Conv2d",
        "drop": "Dropout",
        "channels": "Dropout2d",
        "alpha": "AlphaDropout",
        "features": "FeatureAlphaDropout",
        "leak": "RReLU",
        "depth": "StochasticDepth",
        "silent": "Dropout",
        "dropout": "Dropout",
        "dropout_1": "FeatureDropout",
        "attention": "ScaledDotProductAttention",
    }
    assert (noisy.dropout.p, noisy.dropout_1.p, noisy.attention.dropout_p) == (0.25, 0.2, 0.3)
    assert noisy.depth is not emitted("noisy").model.depth


@pytest.mark.slow
def test_small_modules_say_their_probability():
    assert repr(FeatureDropout(0.25)) == "FeatureDropout(p=0.25)"
    assert repr(ScaledDotProductAttention(0.25)) == "ScaledDotProductAttention(dropout_p=0.25)"
    assert "lstm, has_biases=True, num_layers=2" in repr(emitted("recurrent").pruned.lstm)


class Borrower(nn.Module):
    """Uses a layer's weight in its own way, beside the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.conv.weight, self.conv.bias, padding=1)
        x = F.conv2d(x, self.conv.weight, self.conv.bias, stride=2, padding=1) + F.conv2d(
            x, self.conv.weight, None, stride=2, padding=1
        )
        norm = self.norm
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False)


def test_borrowed_parameters_are_the_layer_only_in_a_call_that_the_layer_would_make():
    x = torch.randn(2, 3, 8, 8)
    model = Borrower().eval()
    pruned = emit_of(model, x)
    kinds = [node.op for node in pruned.graph.nodes if "conv2d" in node.name or "batch_norm" in node.name]
    assert kinds == ["call_module", "call_function", "call_function", "call_function"]
    torch.testing.assert_close(pruned(x), model(x), rtol=0, atol=0)
    assert list(pruned.state_dict()) == list(model.state_dict())


class Grown(nn.Linear):
    """A subclass of a layer with parameters and computations of its own."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.down = nn.Parameter(torch.randn(2, 4))
        self.up = nn.Linear(2, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.up(F.dropout(F.linear(x, self.down), 0.1, self.training))


def test_a_subclass_becomes_its_plain_class_and_keeps_what_is_its_own():
    x = torch.randn(2, 4)
    model = nn.Sequential(Grown()).eval()
    pruned = emit_of(model, x)
    assert type(getattr(pruned, "0")) is nn.Linear
    assert list(pruned.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(pruned(x), model(x), rtol=0, atol=0)
    assert getattr(pruned, "0").dropout.p == 0.1


class Biasless(nn.Module):
    """Calls a layer without the bias that it has, and adds the bias later."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.linear.weight).relu() + self.linear.bias


def test_a_bias_used_elsewhere_is_not_given_to_the_layer():
    x = torch.randn(2, 4)
    model = Biasless()
    pruned = emit_of(model, x)
    torch.testing.assert_close(pruned(x), model(x), rtol=0, atol=0)
    assert type(pruned.linear) is Place


@pytest.mark.parametrize("name", ["code", "to_folder", "graph", "meta"])
def test_a_name_that_a_graph_module_needs_is_refused(name: str):
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module(name, nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self, name)(x)

    with pytest.raises(FxpruneError, match=rf"{name!r}, which a torch\.fx\.GraphModule needs"):
        emit_of(Clash(), torch.randn(2, 2))


# -- edited graphs -----------------------------------------------------------------------------------------------------


def edited(captured: Captured) -> fx.GraphModule:
    """Returns a copy of the captured graph that shares its tensors, for a test to edit."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(captured.module.graph, {}))
    for old, new in zip(captured.module.graph.nodes, graph.nodes, strict=True):
        new.meta = dict(old.meta)
    return fx.GraphModule(captured.module, graph)


def test_sliced_tensors_and_added_constants():
    x = torch.randn(4, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, groups=6, bias=False)).eval()
    captured = capture(model, (x,))
    sliced = edited(captured)
    keep = torch.tensor([0, 2, 5])
    for name in ("0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.weight"):
        path, _, leaf = name.rpartition(".")
        old = sliced.get_submodule(path)
        new = nn.Module()
        for attribute, tensor in (*old._parameters.items(), *old._buffers.items()):
            new.register_buffer(attribute, tensor if attribute != leaf else tensor.detach()[keep])
        sliced.set_submodule(path, new)
    sliced.register_buffer("order", torch.tensor([2, 0, 1]), persistent=False)
    conv = next(node for node in reversed(sliced.graph.nodes) if node.target is torch.ops.aten.conv2d.default)
    conv.args = (*conv.args[:6], 3)
    output = sliced.graph.output_node()
    with sliced.graph.inserting_before(output):
        order = sliced.graph.get_attr("order")
        picked = sliced.graph.call_function(torch.ops.aten.index_select.default, (conv, 1, order))
    output.args = ((picked,),)

    pruned = emit(captured, sliced)
    assert repr(getattr(pruned, "0")) == "Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1))"
    assert repr(getattr(pruned, "1")).startswith("BatchNorm2d(3, ")
    assert "3, 3, kernel_size=(3, 3), stride=(1, 1), groups=3" in repr(getattr(pruned, "2"))
    assert list(pruned.state_dict()) == list(model.state_dict())
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in pruned.parameters())
    expected = model(x)[:, keep][:, [2, 0, 1]]
    torch.testing.assert_close(pruned(x), expected)
    assert model[0].weight.shape[0] == 6


def test_a_removed_layer_is_gone_and_a_new_bias_is_the_layers():
    x = torch.randn(4, 4)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 4)).eval()
    captured = capture(model, (x,))
    sliced = edited(captured)
    norm = next(node for node in sliced.graph.nodes if node.target is torch.ops.aten.batch_norm.default)
    first = norm.args[0]
    norm.replace_all_uses_with(first)
    sliced.get_submodule("0").register_parameter("bias", nn.Parameter(torch.ones(4)))
    with sliced.graph.inserting_before(first):
        bias = sliced.graph.get_attr("0.bias")
    first.args = (*first.args[:2], bias)

    pruned = emit(captured, sliced)
    assert list(pruned.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    torch.testing.assert_close(pruned(x), model[2](model[0](x) + 1))
    assert list(model.state_dict())[:2] == ["0.weight", "1.weight"]


@pytest.mark.parametrize("name", but_slow(["resnet18", "vit", "llama", "layers"], quick=("layers",)))
def test_a_pruned_graph_is_emitted_as_real_layers(name):
    case = emitted(name)
    coupling = couple(case.captured)
    chance = np.random.default_rng(0)
    units = [unit for group in coupling.groups for unit in chance.permutation(group.units)[: len(group.units) // 3]]
    sliced = slice_graph(Selection(coupling, coupling.removed_mask(units)))
    pruned = emit(case.captured, sliced)
    with torch.no_grad():
        expected = sliced(*case.captured.call.flatten(case.args, dict(case.kwargs)))
        got = pytree.tree_leaves(pruned(*case.args, **case.kwargs))
    assert_equal([leaf for leaf in got if leaf is not None], [leaf for leaf in expected if leaf is not None])
    assert list(pruned.state_dict()) == list(case.pruned.state_dict())
    sizes, full = (sum(p.numel() for p in m.parameters()) for m in (pruned, case.pruned))
    assert sizes < full
    targets = [[node.target for node in m.graph.nodes if node.op == "call_module"] for m in (pruned, case.pruned)]
    assert targets[0] == targets[1]


@pytest.mark.slow
def test_a_tie_is_one_tensor_after_pruning() -> None:
    case = network("transformer")
    head, table = case.module.get_submodule("head"), case.module.get_submodule("embedding")
    assert head.weight is table.weight and head.weight.shape[1] < 12
    assert [n for n, _ in case.module.named_parameters() if n in ("head.weight", "embedding.weight")] == [
        "embedding.weight"
    ]
