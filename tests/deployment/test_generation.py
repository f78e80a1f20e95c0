"""`transformers` generates text with a pruned causal language model behind it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import fxprune
from tests.models.libraries import transformer


def _model(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        settings = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 99, "use_cache": False}
        return transformer("LlamaForCausalLM", vocab_size=100, num_key_value_heads=2, **settings).eval()
    config = transformers.GPT2Config(
        vocab_size=100,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=99,
        use_cache=False,
    )
    return transformers.GPT2LMHeadModel(config).eval()


@functools.cache
def _pruned(kind: str) -> tuple[Any, Any]:
    """Returns a model and what is left of it, compiled once."""
    model = _model(kind)
    return model, fxprune.compile(model, _batches(), 0.6, progress=False)


def _batches(masked: bool = True) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(2, 98, (2, 10), generator=generator) for _ in range(2)]
    return [{"input_ids": x} | ({"attention_mask": torch.ones_like(x)} if masked else {}) for x in ids]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.slow
def test_what_lost_nothing_writes_what_the_original_writes(kind: str) -> None:
    model, batches = _model(kind), _batches()
    whole = fxprune.compile(model, batches, 1.0, progress=False)
    generator = fxprune.for_generation(whole, model)
    prompt = batches[0]["input_ids"][:, :4]
    for how in ({}, {"num_beams": 2}):
        expected = model.generate(prompt, max_new_tokens=6, do_sample=False, use_cache=False, **how)
        assert torch.equal(generator.generate(prompt, max_new_tokens=6, do_sample=False, **how), expected)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.slow
def test_a_pruned_model_writes_its_most_likely_token(kind: str) -> None:
    model, pruned = _pruned(kind)
    text = prompt = _batches()[0]["input_ids"][:1, :4]
    for _ in range(5):
        with torch.no_grad():
            logits = pruned(input_ids=text, attention_mask=torch.ones_like(text)).logits
        text = torch.cat([text, logits[:, -1:].argmax(-1)], 1)
    got = fxprune.for_generation(pruned, model).generate(prompt, max_new_tokens=5, do_sample=False)
    assert torch.equal(got, text[:, : got.shape[1]]) and got.shape[1] > 4


@pytest.mark.slow
def test_the_pruned_model_keeps_its_mode() -> None:
    model, pruned = _pruned("gpt2")
    for mode in (True, False):
        pruned.train(mode)
        generator = fxprune.for_generation(pruned, model)
        assert not generator.training and all(module.training is mode for module in pruned.modules())


@pytest.mark.slow
def test_padded_texts_need_a_mask() -> None:
    model = _model("llama")
    pruned = fxprune.compile(model, _batches(masked=False), 0.6, progress=False)
    generator = fxprune.for_generation(pruned, model)
    prompt = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    assert generator.generate(prompt[:, 2:], max_new_tokens=2, do_sample=False).shape[0] == 2
    with pytest.raises(fxprune.FxpruneError, match="no attention_mask"):
        generator.generate(prompt, attention_mask=(prompt != 0).long(), max_new_tokens=2)


@pytest.mark.slow
def test_what_cannot_generate_is_refused() -> None:
    model = _model("llama")
    with pytest.raises(fxprune.FxpruneError, match="causal language model of transformers, got Linear"):
        fxprune.for_generation(nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(fxprune.FxpruneError, match="takes input_ids, got one of input"):
        fxprune.for_generation(nn.Linear(2, 2), model)
