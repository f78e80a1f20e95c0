"""PyTorch's own transformer modules as their documentation calls them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import Call
from .inputs import sequence, token_ids


class SelfAttention(nn.Module):
    """A layer written around ``nn.MultiheadAttention``, post-norm."""

    def __init__(self, dim: int = 16, heads: int = 4, classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(6, dim)
        self.attn = nn.MultiheadAttention(dim, heads, dropout=0.1, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.ff = nn.Sequential(nn.Linear(dim, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, dim))
        self.fc = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        attended, _ = self.attn(x, x, x)
        x = self.norm1(x + attended)
        x = self.norm2(x + self.ff(x))
        return self.fc(x.mean(dim=1))


class EncoderClassifier(nn.Module):
    """Encoder layers behind a class token."""

    def __init__(self, vocabulary: int = 32, dim: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        layer = nn.TransformerEncoderLayer(dim, nhead=4, dim_feedforward=32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=2)
        self.fc = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = torch.cat([self.cls_token.expand(x.size(0), -1, -1), x], dim=1)
        return self.fc(self.encoder(x)[:, 0])


class PaddedClassifier(nn.Module):
    """Encoder layers that are told where the padding is, and the mean of what is none."""

    def __init__(self, vocabulary: int = 32, dim: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim, padding_idx=0)
        layer = nn.TransformerEncoderLayer(
            dim, nhead=4, dim_feedforward=32, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.fc = nn.Linear(dim, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        x = self.encoder(self.embedding(tokens), src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(-1).to(x.dtype)
        return self.fc((x * kept).sum(dim=1) / kept.sum(dim=1))


class Seq2Seq(nn.Module):
    """Encoder and decoder; ``told`` is whether the decoder is told that its mask is causal or looks for itself."""

    def __init__(self, told: bool, vocabulary: int = 32, dim: int = 16) -> None:
        super().__init__()
        self.told = told
        self.src_embed = nn.Embedding(vocabulary, dim)
        self.tgt_embed = nn.Embedding(vocabulary, dim)
        self.transformer = nn.Transformer(
            dim, nhead=4, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=32, batch_first=True
        )
        self.generator = nn.Linear(dim, vocabulary)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        x, y = self.src_embed(src), self.tgt_embed(tgt)
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.size(1), device=y.device, dtype=y.dtype)
        out = self.transformer(x, y, tgt_mask=mask, tgt_is_causal=True if self.told else None)
        return self.generator(out)


def padded() -> Tensor:
    tokens = token_ids()
    tokens[1, 5:] = 0
    return tokens


def pair() -> dict[str, Tensor]:
    return {"src": token_ids(), "tgt": token_ids(6)}


MODELS: dict[str, Callable[[], Call]] = {
    "multihead-attention": lambda: Call(SelfAttention(), (sequence(8, 6),)),
    "encoder-layer": lambda: Call(EncoderClassifier(), (token_ids(),)),
    "encoder-padded": lambda: Call(PaddedClassifier(), (padded(),)),
    "nn-transformer": lambda: Call(Seq2Seq(told=True), kwargs=pair()),
    "nn-transformer-mask": lambda: Call(Seq2Seq(told=False), kwargs=pair()),
}
