"""Networks without kinks: what a derivative promises, a small step keeps."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.tensors import random


class Windows(nn.Module):
    """Attention-like work on windows that are folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        y = self.inner(x.reshape(batch * tokens // 2, 2, width)).tanh()
        return self.outer(y).reshape(batch, tokens, 2)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 6, 3, padding=2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).tanh()
        return self.head((x + self.b(self.a(x).tanh())).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.head = nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.out(y).tanh())


NETWORKS = {
    "chain": lambda: (nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double(), random(6, 5)),
    "residual": lambda: (Residual().double(), random(5, 3, 6, 6)),
    "attention": lambda: (Attention().double(), random(4, 5, 8)),
    "windows": lambda: (Windows().double(), random(3, 4, 4)),
}
