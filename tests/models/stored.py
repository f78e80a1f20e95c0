"""Networks to be saved: with all that a file must keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.models.libraries import transformer, vit
from tests.support.weights import randomise


class DropPath(nn.Module):
    """Stochastic depth as timm writes it."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0:
            return x
        kept = 1 - self.drop_prob
        return x * x.new_empty([len(x)] + [1] * (x.dim() - 1)).bernoulli_(kept).div_(kept)


class Small(nn.Module):
    """A convolutional network with everything that evaluation mode hides, a constant, a tie and a namedtuple."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.up, self.down = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.drop, self.path = nn.Dropout(0.2), DropPath(0.3)
        self.head = nn.Linear(8, 4)
        self.again = self.head
        self.register_buffer("mask", (torch.arange(36) % 5 > 0).reshape(6, 6).float(), persistent=False)

    def forward(self, x: Tensor, *, scale: float = 1.0, mode: Any = max) -> dict[str, Tensor]:
        x = self.stem(x) * self.mask
        x = x + self.path(self.down(self.drop(torch.relu(self.up(x))))) * scale
        features = x.mean((2, 3))
        return {"scores": self.head(features), "again": self.again(-features)}


def small() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Small(), 0)


def images_vit() -> nn.Module:
    torch.manual_seed(0)
    return randomise(vit(dropout=0.1, attention_dropout=0.1), 0)


def bert() -> nn.Module:
    torch.manual_seed(0)
    return transformer("BertForSequenceClassification", num_labels=3)


def llama() -> nn.Module:
    torch.manual_seed(0)
    return transformer("LlamaForCausalLM", num_key_value_heads=2)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.lstm = nn.LSTM(16, 12, 2, batch_first=True, dropout=0.2, bidirectional=True)
        self.head = nn.Linear(24, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embed(ids))[0].mean(1))


def lstm() -> nn.Module:
    torch.manual_seed(0)
    return randomise(Recurrent(), 0)


def images(batch: int, size: int) -> dict[str, Any]:
    return {"x": torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch))}


def tokens(batch: int, name: str = "input_ids", mask: bool = False) -> dict[str, Any]:
    ids = torch.randint(20, (batch, 5 + batch), generator=torch.Generator().manual_seed(batch))
    return {name: ids, **({"attention_mask": torch.ones_like(ids)} if mask else {})}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], dict[str, Any]]]] = {
    "small": (small, lambda batch: images(batch, 6)),
    "vit": (images_vit, lambda batch: images(batch, 16)),
    "bert": (bert, lambda batch: tokens(batch, mask=True)),
    "llama": (llama, tokens),
    "lstm": (lstm, lambda batch: {"ids": tokens(batch)["input_ids"][:, :6]}),
}


class Tied(nn.Module):
    """A token model whose head shares the embedding's weight, with a mask that is not saved."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.up, self.down = nn.Linear(width, 16), nn.Linear(16, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.rand(1), persistent=False)

    def forward(self, ids: Tensor, *, mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(ids) * self.scale
        x = self.norm(x + self.down(torch.relu(self.up(x))))
        return {"scores": self.head(x if mask is None else x * mask.unsqueeze(-1))}


def make_model(seed: int = 0) -> Tied:
    torch.manual_seed(seed)
    return randomise(Tied(), seed)  # type: ignore[return-value]


IDS = torch.arange(20).reshape(4, 5) % 10
BATCH = {"ids": IDS, "mask": torch.ones(4, 5)}


def scores(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(**BATCH)["scores"]
