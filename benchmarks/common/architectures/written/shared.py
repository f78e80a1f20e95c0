"""One weight in several places: tied embeddings, a transposed decoder, the same encoder on two inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Call
from .inputs import image, sequence, token_ids
from .vision import conv_bn


class Tower(nn.Module):
    def __init__(self, vocabulary: int = 32, width: int = 16, hidden: int = 24, out: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, out)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).mean(dim=1)
        return F.normalize(self.fc2(F.relu(self.fc1(x))), dim=-1)


class TwoTower(nn.Module):
    """Queries against all items of the batch; both towers look up one table."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.item = Tower(), Tower()
        self.item.embedding.weight = self.query.embedding.weight
        self.temperature = nn.Parameter(torch.tensor(1.0))

    def forward(self, query: Tensor, item: Tensor) -> Tensor:
        return self.query(query) @ self.item(item).t() * self.temperature.exp()


class TiedLanguageModel(nn.Module):
    """The output layer is the embedding."""

    def __init__(self, vocabulary: int = 32, width: int = 16, hidden: int = 24) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.decoder = nn.Linear(width, vocabulary)
        self.decoder.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.decoder(x + self.mlp(x))


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's transpose."""

    def __init__(self, width: int = 12, hidden: int = 24, code: int = 16) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(hidden, width) / width**0.5)
        self.w2 = nn.Parameter(torch.randn(code, hidden) / hidden**0.5)
        self.b1, self.b2 = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(code))
        self.b3, self.b4 = nn.Parameter(torch.zeros(hidden)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(x @ self.w1.t() + self.b1)
        z = torch.relu(h @ self.w2.t() + self.b2)
        h = torch.relu(z @ self.w2 + self.b3)
        return h @ self.w1 + self.b4


class TiedLinear(nn.Module):
    """The same with a layer's weight, through ``F.linear``."""

    def __init__(self, width: int = 12, hidden: int = 20) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.encoder(x))
        h = torch.relu(self.mix(h))
        return F.linear(h, self.encoder.weight.t(), self.bias)


class Siamese(nn.Module):
    """One encoder, two images (Koch et al. 2015)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            conv_bn(3, 8, stride=2), conv_bn(8, width, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.fc = nn.Linear(width, 12)
        self.out = nn.Linear(12, 1)

    def forward_once(self, x: Tensor) -> Tensor:
        return self.fc(self.encoder(x))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        distance = torch.abs(self.forward_once(left) - self.forward_once(right))
        return torch.sigmoid(self.out(distance))


MODELS: dict[str, Callable[[], Call]] = {
    "two-tower": lambda: Call(TwoTower(), kwargs={"query": token_ids(), "item": token_ids()}),
    "tied-embedding": lambda: Call(TiedLanguageModel(), (token_ids(),)),
    "tied-autoencoder": lambda: Call(TiedAutoencoder(), (sequence(4, 12),)),
    "tied-linear": lambda: Call(TiedLinear(), (sequence(4, 12),)),
    "siamese": lambda: Call(Siamese(), (image(size=16), image(size=16))),
}
