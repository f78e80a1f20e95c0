"""How a language model of transformers continues a text, and how fast."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.cli.errors import InputError, OptionError
from fxprune.cli.files import tokenizer_of
from fxprune.cli.models import Made


@dataclass(frozen=True, slots=True)
class Continued:
    """A text that was continued.

    Attributes:
        text: the prompt and what follows; None where there were only token ids.
        tokens: the ids of all of it.
        written: how many of them are new.
        seconds: that these took, the reading of the prompt included.
    """

    text: str | None
    tokens: tuple[int, ...]
    written: int
    seconds: float

    @property
    def speed(self) -> str:
        """New tokens a second, in words."""
        return f"{self.written} tokens in {self.seconds:.2f} s, {self.written / self.seconds:.1f} tokens per second"

    def __str__(self) -> str:
        """Returns the text, or else the ids."""
        return ",".join(map(str, self.tokens)) if self.text is None else self.text

    def to_dict(self) -> dict[str, Any]:
        """Returns it as JSON data."""
        return asdict(self) | {"tokens_per_second": self.written / self.seconds}


def encoded(made: Made, text: str | None, tokens: tuple[int, ...] | None, name: str | None) -> tuple[Tensor, Any]:
    """Returns the prompt's token ids, ``[1, tokens]``, and the tokenizer; None for ids.

    Raises:
        InputError: the model does not write text, there is no tokenizer, or no token.
        OptionError: an id is not in the vocabulary.
    """
    model: Any = made.model
    if made.library != "transformers" or not model.can_generate():
        raise InputError(
            f"{made.spec.spec}: expected a transformers: model that writes text, got {type(model).__name__}"
        )
    if tokens is not None:
        size = int(model.config.get_text_config().vocab_size)
        if strange := [token for token in tokens if not 0 <= token < size]:
            raise OptionError(f"--tokens {strange[0]}: expected ids of the vocabulary, 0 to {size - 1}")
        return torch.tensor([tokens]), None
    tokenizer = tokenizer_of(made, name)
    ids: Tensor = tokenizer(text, return_tensors="pt")["input_ids"].long()
    if not ids.numel():
        raise InputError("--prompt: expected a text of one token at least, got none")
    return ids, tokenizer


@torch.no_grad()
def continued(
    pruned: nn.Module, prompt: Tensor, tokenizer: Any, length: int, temperature: float, seed: int
) -> Continued:
    """Returns how a model continues a prompt, ``[1, tokens]``.

    Args:
        pruned: of a class of transformers that generates.
        prompt: token ids.
        tokenizer: makes a text of the ids; None leaves them.
        length: tokens to write, at most.
        temperature: of drawing; 0 takes the likeliest token.
        seed: of what is drawn.
    """
    model: Any = pruned
    ids = prompt.to(model.device)
    how: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    padding = {} if model.generation_config.pad_token_id is not None else {"pad_token_id": _last(model)}
    with torch.random.fork_rng(devices=[ids.device] if ids.device.type == "cuda" else []):
        torch.manual_seed(seed)
        start = time.perf_counter()
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, use_cache=True, **how, **padding
        )[0].tolist()
        seconds = time.perf_counter() - start
    text = None if tokenizer is None else tokenizer.decode(out, skip_special_tokens=True)
    encoder_decoder = getattr(model.config, "is_encoder_decoder", False)
    return Continued(text, tuple(out), len(out) - (0 if encoder_decoder else prompt.shape[1]), seconds)


def _last(model: Any) -> int | None:
    """Returns the token that ends a text; some have several."""
    end: int | list[int] | None = model.generation_config.eos_token_id
    return end[0] if isinstance(end, list) else end
