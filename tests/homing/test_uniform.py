"""One width for all layers that are made of one setting: the class makes all that is left again, of other settings."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.homing.constructing import constructed, settings_of
from fxprune.homing.terms import Computed, Place, Term
from tests.support.marks import but_slow

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def llama(**settings: Any) -> Any:
    sizes = SIZES | {"vocab_size": 64, "num_key_value_heads": 2, "use_cache": False, "max_position_embeddings": 64}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | settings))


def bert() -> Any:
    config = transformers.BertConfig(**SIZES, vocab_size=64, max_position_embeddings=64)
    return transformers.BertForSequenceClassification(config)


def gpt2() -> Any:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 64}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, use_cache=False))


def vit() -> Any:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, image_size=32, patch_size=8))


MODELS = {"llama": llama, "bert": bert, "gpt2": gpt2, "vit": vit}


def batch(name: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 3, 32, 32, generator=draw)}
    return {"input_ids": torch.randint(2, 60, (2, 8), generator=draw)}


@functools.cache
def pruned(name: str) -> tuple[Any, Any]:
    """Returns a model and what is left of it at 0.7, all layers of a kind alike."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    chosen = {
        "form": "module",
        "uniform": True,
        "method": "l2",
        "recover": None,
        "dynamic_shapes": {},
        "progress": False,
    }
    return model, fxprune.compile(model, [batch(name)], 0.7, **chosen)


@pytest.mark.parametrize("name", but_slow(MODELS, quick=["vit"]))
def test_the_stock_class_holds_what_is_left(name: str) -> None:
    model, home = pruned(name)
    assert type(home) is type(model) and 0.6 < home.report.params[1] / home.report.params[0] <= 0.7
    stock = type(home)(settings_of(home)).eval()
    stock.load_state_dict(home.state_dict())
    for key, value in stock(**batch(name)).items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(value, home(**batch(name))[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", but_slow(MODELS, quick=["vit"]))
def test_the_original_keeps_its_settings(name: str) -> None:
    model, home = pruned(name)
    assert model.config.to_dict() == MODELS[name]().config.to_dict()
    assert settings_of(model).to_dict() == model.config.to_dict()
    assert home.config is not model.config


def _filled(model: Any) -> dict[str, int]:
    return {str(steps[0]): value for steps, value in constructed(model).filled.items()}


def test_a_setting_that_is_none_is_filled_with_what_it_stands_for() -> None:
    torch.manual_seed(0)
    assert _filled(gpt2()) == {"n_inner": 128}


def test_heads_and_stream_go_in_step_where_the_width_of_a_head_is_their_quotient() -> None:
    home = pruned("bert")[1]
    assert home.config.hidden_size == 8 * home.config.num_attention_heads < 32


def test_heads_stay_where_the_class_only_wants_the_stream_to_be_their_multiple() -> None:
    home = pruned("llama")[1]
    assert home.config.hidden_size % 4 == 0 and home.config.num_attention_heads == 4 and home.config.hidden_size < 32


def test_integers_that_no_call_has_read_follow() -> None:
    """Groups of query heads are counted by the eager attention alone."""
    home = fxprune.compile(
        llama(num_key_value_heads=4).eval(),
        [batch("llama")],
        ratios={"*self_attn*": 0.5, "default": 0.0},
        units=("head",),
        form="module",
        uniform=True,
        method="l2",
        recover=None,
        dynamic_shapes={},
        progress=False,
    )
    attention = home.model.layers[0].self_attn
    assert (
        home.config.num_attention_heads == home.config.num_key_value_heads == 2 and attention.num_key_value_groups == 1
    )
    want = home(**batch("llama")).logits
    home.set_attn_implementation("eager")
    torch.testing.assert_close(home(**batch("llama")).logits, want, rtol=1e-4, atol=1e-5)


@dataclass
class Sizes:
    """Settings of a class of one's own."""

    width: int = 24
    inner: int | None = None
    layers: int = 2


class Own(nn.Module):
    """Layers of one width, whose inner width is four times that unless it is given."""

    def __init__(self, config: Sizes) -> None:
        super().__init__()
        self.config = config
        inner = config.inner if config.inner is not None else 4 * config.width
        self.embed, self.head = nn.Linear(6, config.width), nn.Linear(config.width, 3)
        self.ups = nn.ModuleList(nn.Linear(config.width, inner) for _ in range(config.layers))
        self.downs = nn.ModuleList(nn.Linear(inner, config.width) for _ in range(config.layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for up, down in zip(self.ups, self.downs, strict=True):
            x = x + down(up(x).relu())
        return self.head(x)


def test_a_class_of_ones_own_is_made_of_its_settings() -> None:
    torch.manual_seed(0)
    data = torch.randn(4, 6)
    home: Any = fxprune.compile(
        Own(Sizes()), [data], 0.6, form="module", uniform=True, method="l2", recover=None, progress=False
    )
    stock = Own(settings_of(home))
    stock.load_state_dict(home.state_dict())
    torch.testing.assert_close(stock(data), home(data))
    assert {layer.out_features for layer in home.ups} == {settings_of(home).inner}


@dataclass
class Stages:
    """Settings with a list."""

    widths: tuple[int, ...] = (16, 24)


class Staged(nn.Module):
    """Two layers for each width."""

    def __init__(self, config: Stages) -> None:
        super().__init__()
        self.config = config
        self.first = nn.ModuleList(nn.Linear(6, width) for width in config.widths)
        self.second = nn.ModuleList(nn.Linear(width, width) for width in config.widths)
        self.head = nn.ModuleList(nn.Linear(width, 3) for width in config.widths)

    def forward(self, x: Tensor) -> Tensor:
        layers = zip(self.first, self.second, self.head, strict=True)
        return sum((head(b(a(x).relu()).relu()) for a, b, head in layers), torch.zeros(()))


def test_a_setting_may_stand_in_a_list() -> None:
    torch.manual_seed(0)
    data = torch.randn(4, 6)
    home: Any = fxprune.compile(
        Staged(Stages()), [data], 0.6, form="module", uniform=True, method="l2", recover=None, progress=False
    )
    widths = settings_of(home).widths
    assert [layer.out_features for layer in (*home.first, *home.second)] == [*widths, *widths] != [16, 24, 16, 24]
    stock = Staged(settings_of(home))
    stock.load_state_dict(home.state_dict())
    torch.testing.assert_close(stock(data), home(data))


def test_terms_of_sizes_are_over_settings() -> None:
    found = constructed(Own(Sizes(inner=96)))
    inner, width = (Place("", ("config", name), value) for name, value in (("inner", 96), ("width", 24)))
    assert found.shapes["ups.0.weight"] == (inner, width) and found.shapes["head.weight"] == (3, width)
    quotient: Term = constructed(llama(head_dim=None)).shapes["model.layers.0.self_attn.q_proj.weight"][0]
    assert isinstance(quotient, Computed)


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))])
def test_a_class_without_settings_is_refused(model: nn.Module) -> None:
    with pytest.raises(fxprune.RestoreError, match=r"one object of settings, Sequential\.config"):
        fxprune.compile(model, [torch.randn(4, 6)], 0.6, form="module", uniform=True, progress=False)


def test_uniform_is_about_the_class() -> None:
    with pytest.raises(ValueError, match="give form='module' with it"):
        fxprune.compile(nn.Linear(2, 2), [torch.randn(4, 2)], 0.6, uniform=True)
    with pytest.raises(TypeError, match="uniform: expected True or False, got 3"):
        fxprune.compile(nn.Linear(2, 2), [torch.randn(4, 2)], 0.6, form="module", uniform=3)  # type: ignore[arg-type]
