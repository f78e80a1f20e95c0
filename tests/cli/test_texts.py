"""Texts and tables as calibration data of a transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fxprune
from fxprune.cli.data import load_data
from fxprune.cli.models import make
from fxprune.cli.specs import DataSpec, ModelSpec
from tests.support.cli import complaint, done, misuse


def words_of(folder: Path) -> Any:
    """Writes a tokenizer of five words into a folder, and returns transformers."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "one", "two", "three", "four", "five"])}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(
        folder
    )
    return transformers


def bert(here: Path) -> Path:
    """Returns a folder with a small BERT and its tokenizer."""
    folder = here / "bert"
    transformers = words_of(folder)
    config = transformers.BertConfig(
        vocab_size=7,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=2,
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_texts_and_tables_for_a_transformer(here: Path) -> None:
    folder = bert(here)
    (here / "texts.txt").write_text("one two three\n\nfour\nfive one one two\n")
    (here / "texts.csv").write_text("sentence,answer\none two,yes\nthree,no\nfour five one,yes\n")
    model = make(ModelSpec(spec=f"transformers:{folder}", weights="DEFAULT"))
    assert type(model.model).__name__ == "BertForSequenceClassification"
    (batch,) = load_data(DataSpec(source="texts.txt"), model)
    assert batch["input_ids"].shape == (3, 4) and int(batch["attention_mask"].sum()) == 8
    spec = DataSpec(source="texts.csv", column="sentence", label_column="answer", batch_size=2)
    labels = torch.cat([batch["labels"] for batch in load_data(spec, model)])
    assert sorted(labels.tolist()) == [0, 1, 1]
    argv = ("compile", f"transformers:{folder}", "--weights", "DEFAULT", "--calib", "texts.csv", "--column", "sentence")
    done(*argv, "--label-column", "answer", "--method", "taylor", "--budget", "0.8", "--out", "out", "-q")
    pruned = fxprune.load(here / "out")
    assert pruned(**{k: v for k, v in batch.items() if k != "labels"})["logits"].shape == (3, 2)
    assert "did you mean sentence" in complaint(*argv[:-1], "sentences", "--budget", "0.8", "--out", "more")
    assert "does not write text" in complaint(*argv, "--pack", "8", "--budget", "0.8", "--out", "more")
    assert "which column" in complaint(*argv[:-2], "--budget", "0.8", "--out", "more")
    kind = ("transformers:distilbert", "--config", "n_layers=1")
    assert "--tokenizer" in complaint("compile", *kind, "--calib", "texts.txt", "--budget", "0.8", "--out", "more")
    assert "did you mean num_hidden_layers" in misuse("explain", "transformers:bert", "--config", "hidden_layers=1")


def test_texts_are_for_transformers_alone(here: Path) -> None:
    (here / "some.txt").write_text("one\n")
    assert "transformers" in complaint("compile", "mine:net", "--calib", "some.txt", "--budget", "0.5", "--out", "out")


def test_a_language_model_reads_joined_texts_in_pieces(here: Path) -> None:
    folder = here / "lm"
    transformers = words_of(folder)
    sizes = {"vocab_size": 7, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=20)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (here / "texts.txt").write_text("one two three\n\nfour\nfive one one two\n" * 12)
    (here / "classes.csv").write_text("text,class\none two,1\n")
    made = make(ModelSpec(spec=f"transformers:{folder}", weights="DEFAULT"))
    (batch,) = load_data(DataSpec(source="texts.txt"), made)  # 96 tokens, and 20 positions
    assert batch["input_ids"].shape == (4, 20) and torch.equal(batch["labels"], batch["input_ids"])
    assert {len(x["input_ids"]) for x in load_data(DataSpec(source="texts.txt", pack=8, batch_size=4), made)} == {4}
    (alone,) = load_data(DataSpec(source="texts.txt", pack=0, batch_size=36), made)
    assert alone["input_ids"].shape == (36, 4) and int(alone["attention_mask"].sum()) == 96
    argv = ("compile", f"transformers:{folder}", "--weights", "DEFAULT", "--budget", "0.8", "--of", "model.layers*")
    done(*argv, "--calib", "texts.txt", "--method", "obs", "--form", "module", "--out", "out", "-q")
    told = complaint(*argv, "--calib", "classes.csv", "--label-column", "class", "--pack", "8", "--out", "more")
    assert "taken each by itself" in told
    assert "pieces of two tokens" in complaint(*argv, "--calib", "texts.txt", "--pack", "1", "--out", "more")


def test_a_token_that_texts_begin_with_begins_each_piece(here: Path) -> None:
    folder = here / "lm"
    transformers = words_of(folder)
    own = transformers.AutoTokenizer.from_pretrained(folder).backend_tokenizer
    own.post_processor = pytest.importorskip("tokenizers").processors.TemplateProcessing(
        single="four $A", special_tokens=[("four", 5)]
    )
    transformers.PreTrainedTokenizerFast(tokenizer_object=own, bos_token="four").save_pretrained(folder)
    config = transformers.GPT2Config(vocab_size=7, n_embd=8, n_layer=1, n_head=1, bos_token_id=5, eos_token_id=5)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    (here / "texts.txt").write_text("one two three one two three one\n")
    made = make(ModelSpec(spec=f"transformers:{folder}", weights="DEFAULT"))
    (batch,) = load_data(DataSpec(source="texts.txt", pack=4, seed=1), made)
    assert batch["input_ids"].shape == (2, 4) and (batch["input_ids"][:, 0] == 5).all()
