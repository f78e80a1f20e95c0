"""Attention in its common spellings."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Call
from .inputs import image, sequence


class Attention(nn.Module):
    """Multi-head attention; the subclasses differ in how one projection becomes q, k and v."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.dim, self.heads, self.head_dim, self.scale = dim, heads, dim // heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)


class ChunkAttention(Attention):
    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).chunk(3, -1)
        q, k, v = (t.view(B, N, self.heads, self.head_dim).transpose(1, 2) for t in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, C))


class UnbindAttention(Attention):
    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = attn.softmax(dim=-1)
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


class SplitAttention(Attention):
    """Causal, with the mask in a buffer."""

    def __init__(self, dim: int = 16, heads: int = 4, block_size: int = 16) -> None:
        super().__init__(dim, heads)
        mask = torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size)
        self.register_buffer("bias", mask)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.qkv(x).split(self.dim, dim=2)
        k = k.view(B, T, self.heads, C // self.heads).transpose(1, 2)
        q = q.view(B, T, self.heads, C // self.heads).transpose(1, 2)
        v = v.view(B, T, self.heads, C // self.heads).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / k.size(-1) ** 0.5)
        att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
        att = F.softmax(att, dim=-1)
        y = (att @ v).transpose(1, 2).contiguous().view(B, T, C)
        return self.proj(y)


class RearrangeAttention(Attention):
    """``b n (h d) -> (b h) n d`` and back, by view and transpose; the products are einsums."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        h = self.heads
        qkv = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (t.view(b, n, h, -1).transpose(1, 2).reshape(b * h, n, -1) for t in qkv)
        sim = torch.einsum("b i d, b j d -> b i j", q, k) * self.scale
        out = torch.einsum("b i j, b j d -> b i d", sim.softmax(dim=-1), v)
        out = out.view(b, h, n, -1).transpose(1, 2).reshape(b, n, -1)
        return self.proj(out)


class LinearAttention(nn.Module):
    """Attention with the feature map elu + 1 (Katharopoulos et al. 2020)."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.reshape(*t.shape[:2], self.heads, -1) for t in (self.to_q(x), self.to_k(x), self.to_v(x)))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        kv = torch.einsum("nshd,nshm->nhmd", k, v)
        z = 1 / (torch.einsum("nlhd,nhd->nlh", q, k.sum(dim=1)) + 1e-6)
        out = torch.einsum("nlhd,nhmd,nlh->nlhm", q, kv, z)
        return self.to_out(out.flatten(2))


class TalkingHeads(Attention):
    """Heads are mixed before and after the softmax (Shazeer et al. 2020)."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__(dim, heads)
        self.proj_l = nn.Linear(heads, heads)
        self.proj_w = nn.Linear(heads, heads)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        attn = q @ k.transpose(-2, -1)
        attn = self.proj_l(attn.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        attn = attn.softmax(dim=-1)
        attn = self.proj_w(attn.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = (attn @ v).transpose(1, 2).reshape(B, N, C)
        return self.proj(x)


def rotate_half(x: Tensor) -> Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((-x2, x1), dim=-1)


class GroupedQueryAttention(nn.Module):
    """Fewer key and value heads (Ainslie et al. 2023), with rotary positions (Su et al. 2021)."""

    def __init__(self, dim: int = 16, heads: int = 4, kv_heads: int = 2) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.wq = nn.Linear(dim, heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(heads * self.head_dim, dim, bias=False)
        inv_freq = 10000 ** (-torch.arange(0, self.head_dim, 2).float() / self.head_dim)
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.wq(x).view(b, n, self.heads, self.head_dim).transpose(1, 2)
        k = self.wk(x).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(b, n, self.kv_heads, self.head_dim).transpose(1, 2)
        angles = torch.outer(torch.arange(n, device=x.device, dtype=self.inv_freq.dtype), self.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        k = k.repeat_interleave(self.heads // self.kv_heads, dim=1)
        v = v.repeat_interleave(self.heads // self.kv_heads, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(out.transpose(1, 2).contiguous().view(b, n, -1))


class MultiQueryAttention(nn.Module):
    """One key and value head for all (Shazeer 2019)."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.c_attn = nn.Linear(dim, dim + 2 * self.head_dim)
        self.c_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.c_attn(x).split((c, self.head_dim, self.head_dim), dim=2)
        q = q.view(b, n, self.heads, self.head_dim).transpose(1, 2)
        k, v = k.unsqueeze(1), v.unsqueeze(1)
        attn = torch.matmul(q, k.transpose(-1, -2)) / self.head_dim**0.5
        out = torch.matmul(F.softmax(attn, dim=-1), v)
        return self.c_proj(out.transpose(1, 2).reshape(b, n, c))


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, attn: nn.Module, dim: int = 16) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Token vectors in, classes of the mean token out."""

    def __init__(self, attn: Callable[[], nn.Module], dim: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(6, dim)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 8, dim))
        self.blocks = nn.ModuleList([Block(attn(), dim) for _ in range(2)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


class WindowAttention(nn.Module):
    """Attention within shifted windows, with a table of relative position biases (Liu et al. 2021)."""

    def __init__(self, dim: int = 16, size: int = 8, window: int = 4, shift: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.window, self.shift, self.heads, self.scale = window, shift, heads, (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(0.02 * torch.randn((2 * window - 1) ** 2, heads))
        grid = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
        relative = (grid.flatten(1)[:, :, None] - grid.flatten(1)[:, None, :]) + window - 1
        self.register_buffer("relative_position_index", relative[0] * (2 * window - 1) + relative[1])
        region = torch.zeros(1, size, size, 1)
        slices = (slice(0, -window), slice(-window, -shift), slice(-shift, None)) if shift else (slice(None),)
        for i, rows in enumerate(slices):
            for j, columns in enumerate(slices):
                region[:, rows, columns] = i * len(slices) + j
        region = self.partition(region).squeeze(-1)
        mask = (region.unsqueeze(1) != region.unsqueeze(2)).float() * -100.0
        self.register_buffer("attn_mask", mask if shift else None)

    def partition(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` to ``[B * windows, window * window, C]``."""
        B, H, W, C = x.shape
        x = x.view(B, H // self.window, self.window, W // self.window, self.window, C)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, self.window**2, C)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        if self.shift:
            x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = self.partition(x)
        B_, N, _ = x.shape
        qkv = self.qkv(x).reshape(B_, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        attn = attn + bias.view(N, N, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if self.attn_mask is not None:
            windows = self.attn_mask.shape[0]
            attn = attn.view(B_ // windows, windows, self.heads, N, N) + self.attn_mask[:, None].unsqueeze(0)
            attn = attn.view(-1, self.heads, N, N)
        x = (attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(B_, N, C)
        x = self.proj(x).view(B, H // self.window, W // self.window, self.window, self.window, C)
        x = x.permute(0, 1, 3, 2, 4, 5).contiguous().view(B, H, W, C)
        return torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2)) if self.shift else x


class WindowNet(nn.Module):
    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 2, 2)
        self.blocks = nn.Sequential(Block(WindowAttention(dim, shift=0), dim), Block(WindowAttention(dim), dim))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        return self.head(self.norm(self.blocks(x)).mean(dim=(1, 2)))


MODELS: dict[str, Callable[[], Call]] = {
    "qkv-chunk": lambda: Call(Transformer(ChunkAttention), (sequence(8, 6),)),
    "qkv-unbind": lambda: Call(Transformer(UnbindAttention), (sequence(8, 6),)),
    "qkv-split": lambda: Call(Transformer(SplitAttention), (sequence(8, 6),)),
    "qkv-rearrange": lambda: Call(Transformer(RearrangeAttention), (sequence(8, 6),)),
    "linear-attention": lambda: Call(Transformer(LinearAttention), (sequence(8, 6),)),
    "talking-heads": lambda: Call(Transformer(TalkingHeads), (sequence(8, 6),)),
    "gqa-rotary": lambda: Call(Transformer(GroupedQueryAttention), (sequence(8, 6),)),
    "multi-query": lambda: Call(Transformer(MultiQueryAttention), (sequence(8, 6),)),
    "window-attention": lambda: Call(WindowNet(), (image(size=16),)),
}
