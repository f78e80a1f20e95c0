"""A language model on the command line: in its own class, then a checkpoint of transformers and a GGUF file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.cli import complaint, done, run

transformers = pytest.importorskip("transformers")

NET = ("random:4x8:60", "--method", "l2", "--recover", "none", "--budget", "0.7", "-q")


def _saved(here: Path) -> None:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 60,
    }
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, num_key_value_heads=2)).eval()
    model.save_pretrained(here / "lm")


def test_a_language_model_becomes_a_checkpoint_and_a_file(here: Path) -> None:
    pytest.importorskip("gguf")
    _saved(here)
    dense = ("--model", "transformers:./lm", "--weights", "DEFAULT")
    form = ("--form", "module", "--uniform")
    done("compile", *dense[1:], "--calib", *NET, *form, "--out", "out")
    assert "name the original architecture with --model" in complaint("export", "out", "out.onnx")
    done("export", "out", "small/", *dense)
    again = transformers.AutoModelForCausalLM.from_pretrained(here / "small")
    assert again.config.hidden_size < 32 and not (here / "small" / "modeling_pruned.py").exists()
    done("export", "out", "small.gguf", *dense)
    assert (here / "small.gguf").stat().st_size > 1000


def test_widths_that_settings_cannot_say_want_a_word(here: Path) -> None:
    _saved(here)
    dense = ("--model", "transformers:./lm", "--weights", "DEFAULT")
    done("compile", *dense[1:], "--calib", *NET, "--out", "graph")
    assert "--model says of which class" in complaint("export", "graph", "small/")
    told = complaint("export", "graph", "small/", *dense)
    assert "--uniform" in told or "--form module" in told
    assert not (here / "small").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("compile", "mine:net", "--calib", "random:2x3x8x8", "--budget", "0.5", "--out", "out", "--uniform"),
        ("export", "out", "out.onnx", "--remote-code"),
        ("export", "out", "out/", "--tokenizer-from", "lm.gguf"),
    ],
)
def test_words_that_do_not_go_together_are_a_wrong_usage(here: Path, words: tuple[str, ...]) -> None:
    assert run(*words).exit_code == 2
