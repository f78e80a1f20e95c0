"""GGUF files: what transformers, the format's own reader and llama.cpp find in them is the model; or nothing is written."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.storage import gguf_file
from fxprune.storage.gguf_names import stored
from tests.support.marks import but_slow

transformers = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "use_cache": False}
IDS = torch.randint(2, 60, (2, 8), generator=torch.Generator().manual_seed(0))
UNIFORM: dict[str, Any] = {"budget": 0.7, "uniform": True}
UNEQUAL: dict[str, Any] = {"ratios": {"*layers.0.self_attn*": 0.5, "*layers.1.mlp.*": 0.3, "default": 0.0}}
NARROW: dict[str, Any] = {"uniform": True, "ratios": {"*mlp.*": 0.3, "default": 0.0}}
LONG = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE = LONG | {"rope_theta": 10000.0, "original_max_position_embeddings": 32}


def language(kind: str = "Llama", **settings: Any) -> Any:
    """Returns a model with weights so large that attention is not flat."""
    config = getattr(transformers, f"{kind}Config")(**SIZES, **HEADS, **settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.3)
    return model


def smaller(model: Any, **chosen: Any) -> Any:
    defaults: dict[str, Any] = {
        "form": "module",
        "method": "l2",
        "recover": None,
        "progress": False,
        "dynamic_shapes": {},
    }
    return fxprune.compile(model, [{"input_ids": IDS}], **{**defaults, **chosen})


@functools.cache
def uniform(kind: str = "Llama") -> Any:
    return smaller(language(kind), **UNIFORM)


@functools.cache
def unequal() -> Any:
    return smaller(language(), **UNEQUAL)


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids)["logits"]
    return found


def fields(path: Path) -> dict[str, Any]:
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file, ``[...]``, as it has them."""
    found = gguf.GGUFReader(path).tensors
    return {x.name: torch.from_numpy(np.array(gguf.dequantize(x.data, x.tensor_type))) for x in found}


@pytest.mark.parametrize("kind", but_slow(["Llama", "Qwen2"], quick=["Llama"]))
def test_one_width_for_all_layers_is_read_by_transformers(kind: str, tmp_path: Path) -> None:
    home = uniform(kind)
    fxprune.to_gguf(home, tmp_path / "small.gguf")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf")
    assert type(again) is type(home) and sum(map(Tensor.numel, again.parameters())) == sum(
        map(Tensor.numel, home.parameters())
    )
    torch.testing.assert_close(logits(again), logits(home), rtol=1e-5, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["small.gguf"]


def test_widths_that_differ_by_layer_are_lists(tmp_path: Path) -> None:
    home, path = unequal(), tmp_path / "small.gguf"
    fxprune.to_gguf(home, path)
    said = fields(path)
    assert said["general.architecture"] == "deci"
    assert said["deci.attention.head_count"] == [2, 4] and said["deci.attention.head_count_kv"] == [1, 2]
    assert said["deci.feed_forward_length"] == [64, home.model.layers[1].mlp.down_proj.weight.shape[1]] != [64, 64]
    assert said["deci.embedding_length"] == 32 and said["deci.attention.key_length"] == 8
    assert said["tokenizer.ggml.model"] == "none" and said["deci.vocab_size"] == 64


def test_tensors_are_as_llama_cpp_wants_them(tmp_path: Path) -> None:
    """Each pair of dimensions that rotate together lies side by side there; one is half a head from the other here."""
    home, path = unequal(), tmp_path / "small.gguf"
    fxprune.to_gguf(home, path)
    found, own = tensors(path), home.state_dict()
    assert len(found) == len(own)
    for layer, heads in enumerate([(2, 1), (4, 2)]):
        for name, number in zip("qk", heads, strict=True):
            weight = own[f"model.layers.{layer}.self_attn.{name}_proj.weight"]
            paired = weight.reshape(number, 2, 4, 32).transpose(1, 2).reshape(-1, 32)
            assert torch.equal(found[f"blk.{layer}.attn_{name}.weight"], paired) and not torch.equal(paired, weight)
        assert torch.equal(found[f"blk.{layer}.ffn_down.weight"], own[f"model.layers.{layer}.mlp.down_proj.weight"])
    assert torch.equal(found["output.weight"], own["lm_head.weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_matrices_keep_their_dtype_and_vectors_are_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    home = smaller(language(tie_word_embeddings=True), **UNEQUAL).to(dtype)
    fxprune.to_gguf(home, tmp_path / "half.gguf")
    kinds = {x.name: x.tensor_type.name for x in gguf.GGUFReader(tmp_path / "half.gguf").tensors}
    assert {kinds.pop("output_norm.weight"), kinds["blk.0.ffn_norm.weight"]} == {"F32"}
    assert kinds["token_embd.weight"] == {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    assert "output.weight" not in kinds and "rope_freqs.weight" not in kinds  # tied; and rounding is no factor
    assert torch.equal(tensors(tmp_path / "half.gguf")["token_embd.weight"], home.lm_head.weight.float())


def test_a_graph_goes_by_the_original(tmp_path: Path) -> None:
    model = language()
    graph = smaller(model, form="graph", ratios={"*layers.1.mlp.*_proj": 0.5, "default": 0.0})
    fxprune.to_gguf(graph, model, tmp_path / "small.gguf")
    assert fields(tmp_path / "small.gguf")["deci.feed_forward_length"] == [64, 32]
    with pytest.raises(fxprune.FxpruneError, match="to_gguf: a graph has no class"):
        fxprune.to_gguf(graph, tmp_path / "other.gguf")


def with_tokens(path: Path, tokens: int) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(tokens)])
    writer.add_token_types([1] * tokens)
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def test_a_tokenizer_comes_from_another_file(tmp_path: Path) -> None:
    source = with_tokens(tmp_path / "tokens.gguf", 64)
    fxprune.to_gguf(unequal(), tmp_path / "small.gguf", tokenizer_from=source)
    want = {key: value for key, value in fields(source).items() if key.startswith("tokenizer.")}
    assert want == {
        key: value for key, value in fields(tmp_path / "small.gguf").items() if key.startswith("tokenizer.")
    }
    assert want["tokenizer.ggml.add_bos_token"] is True and len(want["tokenizer.ggml.tokens"]) == 64


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    source = with_tokens(tmp_path / "tokens.gguf", 60)
    with pytest.raises(fxprune.ExportError, match="expected 64 tokens, as the model has, got 60"):
        fxprune.to_gguf(unequal(), tmp_path / "small.gguf", tokenizer_from=source)
    (tmp_path / "no.gguf").write_text("no")
    with pytest.raises(fxprune.ExportError, match="cannot be read as a GGUF file"):
        fxprune.to_gguf(unequal(), tmp_path / "small.gguf", tokenizer_from=tmp_path / "no.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no.gguf", "tokens.gguf"]


def other_eps(home: Any) -> None:
    home.model.layers[1].input_layernorm.variance_epsilon = 0.5


def other_scale(home: Any) -> None:
    home.model.layers[1].self_attn.scaling *= 2


def other_activation(home: Any) -> None:
    home.config.hidden_act = "gelu"


def another_tensor(home: Any) -> None:
    home.model.register_buffer("extra", torch.zeros(3))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (other_eps, r"one rms_norm_eps for all layers, but model.*variance_epsilon is .* and model"),
        (other_scale, r"cannot say model.layers.1.self_attn.scaling: its readers take"),
        (other_activation, r"does not say hidden_act: its readers take 'silu', got 'gelu'"),
        (another_tensor, r"no name for model.extra, \[3\]"),
        (nn.Module.double, r"expected float32, float16 or bfloat16, got float64"),
        (lambda home: home.to("meta"), r"lies on the meta device"),
    ],
)
def test_what_the_format_cannot_say_is_refused(change: Callable[[Any], Any], told: str, tmp_path: Path) -> None:
    home = copy.deepcopy(unequal())
    change(home)
    with pytest.raises(fxprune.ExportError, match=told):
        fxprune.to_gguf(home, tmp_path / "small.gguf")
    assert not list(tmp_path.iterdir())


def test_kinds_of_which_llama_cpp_reads_one_width_are_refused_with_several(tmp_path: Path) -> None:
    home = smaller(language("Qwen2"), **UNEQUAL)
    with pytest.raises(fxprune.ExportError, match=r"one width for all layers of 'qwen2', got .*\[.*\]: .*uniform=True"):
        fxprune.to_gguf(home, tmp_path / "small.gguf")
    assert not list(tmp_path.iterdir())


def test_kinds_that_the_tables_do_not_know_are_refused(tmp_path: Path) -> None:
    home = smaller(language("GPTNeoX"), budget=0.7)
    with pytest.raises(fxprune.ExportError, match=r"expected a kind of model that GGUF.*llama.*; got 'gpt_neox'"):
        fxprune.to_gguf(home, tmp_path / "small.gguf")


def test_positions_that_no_factor_says_are_refused(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16}
    home = smaller(language(rope_parameters=rope), **UNEQUAL)
    with pytest.raises(fxprune.ExportError, match="positions of type 'yarn'"):
        fxprune.to_gguf(home, tmp_path / "small.gguf")


def test_how_much_of_a_head_rotates_is_said(tmp_path: Path) -> None:
    """Readers of transformers take a share for granted; llama.cpp rotates all that it is not told."""
    fxprune.to_gguf(smaller(language("StableLm"), **NARROW), tmp_path / "small.gguf")
    said = fields(tmp_path / "small.gguf")
    assert said["stablelm.rope.dimension_count"] == 2 and said["stablelm.attention.key_length"] == 8
    assert said["stablelm.rope.freq_base"] == 10000.0


def test_several_frequencies_are_refused(tmp_path: Path) -> None:
    config = transformers.Gemma3TextConfig(**SIZES, **HEADS, head_dim=256, query_pre_attn_scalar=256)
    home = smaller(transformers.Gemma3ForCausalLM(config).eval(), **NARROW)
    with pytest.raises(fxprune.ExportError, match="expected rotary positions of one rope_theta, got"):
        fxprune.to_gguf(home, tmp_path / "small.gguf")


def test_the_old_file_stays_until_the_new_one_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "small.gguf", gguf_file.write
    path.write_text("old")

    def damaged(contents: Any, draft: Path) -> None:
        write(contents, draft)
        with draft.open("r+b") as file:
            file.seek(-8, 2)
            file.write(bytes(8))

    monkeypatch.setattr(gguf_file, "write", damaged)
    with pytest.raises(fxprune.ExportError, match="what was written has another"):
        fxprune.to_gguf(unequal(), path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
    monkeypatch.undo()
    fxprune.to_gguf(unequal(), path)
    assert path.read_bytes()[:4] == b"GGUF" and len(list(tmp_path.iterdir())) == 1


def test_paths_and_models_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(fxprune.ExportError, match="expected a file name, got a directory"):
        fxprune.to_gguf(unequal(), tmp_path)
    with pytest.raises(fxprune.ExportError, match="there is no such directory"):
        fxprune.to_gguf(unequal(), tmp_path / "no" / "small.gguf")
    own = fxprune.compile(
        nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)), [torch.randn(8, 6)], 0.7, form="module"
    )
    with pytest.raises(fxprune.FxpruneError, match="to_gguf: expected a model of transformers, got Sequential"):
        fxprune.to_gguf(own, tmp_path / "small.gguf")


@pytest.mark.parametrize(
    ("read", "shape"),
    [
        (lambda x: x, (3, 4)),
        (lambda x: x[[2, 0, 1]], (3, 4)),
        (lambda x: x.T, (3, 4)),
        (lambda x: np.expand_dims(x, 1), (3, 1, 4)),
        (lambda x: x - 1, (5,)),
        (lambda x: x[::-1] + 2, (5,)),
    ],
)
def test_what_a_reader_rearranges_is_undone(read: Callable[[Any], Any], shape: tuple[int, ...]) -> None:
    tensor = torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(0)).float()
    found = stored("weight", tensor, read)
    assert torch.equal(torch.from_numpy(np.array(read(found.numpy()))), tensor)


@pytest.mark.parametrize("read", [lambda x: np.log(-x), lambda x: 2 * x, lambda x: x[:1], lambda x: x * 0])
def test_what_a_reader_computes_is_refused(read: Callable[[Any], Any]) -> None:
    with pytest.raises(fxprune.ExportError, match=r"weight, \[6\]: its readers compute"):
        stored("weight", torch.randn(6), read)


IN_LLAMA_CPP: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("Llama", {}, UNEQUAL),
    ("Llama", {"tie_word_embeddings": True, "rope_parameters": ROPE}, UNEQUAL),
    ("Llama", {}, UNIFORM),
    ("Qwen2", {}, UNIFORM),
    ("Qwen3", {"head_dim": 8}, NARROW),
    ("StableLm", {}, NARROW),
    ("Phi3", {"pad_token_id": 0}, UNIFORM),
    ("Nemotron", {}, NARROW),
]


@pytest.mark.parametrize(("kind", "settings", "chosen"), but_slow(IN_LLAMA_CPP, IN_LLAMA_CPP[:1]))
def test_llama_cpp_computes_the_same(kind: str, settings: Any, chosen: Any, tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    home = smaller(language(kind, **settings), **chosen)
    fxprune.to_gguf(home, tmp_path / "small.gguf")
    exact = {"type_k": 0, "type_v": 0, "n_threads": 1, "n_ctx": 64, "verbose": False}  # float32 in the cache
    runner = llama_cpp.Llama(str(tmp_path / "small.gguf"), logits_all=True, **exact)
    runner.eval(IDS[0].tolist())
    want = logits(home)[0]
    got = torch.from_numpy(np.array(runner.scores[: len(want)]))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
