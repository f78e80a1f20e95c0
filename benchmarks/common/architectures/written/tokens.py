"""Token networks whose feed-forward part, norm or resolution is what sets them apart."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import Call
from .attention import Block, UnbindAttention
from .inputs import image, sequence, token_ids


class MixerBlock(nn.Module):
    """Mixes tokens, then channels (Tolstikhin et al. 2021)."""

    def __init__(self, dim: int, patches: int, token_dim: int = 12, channel_dim: int = 32) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.token_mix = nn.Sequential(nn.Linear(patches, token_dim), nn.GELU(), nn.Linear(token_dim, patches))
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mix = nn.Sequential(nn.Linear(dim, channel_dim), nn.GELU(), nn.Linear(channel_dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.token_mix(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channel_mix(self.norm2(x))


class MLPMixer(nn.Module):
    def __init__(self, dim: int = 16, size: int = 16, patch: int = 4, classes: int = 4) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, patch, patch)
        self.blocks = nn.Sequential(*(MixerBlock(dim, (size // patch) ** 2) for _ in range(2)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(1))


class MoE(nn.Module):
    """Two of four experts for every token; all run, the gate's zeros drop what was not chosen."""

    def __init__(self, dim: int = 16, hidden: int = 16, experts: int = 4, top_k: int = 2) -> None:
        super().__init__()
        self.top_k = top_k
        self.gate = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        scores = F.softmax(self.gate(x), dim=-1)
        weights, chosen = torch.topk(scores, self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            weight = (weights * (chosen == i)).sum(dim=-1, keepdim=True)
            out = out + weight * expert(x)
        return out


class StackedMoE(nn.Module):
    """All experts' weights in one tensor, dispatched by einsum."""

    def __init__(self, dim: int = 16, hidden: int = 16, experts: int = 4, top_k: int = 2) -> None:
        super().__init__()
        self.top_k = top_k
        self.gate = nn.Linear(dim, experts, bias=False)
        self.w1 = nn.Parameter(torch.randn(experts, dim, hidden) / dim**0.5)
        self.w2 = nn.Parameter(torch.randn(experts, hidden, dim) / hidden**0.5)

    def gates(self, x: Tensor) -> Tensor:
        top, chosen = self.gate(x).topk(self.top_k, dim=-1)
        return torch.zeros_like(self.gate(x)).scatter(-1, chosen, top.softmax(dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(torch.einsum("bnd,edh->bneh", x, self.w1))
        y = torch.einsum("bneh,ehd->bned", h, self.w2)
        return torch.einsum("bned,bne->bnd", y, self.gates(x))


class BmmMoE(StackedMoE):
    """The same by batched matrix products over the experts."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        flat = x.reshape(b * n, d)
        each = flat.unsqueeze(0).expand(self.w1.shape[0], -1, -1)
        y = torch.bmm(F.gelu(torch.bmm(each, self.w1)), self.w2)
        weights = self.gates(flat).t().unsqueeze(-1)
        return (y * weights).sum(dim=0).view(b, n, d)


class SwiGLU(nn.Module):
    """A gated MLP with both halves in one projection (Shazeer 2020)."""

    def __init__(self, dim: int = 16, hidden: int = 24) -> None:
        super().__init__()
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(x1) * x2)


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019, computed in float32."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        output = self._norm(x.float()).type_as(x)
        return output * self.weight


class FeedForward(nn.Module):
    """Residual layers, each a norm and some feed-forward part."""

    def __init__(self, part: Callable[[], nn.Module], norm: Callable[[int], nn.Module], dim: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(6, dim)
        self.norms = nn.ModuleList([norm(dim) for _ in range(2)])
        self.layers = nn.ModuleList([part() for _ in range(2)])
        self.norm = norm(dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + layer(norm(x))
        return self.head(self.norm(x))


class PatchMerging(nn.Module):
    """Four neighbours concatenated and reduced to two (Liu et al. 2021)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        x0 = x[:, 0::2, 0::2, :]
        x1 = x[:, 1::2, 0::2, :]
        x2 = x[:, 0::2, 1::2, :]
        x3 = x[:, 1::2, 1::2, :]
        x = torch.cat([x0, x1, x2, x3], -1)
        x = x.view(B, (H // 2) * (W // 2), 4 * C)
        return self.reduction(self.norm(x))


class MergingNet(nn.Module):
    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 4, 4)
        self.merge = PatchMerging(dim)
        self.block = Block(UnbindAttention(2 * dim), 2 * dim)
        self.head = nn.Linear(2 * dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        return self.head(self.block(self.merge(x)).mean(1))


class Albert(nn.Module):
    """A narrow embedding, and one block three times (Lan et al. 2020)."""

    def __init__(self, vocabulary: int = 32, narrow: int = 8, dim: int = 16, repeats: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, narrow)
        self.mapping = nn.Linear(narrow, dim)
        self.shared = Block(UnbindAttention(dim), dim)
        self.repeats = repeats
        self.classifier = nn.Linear(dim, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.mapping(self.embedding(input_ids))
        for _ in range(self.repeats):
            x = self.shared(x)
        return self.classifier(x[:, 0])


MODELS: dict[str, Callable[[], Call]] = {
    "mlp-mixer": lambda: Call(MLPMixer(), (image(size=16),)),
    "moe-modulelist": lambda: Call(FeedForward(MoE, nn.LayerNorm), (sequence(8, 6),)),
    "moe-einsum": lambda: Call(FeedForward(StackedMoE, nn.LayerNorm), (sequence(8, 6),)),
    "moe-bmm": lambda: Call(FeedForward(BmmMoE, nn.LayerNorm), (sequence(8, 6),)),
    "swiglu-fused": lambda: Call(FeedForward(SwiGLU, nn.LayerNorm), (sequence(8, 6),)),
    "rmsnorm-by-hand": lambda: Call(FeedForward(SwiGLU, RMSNorm), (sequence(8, 6),)),
    "patch-merging": lambda: Call(MergingNet(), (image(size=16),)),
    "albert": lambda: Call(Albert(), (token_ids(),)),
}
