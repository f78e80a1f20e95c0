"""Blocks that work on tokens [batch, length, width] and keep batch and length; any block may follow any other."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.blocks_image import ACTS, Block, Chain, Shape, Spec


class Swapped(nn.Module):
    """A layer that works on [batch, width, length]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


class ManualRms(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


def norm1d(kind: str, width: int) -> nn.Module:
    if kind == "manual":
        return ManualRms(width)
    if kind in ("batch", "group"):
        return Swapped(nn.BatchNorm1d(width) if kind == "batch" else nn.GroupNorm(gcd(2, width), width))
    return {"none": nn.Identity, "layer": nn.LayerNorm, "rms": nn.RMSNorm}[kind](*(() if kind == "none" else (width,)))


TOKEN_NORMS = ("none", "layer", "rms", "manual", "batch", "group")


@dataclass(frozen=True)
class Mlp(Spec):
    hidden: int
    gate: str = "none"  # none, glu, chunk, swiglu
    act: str = "gelu"
    out: int = 0  # 0: the width that comes in

    def make(self, m: Block, shape: Shape) -> None:
        m.up = nn.Linear(shape[-1], self.hidden * (2 if self.gate in ("glu", "chunk") else 1))
        m.down = nn.Linear(self.hidden, self.out or shape[-1])
        if self.gate == "swiglu":
            m.gate = nn.Linear(shape[-1], self.hidden, bias=False)

    def run(self, m: Block, x: Tensor) -> Tensor:
        y = m.up(x)
        if self.gate == "glu":
            y = F.glu(y)
        elif self.gate == "chunk":
            a, b = y.chunk(2, -1)
            y = ACTS[self.act](a) * b
        elif self.gate == "swiglu":
            y = F.silu(m.gate(x)) * y
        else:
            y = ACTS[self.act](y)
        return m.down(y)

    def expected(self, m: Block) -> dict[str, int]:
        return {"up": self.hidden} if self.hidden > 1 else {}


@dataclass(frozen=True)
class Attention(Spec):
    """``how``: sdpa, matmul, einsum, bmm.  ``qkv``: separate, chunk, unbind, select, split (fused layouts)."""

    heads: int = 2
    kv_heads: int = 2
    size: int = 4
    how: str = "sdpa"
    qkv: str = "separate"
    repeat: str = "interleave"  # interleave, expand, native
    causal: bool = False
    rotary: bool = False
    normed: bool = False

    @property
    def groups(self) -> int:
        return self.heads if self.qkv in ("chunk", "unbind", "select") or self.how == "bmm" else gcd(self.heads, self.kv_heads)

    def make(self, m: Block, shape: Shape) -> None:
        width, h, g, d = shape[-1], self.heads, self.groups, self.size
        if self.qkv == "separate":
            m.q, m.k, m.v = nn.Linear(width, h * d), nn.Linear(width, g * d), nn.Linear(width, g * d, bias=False)
        else:
            m.qkv = nn.Linear(width, (h + 2 * g) * d)
        m.out = nn.Linear(h * d, width)
        if self.normed:
            m.q_norm, m.k_norm = nn.RMSNorm(d), nn.LayerNorm(d)

    def project(self, m: Block, x: Tensor) -> list[Tensor]:
        """Returns q, k, v as [batch, heads, length, size]."""
        b, n, _ = x.shape
        h, g, d = self.heads, self.groups, self.size
        if self.qkv == "separate":
            parts = [m.q(x), m.k(x), m.v(x)]
        elif self.qkv == "chunk":
            parts = list(m.qkv(x).chunk(3, dim=-1))
        elif self.qkv == "split":
            parts = list(m.qkv(x).split([h * d, g * d, g * d], dim=-1))
        elif self.qkv == "unbind":
            return list(m.qkv(x).reshape(b, n, 3, h, d).permute(2, 0, 3, 1, 4).unbind(0))
        else:
            y = m.qkv(x).view(b, n, h, 3, d)  # GPT-NeoX: each head holds its own q, k and v
            return [y[:, :, :, i].transpose(1, 2) for i in range(3)]
        return [part.view(b, n, -1, d).transpose(1, 2) for part in parts]

    def run(self, m: Block, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.project(m, x)
        if self.normed:
            q, k = m.q_norm(q), m.k_norm(k)
        if self.rotary and self.size % 2 == 0:
            q, k = rotate(q), rotate(k)
        times, native = self.heads // self.groups, False
        if times > 1:
            native = self.repeat == "native" and self.how == "sdpa"
            if not native:
                k, v = self.repeated(k, times), self.repeated(v, times)
        y = self.attend(q, k, v, native)
        return m.out(y.transpose(1, 2).reshape(b, n, -1))

    def repeated(self, x: Tensor, times: int) -> Tensor:
        if self.repeat != "expand":
            return x.repeat_interleave(times, dim=1)
        b, g, n, d = x.shape
        return x[:, :, None].expand(b, g, times, n, d).reshape(b, g * times, n, d)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, native: bool) -> Tensor:
        n = q.shape[2]
        if self.how == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=native)
        mask = torch.ones(n, n, dtype=torch.bool, device=q.device).tril() if self.causal else None
        if self.how == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k)
        elif self.how == "bmm":
            b, h = q.shape[:2]
            q, k, v = (t.reshape(b * h, n, -1) for t in (q, k, v))
            scores = torch.bmm(q, k.transpose(1, 2))
        else:
            scores = torch.matmul(q, k.transpose(-2, -1))
        scores = scores / self.size**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        weights = scores.softmax(-1)
        if self.how == "bmm":
            return torch.bmm(weights, v).reshape(b, h, n, -1)
        return torch.einsum("bhqk,bhkd->bhqd", weights, v) if self.how == "einsum" else weights @ v

    def expected(self, m: Block) -> dict[str, int]:
        if self.size == 1 or self.groups == 1 or self.qkv != "separate":
            return {}
        if self.how == "bmm" or self.heads != self.groups:
            return {"v": self.groups}
        if self.normed or self.rotary:
            return {"v": self.groups + self.size, "q": self.groups}
        return {"v": self.groups + self.size, "q": self.groups + self.size}


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding, the half-and-half layout."""
    n, d = x.shape[-2:]
    angles = torch.arange(n, device=x.device, dtype=x.dtype)[:, None] * torch.linspace(0.1, 1.0, d // 2, device=x.device).to(x.dtype)
    angles = torch.cat([angles, angles], -1)
    a, b = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()


@dataclass(frozen=True)
class Mha(Spec):
    """``nn.MultiheadAttention``."""

    heads: int = 2
    weights: bool = False

    def make(self, m: Block, shape: Shape) -> None:
        m.attention = nn.MultiheadAttention(shape[-1], gcd(self.heads, shape[-1]), dropout=0.1, batch_first=True)

    def run(self, m: Block, x: Tensor) -> Tensor:
        return m.attention(x, x, x, need_weights=self.weights)[0]


@dataclass(frozen=True)
class Encoder(Spec):
    """``nn.TransformerEncoderLayer``."""

    heads: int = 2
    hidden: int = 6
    norm_first: bool = False

    def make(self, m: Block, shape: Shape) -> None:
        m.layer = nn.TransformerEncoderLayer(
            shape[-1], gcd(self.heads, shape[-1]), self.hidden, batch_first=True, norm_first=self.norm_first
        )

    def run(self, m: Block, x: Tensor) -> Tensor:
        return m.layer(x)

    def expected(self, m: Block) -> dict[str, int]:
        return {"layer.linear1": self.hidden}


@dataclass(frozen=True)
class TokenResidual(Spec):
    body: tuple[Spec, ...]
    norm: str = "layer"
    scaled: bool = False

    def make(self, m: Block, shape: Shape) -> None:
        m.norm = norm1d(self.norm, shape[-1])
        m.body = Chain(self.body, shape)
        m.last = nn.Linear(m.body.shape[-1], shape[-1])
        if self.scaled:
            m.gamma = nn.Parameter(torch.ones(shape[-1]))

    def run(self, m: Block, x: Tensor) -> Tensor:
        y = m.last(m.body(m.norm(x)))
        return x + (y * m.gamma if self.scaled else y)


@dataclass(frozen=True)
class TokenNorm(Spec):
    kind: str = "layer"

    def make(self, m: Block, shape: Shape) -> None:
        m.norm = norm1d(self.kind, shape[-1])

    def run(self, m: Block, x: Tensor) -> Tensor:
        return m.norm(x)


@dataclass(frozen=True)
class MixTokens(Spec):
    """The tokens mixed channel by channel (MLP-Mixer), or neighbours by a 1d convolution."""

    hidden: int = 6
    how: str = "linear"  # linear, depthwise, conv

    def make(self, m: Block, shape: Shape) -> None:
        if self.how == "linear":
            m.up, m.down = nn.Linear(shape[1], self.hidden), nn.Linear(self.hidden, shape[1])
        else:
            m.conv = nn.Conv1d(shape[2], shape[2], 3, padding=1, groups=shape[2] if self.how == "depthwise" else 1)

    def run(self, m: Block, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        x = m.down(F.gelu(m.up(x))) if self.how == "linear" else m.conv(x)
        return x.transpose(1, 2)

    def expected(self, m: Block) -> dict[str, int]:
        return {"up": self.hidden} if self.how == "linear" else {}


@dataclass(frozen=True)
class Position(Spec):
    how: str = "parameter"  # parameter, table, buffer

    def make(self, m: Block, shape: Shape) -> None:
        if self.how == "parameter":
            m.embed = nn.Parameter(torch.randn(1, *shape[1:]))
        elif self.how == "table":
            m.embed = nn.Embedding(shape[1] + 2, shape[2])
        else:
            m.register_buffer("embed", torch.randn(shape[1:]), persistent=False)

    def run(self, m: Block, x: Tensor) -> Tensor:
        if self.how == "table":
            return x + m.embed(torch.arange(x.shape[1], device=x.device))
        return x + m.embed


@dataclass(frozen=True)
class Windows(Spec):
    """Half of the tokens at a time, after a shift, with heads that move into the batch."""

    heads: int = 2
    shift: bool = False

    def make(self, m: Block, shape: Shape) -> None:
        m.inner, m.outer = nn.Linear(shape[2], 4 * self.heads), nn.Linear(4 * self.heads, shape[2])

    def run(self, m: Block, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        parts = 2 if n % 2 == 0 else 1
        y = m.inner(torch.roll(x, 1, 1) if self.shift else x)
        y = y.view(b, parts, n // parts, self.heads, 4).permute(0, 1, 3, 2, 4).reshape(b * parts * self.heads, n // parts, 4)
        y = (y @ y.transpose(1, 2)).softmax(-1) @ y
        y = y.view(b, parts, self.heads, n // parts, 4).transpose(2, 3).reshape(b, n, -1)
        return m.outer(y)


@dataclass(frozen=True)
class TokenTwice(Spec):
    how: str = "shared"  # shared, tied, transposed
    hidden: int = 6

    def make(self, m: Block, shape: Shape) -> None:
        width = shape[-1]
        m.a, m.b = (nn.Linear(width, self.hidden), nn.Linear(self.hidden, width))
        if self.how == "tied":
            m.c = nn.Linear(width, self.hidden)
            m.c.weight = m.a.weight

    def run(self, m: Block, x: Tensor) -> Tensor:
        if self.how == "transposed":
            return F.linear(F.gelu(m.a(x)), m.a.weight.t(), m.b.bias)
        y = m.b(F.gelu(m.a(x)))
        return m.b(F.gelu((m.c if self.how == "tied" else m.a)(y)))


@dataclass(frozen=True)
class Experts(Spec):
    """A soft mixture: three operands in one einsum, or a stack of linear layers."""

    count: int = 2
    out: int = 6
    how: str = "einsum"  # einsum, stack

    def make(self, m: Block, shape: Shape) -> None:
        m.gate = nn.Linear(shape[-1], self.count)
        if self.how == "einsum":
            m.weight = nn.Parameter(torch.randn(self.count, shape[-1], self.out))
        else:
            m.experts = nn.ModuleList(nn.Linear(shape[-1], self.out) for _ in range(self.count))

    def run(self, m: Block, x: Tensor) -> Tensor:
        gate = m.gate(x).softmax(-1)
        if self.how == "einsum":
            return torch.einsum("bnd,edo,bne->bno", x, m.weight, gate)
        return (torch.stack([expert(x) for expert in m.experts], dim=-1) * gate.unsqueeze(-2)).sum(-1)


@dataclass(frozen=True)
class TokenSplit(Spec):
    """Parts of the width, one of them gated by the mean over tokens."""

    how: str = "chunk"  # chunk, slice, repeat, pool

    def make(self, m: Block, shape: Shape) -> None:
        m.linear = nn.Linear(shape[-1] * 2 if self.how == "repeat" else shape[-1], shape[-1])

    def run(self, m: Block, x: Tensor) -> Tensor:
        if self.how == "repeat":
            return m.linear(x.repeat(1, 1, 2))
        if self.how == "pool":
            return x * torch.sigmoid(m.linear(x.mean(1, keepdim=True)))
        y = m.linear(x)
        half = y.shape[-1] // 2
        a, b = (y[..., :half], y[..., half:]) if self.how == "slice" else y.split([half, y.shape[-1] - half], -1)
        return torch.cat([b, a * torch.sigmoid(a.mean(1, keepdim=True))], -1)
