"""`fxprune generate`: a text goes on, by the pruned model in its own class."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import fxprune
from tests.support.cli import complaint, done, misuse

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

DENSE = ("--model", "transformers:./lm")


@pytest.fixture
def saved(here: Path) -> Path:
    """A language model with a tokenizer, and pruned in its own class."""
    words = {f"w{index}": index for index in range(60)}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, unk_token="w0").save_pretrained(here / "lm")
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64, vocab_size=60
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(here / "lm")
    how = ("--calib", "random:4x8:60", "--method", "l2", "--recover", "none", "--budget", "0.7", "--form", "module")
    done("compile", *DENSE[1:], "--weights", "DEFAULT", *how, "--out", "small", "-q")
    return here


def test_a_text_goes_on(saved: Path) -> None:
    found = done("generate", "small", *DENSE, "--prompt", "w3 w4", "--length", "6")
    words = found.stdout.split()
    assert words[:2] == ["w3", "w4"] and len(words) == 8
    assert re.search(r"^fxprune: 6 tokens in .* s, .* tokens per second$", found.stderr, re.MULTILINE)
    data = json.loads(done("generate", "small", *DENSE, "--tokens", "3,4", "--length", "6", "--json", "-q").stdout)
    assert [f"w{token}" for token in data["tokens"]] == words
    assert data["text"] is None and data["written"] == 6 and data["tokens_per_second"] > 0
    dense = transformers.LlamaForCausalLM.from_pretrained(saved / "lm")
    pruned = fxprune.load(saved / "small", dense)
    expected = pruned.generate(torch.tensor([[3, 4]]), max_new_tokens=6, do_sample=False)
    assert data["tokens"] == expected[0].tolist()
    drawn = ("generate", "small", *DENSE, "--tokens", "3,4", "--length", "6", "--temperature", "5", "-q", "--seed")
    assert done(*drawn, "1").stdout == done(*drawn, "1").stdout != done(*drawn, "2").stdout


def test_what_it_wants(saved: Path) -> None:
    assert "give --model MODEL" in misuse("generate", "small", "--prompt", "w3")
    assert "one of '--prompt' and '--tokens'" in misuse("generate", "small", *DENSE)
    assert "0 to 59" in misuse("generate", "small", *DENSE, "--tokens", "3,60")
    assert "whole numbers" in misuse("generate", "small", *DENSE, "--tokens", "3,four")
    assert "one token at least" in complaint("generate", "small", *DENSE, "--prompt", "")


def test_a_graph_says_what_to_do(here: Path) -> None:
    done("compile", "mine:net", "--weights", "none", "--calib", "mine:loader", "--budget", "0.6", "--out", "out", "-q")
    said = complaint("generate", "out", "--prompt", "once")
    assert "--form module, or write a checkpoint, `fxprune export out out/ --model MODEL`" in said
