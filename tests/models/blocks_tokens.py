"""Blocks that work on tokens [batch, length, width] and keep batch and length; any block may follow any other."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.blocks_image import ACTS, Block, Chain, Shape, Spec


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
        return (
            self.heads
            if self.qkv in ("chunk", "unbind", "select") or self.how == "bmm"
            else gcd(self.heads, self.kv_heads)
        )

    def make(self, m: Block, shape: Shape) -> None:
        width, h, g, d = shape[-1], self.heads, self.groups, self.size
        if self.qkv == "separate":
            m.q, m.k, m.v = (nn.Linear(width, h * d), nn.Linear(width, g * d), nn.Linear(width, g * d, bias=False))
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
        inner = self.size // 2 if self.rotary and self.size % 2 == 0 else self.size  # rotation pairs dimensions
        inner, value = (n if n > 1 else 0 for n in (inner, self.size))
        repeats = self.heads // self.groups
        heads = self.heads if 1 in (self.groups, repeats) else self.groups + repeats  # a group, a place in every group
        heads = heads if self.heads > 1 else 0
        groups = self.groups if self.groups > 1 else 0
        if self.qkv == "separate":
            return {"q": heads + inner, "k": groups + inner, "v": groups + value}
        return {"qkv": heads + inner + value}


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding, the half-and-half layout."""
    n, d = x.shape[-2:]
    angles = torch.arange(n, device=x.device, dtype=x.dtype)[:, None] * torch.linspace(
        0.1, 1.0, d // 2, device=x.device
    ).to(x.dtype)
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
        y = m.last(m.body(m.norm(x)))[:, -x.shape[1] :]  # without tokens put in front
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
        y = (
            y.view(b, parts, n // parts, self.heads, 4)
            .permute(0, 1, 3, 2, 4)
            .reshape(b * parts * self.heads, n // parts, 4)
        )
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

    def zeros(self) -> bool:
        return False

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


@dataclass(frozen=True)
class Learned(Spec):
    """Learned tensors in attention: queries, a bias for each head, a token in front."""

    how: str = "queries"  # queries, bias, token

    def make(self, m: Block, shape: Shape) -> None:
        width, n = shape[-1], shape[1]
        m.kv = nn.Linear(width, 16)
        m.q = nn.Linear(width, 8)
        m.out = nn.Linear(8, width)
        if self.how == "queries":
            m.queries = nn.Parameter(torch.randn(1, n, width))
        elif self.how == "bias":
            m.table = nn.Parameter(torch.randn(3, 2))
            m.register_buffer("index", torch.arange(n * n).reshape(n, n) % 3)
        else:
            m.token = nn.Parameter(torch.randn(1, 1, width))

    def run(self, m: Block, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        x = torch.cat([m.token.expand(b, -1, -1), x], 1) if self.how == "token" else x
        k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in m.kv(x).chunk(2, -1))
        q = m.q(m.queries.expand(b, n, -1) if self.how == "queries" else x).unflatten(-1, (2, 4)).transpose(1, 2)
        bias = m.table[m.index].permute(2, 0, 1).unsqueeze(0) if self.how == "bias" else None
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return m.out(y.transpose(1, 2).flatten(2))

    def expected(self, m: Block) -> dict[str, int]:
        return {"q": 6, "kv": 10}


@dataclass(frozen=True)
class LinearAttention(Spec):
    """No softmax: q (k v), normalised by a sum, with or without a running sum over tokens."""

    heads: int = 2
    causal: bool = False

    def make(self, m: Block, shape: Shape) -> None:
        m.qkv, m.out = nn.Linear(shape[-1], 12 * self.heads), nn.Linear(4 * self.heads, shape[-1])

    def zeros(self) -> bool:
        return False

    def run(self, m: Block, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, self.heads, 4).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        if self.causal:
            y = torch.einsum("bhnd,bhnde->bhne", q, torch.einsum("bhnd,bhne->bhnde", k, v).cumsum(2))
            scale = torch.einsum("bhnd,bhnd->bhn", q, k.cumsum(2))
        else:
            y = q @ (k.transpose(-2, -1) @ v)
            scale = (q * k.sum(2, keepdim=True)).sum(-1)
        return m.out((y / scale.unsqueeze(-1)).transpose(1, 2).reshape(b, n, -1))

    def expected(self, m: Block) -> dict[str, int]:
        return {"qkv": (self.heads if self.heads > 1 else 0) + 8}


@dataclass(frozen=True)
class Derived(Spec):
    """A linear map whose weight is made at run time."""

    how: str = "lowrank"  # lowrank, lora, masked, addmm, grouped, outer, weightnorm, stacked
    out: int = 6

    def make(self, m: Block, shape: Shape) -> None:
        width = shape[-1]
        m.a, m.b = nn.Parameter(torch.randn(3, width)), nn.Parameter(torch.randn(self.out, 3))
        m.linear = nn.Linear(width, self.out)
        if self.how == "masked":
            m.register_buffer("mask", (torch.arange(self.out * width).reshape(self.out, width) % 3 > 0).double())
        if self.how == "grouped":
            m.groups = gcd(width, 2)
            m.w = nn.Parameter(torch.randn(m.groups, width // m.groups, 4))
        if self.how == "outer":
            m.small = nn.Linear(width, 3)
            m.last = nn.Linear(3 * self.out, width)
        if self.how == "weightnorm":
            m.linear = nn.utils.parametrizations.weight_norm(m.linear)

    def run(self, m: Block, x: Tensor) -> Tensor:
        if self.how == "lowrank":
            return F.linear(x, m.b @ m.a)
        if self.how == "lora":
            return m.linear(x) + F.linear(F.linear(x, m.a), m.b) * 0.5
        if self.how == "masked":
            return F.linear(x, m.linear.weight * m.mask.to(x.dtype), m.linear.bias)
        if self.how == "addmm":
            flat = x.reshape(-1, x.shape[-1])
            return torch.addmm(m.linear.bias, flat, m.linear.weight.t()).view(x.shape[0], x.shape[1], -1)
        if self.how == "grouped":
            y = torch.einsum("bngi,gio->bngo", x.unflatten(-1, (m.groups, -1)), m.w)
            return y.flatten(-2)
        if self.how == "outer":
            y = m.linear(x).unsqueeze(-1) * m.small(x).unsqueeze(-2)
            return m.last(y.flatten(-2))
        if self.how == "stacked":
            weight = torch.cat([m.linear.weight, m.b @ m.a], 0)
            return F.linear(x, weight)
        return m.linear(x)


@dataclass(frozen=True)
class Reduced(Spec):
    """Statistics and orders over the width, which removed channels must not enter."""

    how: str = "l2"  # l2, softmax, standard, amax, logsumexp, cumsum, sort, argmax, where, flip, roll, picked

    def make(self, m: Block, shape: Shape) -> None:
        m.linear = nn.Linear(shape[-1], 6)
        m.register_buffer("index", torch.tensor([3, 0, 0, 5]))

    def zeros(self) -> bool:
        return self.how not in ("softmax", "standard", "amax", "logsumexp", "sort", "argmax")

    def run(self, m: Block, x: Tensor) -> Tensor:
        y = m.linear(x)
        if self.how == "l2":
            return F.normalize(y, dim=-1)
        if self.how == "softmax":
            return y.softmax(-1)
        if self.how == "standard":
            return (y - y.mean(-1, keepdim=True)) / (y.std(-1, keepdim=True) + 0.1)
        if self.how in ("amax", "logsumexp"):
            return y - (y.amax(-1, keepdim=True) if self.how == "amax" else y.logsumexp(-1, keepdim=True))
        if self.how == "cumsum":
            return y.cumsum(-1)
        if self.how == "sort":
            return y.sort(-1).values
        if self.how == "argmax":
            return y * F.one_hot(y.argmax(-1), 6).to(y.dtype) + y
        if self.how == "where":
            return torch.where(y > y.mean(1, keepdim=True) / 4, y, torch.zeros_like(y))  # no tie if tokens agree
        if self.how in ("flip", "roll"):
            return y.flip(-1) if self.how == "flip" else y.roll(2, -1)
        return y[..., m.index] if self.how == "picked" else y
