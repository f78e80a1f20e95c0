"""Capture as a whole: the graph computes what the model computes, and the model is left as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from fxprune._base.errors import CaptureError, FxpruneError
from fxprune.capturing.captured import Captured, TensorInfo, capture
from fxprune.coupling.interpreter import couple
from tests.models.fn import Fn
from tests.models.libraries import swin, transformer, vit
from tests.support.capturing import (
    assert_equal,
    assert_untouched,
    attributes,
    check,
    copied,
    ops,
    run,
    snapshot,
    tensors,
)
from tests.support.marks import but_slow
from tests.support.weights import randomise

tv = torchvision.models


def image(batch: int, size: int = 32) -> tuple[Tensor, ...]:
    return (torch.randn(batch, 3, size, size, dtype=torch.float64),)


def vision(model: Callable[[], nn.Module], size: int = 32) -> tuple[Callable[[], nn.Module], Callable[[int], Any]]:
    return model, lambda batch: (image(batch, size), {})


def tokens(name: str, length: int = 7, **settings: Any) -> tuple[Callable[[], nn.Module], Any]:
    return partial(transformer, name, vocab_size=64, **settings), lambda batch: (
        (),
        {"input_ids": torch.randint(3, 64, (batch, length + batch))},
    )


def timm(name: str, **settings: Any) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, **settings)


MODELS = {
    "resnet18": vision(lambda: tv.resnet18()),
    "densenet": vision(lambda: tv.DenseNet(8, (2, 2), 8, num_classes=7)),
    "mobilenet_v3": vision(lambda: tv.mobilenet_v3_small()),
    "shufflenet": vision(lambda: tv.shufflenet_v2_x0_5()),
    "vit": vision(lambda: vit(image_size=32)),
    "swin": vision(lambda: swin(stochastic_depth_prob=0.2)),
    "swin_v2": vision(
        lambda: swin(
            block=tv.swin_transformer.SwinTransformerBlockV2, downsample_layer=tv.swin_transformer.PatchMergingV2
        )
    ),
    "timm_vit": vision(
        timm("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, drop_path_rate=0.1)
    ),
    "bert": tokens("BertModel"),
    "llama": tokens("LlamaForCausalLM", num_key_value_heads=2, use_cache=False),
    "bloom": tokens("BloomModel", n_layer=2, n_head=4, use_cache=False),
}


@pytest.fixture(scope="module", params=but_slow(MODELS, quick=("vit", "densenet"), every=3))
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, Captured, Callable[[int], Any], dict[str, Any]]:
    build, call = MODELS[request.param]
    torch.manual_seed(0)
    model = randomise(build()).double()
    model.eval()
    next(iter(model.children())).train()  # flags that differ from module to module
    before = snapshot(model)
    args, kwargs = call(2)
    return model, capture(model, args, kwargs), call, before


def test_graph_equals_model_at_every_batch_size(pair):
    model, captured, call, _ = pair
    model = copy.deepcopy(model).eval()
    for batch in (1, 2, 5):
        args, kwargs = call(batch)
        with torch.no_grad():
            expected = model(*copied(args), **kwargs)
        assert_equal(expected, run(captured, *args, **kwargs))


def test_model_is_left_as_it_was(pair):
    model, _, _, before = pair
    assert_untouched(model, before)


def test_attributes_are_the_models_own_tensors(pair):
    model, captured, _, _ = pair
    own = tensors(model)
    for name, tensor in tensors(captured.module).items():
        assert tensor is own.get(name, tensor)
    assert set(dict(captured.module.named_parameters())) <= set(own)
    assert len(attributes(captured)) == len(set(attributes(captured)))


def test_normal_form(pair):
    _, captured, _, _ = pair
    found = ops(captured)
    gone = ("view", "_unsafe_view", "flatten", "unflatten", "chunk", "split.", "unbind", "alias", "detach", "clone")
    assert not [op for op in found if op.startswith((*gone, "_assert", "lift", "to.device", "relu_", "add_"))]
    for node in captured.module.graph.nodes:
        assert node.kwargs.get("device") is None or isinstance(node.kwargs["device"], torch.fx.Node)
        assert isinstance(node.meta["module"], str)
        assert "val" not in node.meta


def test_info_covers_every_node_with_primes_for_dynamic_sizes(pair):
    _, captured, _call, _ = pair
    assert captured.info.keys() == set(captured.module.graph.nodes)
    assert captured.batch == (10007, 2)
    placeholder = next(iter(captured.module.graph.nodes))
    while placeholder.op != "placeholder":
        placeholder = placeholder.next
    info = captured.info[placeholder]
    assert isinstance(info, TensorInfo)
    assert (info.shape[0], info.example[0]) == (10007, 2)
    assert info.example == tuple(captured.example[0].shape)


def test_graph_can_be_copied_and_pickled(pair):
    _, captured, call, _ = pair
    args, kwargs = call(3)
    for module in (copy.deepcopy(captured.module), pickle.loads(pickle.dumps(captured.module))):
        with torch.no_grad():
            outputs = module(*captured.call.flatten(args, kwargs))
        assert_equal(run(captured, *args, **kwargs), captured.call.unflatten(outputs))


def test_what_refers_to_a_graph_s_nodes_is_not_copied():
    captured = capture(small(), (torch.randn(3, 6).double(),))
    for value in (captured, couple(captured)):
        for way in (copy.deepcopy, pickle.dumps):
            with pytest.raises(
                FxpruneError, match=rf"a {type(value).__name__} refers to the nodes of a torch.fx graph"
            ):
                way(value)


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 4)).double()


def test_exported_program():
    model, x = small().eval(), torch.randn(3, 6, dtype=torch.float64)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    captured = capture(program)
    assert captured.batch == (10007, 3)
    assert captured.module.get_parameter("0.weight") is program.state_dict["0.weight"]
    assert captured.persistent == set(model.state_dict())
    y = torch.randn(5, 6, dtype=torch.float64)
    assert_equal(model(y), run(captured, y))


def test_exported_program_of_two_arguments_keeps_their_names():
    model = nn.Bilinear(4, 5, 3)
    captured = capture(torch.export.export(model, (torch.randn(2, 4), torch.randn(2, 5))))
    assert list(captured.call.signature.parameters) == ["input1", "input2"]
    assert captured.batch == (1, 1)


def test_graph_module():
    model = torch.fx.symbolic_trace(small().eval())
    check(model, torch.randn(3, 6, dtype=torch.float64), others=((torch.randn(1, 6, dtype=torch.float64),),))


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_wrapped_model_is_captured_under_its_own_names(wrap):
    model = small().eval()
    captured = capture(wrap(model), (torch.randn(3, 6, dtype=torch.float64),))
    assert captured.model is model
    assert captured.module.get_parameter("0.weight") is model[0].weight


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype(dtype):
    captured = capture(small().to(dtype), (torch.randn(3, 6).to(dtype),))
    node = captured.module.graph.output_node().prev
    assert captured.info[node] == TensorInfo((10007, 4), (3, 4), dtype)


@pytest.mark.slow
def test_meta_device():
    with torch.device("meta"):
        model, x = small(), torch.randn(3, 6, dtype=torch.float64)
    captured = capture(model, (x,))
    assert captured.module(x)[0].shape == (3, 4)
    assert captured.module.get_parameter("0.weight").is_meta


def test_unused_parameters_are_named():
    captured = check(
        Fn(lambda self, x: self.used(x), used=nn.Linear(4, 4), spare=nn.Linear(4, 4)),
        torch.randn(2, 4, dtype=torch.float64),
    )
    assert captured.unused == {"spare.weight", "spare.bias"}
    assert attributes(captured) == ["used.weight", "used.bias"]


def test_failed_capture_leaves_the_model_as_it_was():
    model = Fn(lambda self, x: self.lin(x) if self.lin(x).sum() > 0 else x, lin=nn.Linear(4, 4))
    model.lin.eval()
    before = snapshot(model)
    fast = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(CaptureError):
        capture(model, (torch.randn(2, 4),))
    assert_untouched(model, before)
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_attributes_that_forward_leaves_behind_are_removed():
    def forward(self: Any, x: Tensor) -> Tensor:
        self.seen = x
        self.cache["x"] = x
        self.log[0] = x
        return self.lin(x)

    model = Fn(forward, lin=nn.Linear(4, 4))
    model.cache = {"a": 1}
    model.log = [None]
    before = snapshot(model)
    capture(model, (torch.randn(2, 4),))
    assert_untouched(model, before)
    assert model.cache == {"a": 1}
    assert model.log == [None]


@pytest.mark.filterwarnings("error::UserWarning")
def test_recurrent_layers_keep_their_weights():
    lstm = nn.LSTM(4, 4, batch_first=True)
    capture(Fn(lambda self, x: self.lstm(x)[0], lstm=lstm), (torch.randn(2, 3, 4),))
    assert all(a is b for a, b in zip(lstm._flat_weights, lstm.parameters(), strict=True))


def test_norms_and_attention_stay_whole() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    captured = capture(layer, (torch.randn(2, 5, 8),))
    ops = [str(node.target) for node in captured.module.graph.nodes if node.op == "call_function"]
    assert ops.count("aten.layer_norm.default") == 2
    assert ops.count("aten.scaled_dot_product_attention.default") == 1
    assert not any("softmax" in op or "native" in op or "rsqrt" in op for op in ops)


@pytest.mark.parametrize("name", ["class", "in", "ﬁeld", 'say "hi"', "it's", "a\\b", "a\nb"])
def test_names_that_no_code_can_be_written_with_are_refused(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({name: nn.Linear(4, 4)}))
    calling = Fn(lambda m, x: m.net[1][name](m.net[0](x)), net=model)
    with pytest.raises(CaptureError, match=r"which torch\.fx cannot write code with: rename it"):
        capture(calling.eval(), (torch.randn(2, 4),))


TRANSFORMS: dict[str, Any] = {
    "vmap": lambda h: torch.vmap(lambda row: row * 2 + row.sin())(h),
    "grad": lambda h: h + torch.func.grad(lambda given: (given**3).sum())(h),
    "jvp": lambda h: torch.func.jvp(torch.sin, (h,), (h,))[1],
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_functions_are_refused_by_name(name: str) -> None:
    model = Fn(lambda m, x: m.o(TRANSFORMS[name](m.a(x))), a=nn.Linear(6, 8), o=nn.Linear(8, 3))
    with pytest.raises(CaptureError, match=r"a transform of torch\.func .* compile the modules before and after it"):
        capture(model, (torch.randn(5, 6),))


@pytest.mark.parametrize(
    ("args", "kwargs", "said"),
    [
        (torch.randn(2, 4), None, r"args: expected a tuple of arguments, such as \(x,\), got float32 \[2, 4\]"),
        ({"x": torch.randn(2, 4)}, None, r"args: expected a tuple of arguments, such as \(x,\), got {'x'"),
        ((torch.randn(2, 4),), torch.randn(2, 4), r"kwargs: expected a mapping from names to arguments, got float32"),
        ((), (torch.randn(2, 4),), r"kwargs: expected a mapping from names to arguments, got \(tensor"),
    ],
)
def test_a_call_is_a_tuple_and_a_mapping(args, kwargs, said):
    with pytest.raises(CaptureError, match=said):
        capture(nn.Linear(4, 2), args, kwargs)
