"""Checkpoints of transformers: read without fxprune, strictly, and the same model; or nothing is written."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "use_cache": False}
IDS = torch.randint(2, 60, (2, 8), generator=torch.Generator().manual_seed(0))


@functools.cache
def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, **HEADS)).eval()


@functools.cache
def pruned(form: str, uniform: bool = False) -> Any:
    chosen: dict[str, Any] = {"form": form, "uniform": uniform, "method": "l2", "recover": None, "progress": False}
    return fxprune.compile(llama(), [{"input_ids": IDS}], 0.7, dynamic_shapes={}, **chosen)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS)["logits"]
    return found


def test_uniform_widths_are_the_stock_class(tmp_path: Path) -> None:
    home = pruned("module", True)
    before = home.config.to_dict()
    fxprune.to_pretrained(home, tmp_path / "small")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert type(again) is transformers.LlamaForCausalLM and again.config.hidden_size < 32
    torch.testing.assert_close(logits(again), logits(home), rtol=1e-4, atol=1e-5)
    assert not (tmp_path / "small" / "modeling_pruned.py").exists() and home.config.to_dict() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


def test_what_settings_cannot_say_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(fxprune.ExportError, match=r"where the settings.*make(?s:.)*uniform=True.*remote_code=True"):
        fxprune.to_pretrained(pruned("module"), tmp_path / "small")
    assert not list(tmp_path.iterdir())


def by_layer(kind: str, config: str, **settings: Any) -> Any:
    """Returns a model whose class reads settings of single layers, without key and value groups, as many in each layer."""
    made = getattr(transformers, config, None)
    if made is None:
        pytest.skip(f"transformers {transformers.__version__} has no {config}")
    torch.manual_seed(0)
    found = made(**SIZES | HEADS | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}, **settings)
    model = getattr(transformers, kind)(found).eval()
    chosen: dict[str, Any] = {"form": "module", "units": "kv_group", "recover": None, "progress": False}
    return fxprune.compile(model, [{"input_ids": IDS}], ratios={"*0.self_attn*": 0.5, "default": 0.0}, **chosen)


def test_settings_of_single_layers_hold_unequal_widths_where_the_class_reads_them(tmp_path: Path) -> None:
    kinds = {
        "layer_types": ["full_attention"] * 2,
        "mlp_layer_types": ["dense"] * 2,
        "sliding_window": 16,
        "pad_token_id": 0,
    }
    home = by_layer("Step3p7TextModel", "Step3p7TextConfig", **kinds)
    before = home.config.to_dict()
    fxprune.to_pretrained(home, tmp_path / "small")
    again = type(home).from_pretrained(tmp_path / "small")
    assert home.config.to_dict() == before
    assert [layer.self_attn.k_proj.out_features for layer in again.layers] == [16, 32]
    with torch.no_grad():
        torch.testing.assert_close(again(IDS)[0], home(IDS)[0], rtol=1e-4, atol=1e-5)
    said = json.loads((tmp_path / "small" / "config.json").read_text())
    assert said["num_key_value_heads"] == 2 and said["per_layer_config"] == {
        "1": {"num_attention_heads": 8, "num_key_value_heads": 4}
    }


def test_a_class_that_wants_layers_of_a_kind_alike_says_so(tmp_path: Path) -> None:
    few = {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    home = by_layer(
        "Gemma4ForCausalLM", "Gemma4TextConfig", layer_types=["full_attention"] * 2, global_head_dim=8, **few
    )
    with pytest.raises(fxprune.ExportError, match=r"single layers(?s:.)*not homogeneous(?s:.)*uniform=True"):
        fxprune.to_pretrained(home, tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_a_file_of_code_holds_unequal_widths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, folder = pruned("module"), tmp_path / "small"
    fxprune.to_pretrained(home, folder, remote_code=True)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    again = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(logits(again), logits(home), rtol=1e-4, atol=1e-5)
    assert type(again).__name__ == "PrunedLlamaForCausalLM" and again.lm_head.weight.shape == home.lm_head.weight.shape
    text = home.generate(IDS[:, :4], max_new_tokens=6, do_sample=False, use_cache=True)
    assert torch.equal(again.generate(IDS[:, :4], max_new_tokens=6, do_sample=False, use_cache=True), text)
    with pytest.raises(RuntimeError, match="mismatch"):  # who does not trust the code gets no other model
        transformers.LlamaForCausalLM.from_pretrained(folder)


def test_a_graph_goes_by_the_original(tmp_path: Path) -> None:
    graph = fxprune.compile(
        llama(), [{"input_ids": IDS}], ratios={"*mlp.*_proj": 0.5, "default": 0.0}, recover=None, progress=False
    )
    (tmp_path / "small").mkdir()
    fxprune.to_pretrained(graph, llama(), tmp_path / "small")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert again.config.intermediate_size == 32
    torch.testing.assert_close(logits(again), logits(graph), rtol=1e-4, atol=1e-5)
    with pytest.raises(fxprune.FxpruneError, match="a graph has no class"):
        fxprune.to_pretrained(graph, tmp_path / "other")


def test_a_trained_result_is_written_as_it_is(tmp_path: Path) -> None:
    home = fxprune.load(_saved(tmp_path), llama())
    with torch.no_grad():
        for parameter in home.parameters():
            parameter.mul_(1.5)
    fxprune.to_pretrained(home, tmp_path / "small")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    torch.testing.assert_close(logits(again), logits(home), rtol=1e-4, atol=1e-5)


def _saved(folder: Path) -> Path:
    fxprune.save(pruned("module", True), folder / "artifact")
    return folder / "artifact"


def test_the_users_directory_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(fxprune.ExportError, match="expected a new or empty directory"):
        fxprune.to_pretrained(pruned("module", True), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_another_model_is_never_written(tmp_path: Path) -> None:
    """Settings that make the shapes are not enough: here a head is wider, and its number smaller, than they say."""
    home = fxprune.load(_saved(tmp_path), llama())
    unequal = copy.deepcopy(pruned("module"))
    for layer in (*home.model.layers, *unequal.model.layers):
        layer.self_attn.scaling *= 2  # a number that no setting makes
    for code in (False, True):  # who reads it without the code would get another model
        with pytest.raises(fxprune.ExportError, match=r"reads is another model.*self_attn.scaling is 0.35"):
            fxprune.to_pretrained(home, tmp_path / "small", remote_code=code)
    fxprune.to_pretrained(unequal, tmp_path / "coded", remote_code=True)
    assert json.loads((tmp_path / "coded" / "config.json").read_text())["pruned_numbers"]


def test_what_is_no_model_of_transformers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fxprune.FxpruneError, match="expected a model that"):
        fxprune.to_pretrained(nn.Linear(2, 2), tmp_path / "small")
    own = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    home = fxprune.compile(own, [torch.randn(8, 6)], 0.7, form="module", progress=False)
    with pytest.raises(fxprune.FxpruneError, match="expected a model of transformers, got Sequential"):
        fxprune.to_pretrained(home, tmp_path / "small")
    with pytest.raises(TypeError, match="got 1"):
        fxprune.to_pretrained(home)  # type: ignore[call-overload]


def test_what_a_trainer_saves_of_uniform_widths_is_read_as_it_is(tmp_path: Path) -> None:
    home = pruned("module", True)
    assert home.config.rms_norm_eps == home.model.norm.variance_epsilon > 1e-6
    home.save_pretrained(tmp_path / "by-a-trainer")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "by-a-trainer")
    torch.testing.assert_close(logits(again), logits(home), rtol=0, atol=0)


def test_heads_that_settings_would_cut_otherwise_are_no_stock_class(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "vocab_size": 60,
    }
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).eval()
    home = fxprune.compile(
        model,
        [{"input_ids": IDS}],
        ratios={"default": 0.25},
        units=["channel", "head_dim"],
        method="l2",
        recover=None,
        form="module",
        progress=False,
    )
    attention = home.bert.encoder.layer[0].attention.self
    assert (attention.num_attention_heads, attention.attention_head_size) == (4, 6), "3 heads of 8 have the same shapes"
    with pytest.raises(fxprune.ExportError, match=r"no setting says .*num_attention_heads \(4, there 3\)"):
        fxprune.to_pretrained(home, tmp_path / "heads")
    assert not list(tmp_path.iterdir())


def test_a_file_keeps_the_settings(tmp_path: Path) -> None:
    home = pruned("module", True)
    fxprune.save(home, tmp_path / "kept")
    assert (tmp_path / "kept" / "numbers.json").exists()
    again = fxprune.load(tmp_path / "kept", llama())
    for name in ("hidden_size", "intermediate_size", "rms_norm_eps"):
        assert getattr(again.config, name) == getattr(home.config, name) != getattr(llama().config, name)
    fxprune.to_pretrained(again, tmp_path / "small")
