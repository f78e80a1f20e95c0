"""Blocks of rarer ops, for tokens and for images: recurrence, graphs, Fourier, gradients that stop, weights that are made.

What they do in training is certain (no dropout), so that a training step can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint
from torchvision.ops import DeformConv2d

from tests.models.blocks_image import ACTS, Block, Shape, Spec


@dataclass(frozen=True)
class Recurrent(Spec):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``, over the tokens."""

    how: str = "LSTM"
    hidden: int = 4
    layers: int = 1
    both: bool = False
    last: bool = False

    def make(self, m: Block, shape: Shape) -> None:
        m.cell = getattr(nn, self.how)(shape[-1], self.hidden, self.layers, batch_first=True, bidirectional=self.both)

    def run(self, m: Block, x: Tensor) -> Tensor:
        y, state = m.cell(x)
        return y + (state[0] if isinstance(state, tuple) else state).sum() if self.last else y


@dataclass(frozen=True)
class Cell(Spec):
    """A cell written by hand, over the input beside the hidden state."""

    how: str = "lstm"  # lstm, gru, plain, sum
    hidden: int = 4
    joined: bool = True

    def make(self, m: Block, shape: Shape) -> None:
        gates = {"lstm": 4, "gru": 2}.get(self.how, 1) * self.hidden
        m.gates = nn.Linear(shape[-1] + self.hidden, gates)
        m.ih, m.hh = nn.Linear(shape[-1], gates), nn.Linear(self.hidden, gates)
        m.new = nn.Linear(shape[-1] + self.hidden, self.hidden)

    def run(self, m: Block, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], self.hidden)
        found = []
        for t in range(x.shape[1]):
            h, c = self.step(m, x[:, t], h, c)
            found.append(h)
        return torch.stack(found, 1)

    def step(self, m: Block, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the states after one token."""
        y = m.gates(torch.cat([x, h], 1)) if self.joined else m.ih(x) + m.hh(h)
        if self.how == "lstm":
            i, f, o, g = y.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            return o.sigmoid() * c.tanh(), c
        if self.how == "gru":
            r, z = y.sigmoid().chunk(2, 1)
            return (1 - z) * m.new(torch.cat([x, r * h], 1)).tanh() + z * h, c
        return y.tanh(), c


@dataclass(frozen=True)
class Nodes(Spec):
    """Tokens as the nodes of a graph, with messages along fixed edges."""

    how: str = "index_add"  # index_add, scatter_add, scatter_mean, gather, index_put, index_copy, masked, dense
    out: int = 6

    def make(self, m: Block, shape: Shape) -> None:
        m.send, m.own = nn.Linear(shape[-1], self.out), nn.Linear(shape[-1], self.out)
        m.register_buffer("source", torch.tensor([0, 1, 2, 3, 4, 5, 0, 2]) % shape[1])
        m.register_buffer("target", torch.tensor([1, 2, 3, 4, 5, 0, 3, 3]) % shape[1])
        m.register_buffer("dense", torch.eye(shape[1]).roll(1, 0) * 0.5)

    def run(self, m: Block, x: Tensor) -> Tensor:
        y, own = m.send(x), m.own(x)
        if self.how == "masked":
            return own.masked_fill((m.dense.sum(1) > m.dense.diagonal())[: x.shape[1]].view(1, -1, 1), 0.0) + y
        messages = y[:, m.source]
        index = m.target.view(1, -1, 1).expand_as(messages)
        if self.how == "index_add":
            return torch.relu(own.index_add(1, m.target, messages))
        if self.how == "scatter_add":
            return torch.relu(own.scatter_add(1, index, messages))
        if self.how == "scatter_mean":
            return own + torch.zeros_like(own).scatter_reduce(1, index, messages, "mean", include_self=False)
        if self.how == "gather":
            return own + torch.cat([y, messages], 1).gather(1, index[:, : x.shape[1]])
        if self.how == "index_put":
            return own + torch.zeros_like(own).index_put(
                (torch.arange(x.shape[0]).unsqueeze(1), m.target), messages, True
            )
        if self.how == "index_copy":
            return own.index_copy(1, m.target[:4], messages[:, :4])
        return own + torch.einsum("mn,bnc->bmc", m.dense, y)


@dataclass(frozen=True)
class Fourier(Spec):
    """Filters over the tokens, in frequencies."""

    how: str = "real"  # real, complex, fnet, modes, short
    out: int = 6

    def make(self, m: Block, shape: Shape) -> None:
        m.into = nn.Linear(shape[-1], self.out)
        m.filter = nn.Parameter(torch.randn(shape[1] // 2 + 1, self.out))
        m.real, m.imaginary = (nn.Parameter(torch.randn(2, self.out, 5)) for _ in range(2))

    def run(self, m: Block, x: Tensor) -> Tensor:
        y, n = m.into(x), x.shape[1]
        if self.how == "fnet":
            return torch.fft.fft(y, dim=1).real
        if self.how == "short":
            z = torch.stft(
                y.transpose(1, 2).flatten(0, 1), 4, 2, window=torch.ones(4, dtype=y.dtype), return_complex=True
            )
            return z.abs().square().sum(1).unflatten(0, (x.shape[0], -1)).transpose(1, 2)
        z = torch.fft.rfft(y, dim=1)
        if self.how == "modes":
            low = torch.einsum("bkc,kcd->bkd", z[:, :2], torch.complex(m.real, m.imaginary))
            return torch.fft.irfft(low, n=n, dim=1)
        weight = torch.complex(m.filter, m.filter.flip(0)) if self.how == "complex" else m.filter
        return torch.fft.irfft(z * weight, n=n, dim=1)


@dataclass(frozen=True)
class Complex(Spec):
    """A parameter of complex numbers."""

    out: int = 5
    how: str = "abs"  # abs, parts

    def make(self, m: Block, shape: Shape) -> None:
        m.into = nn.Linear(shape[-1], 2 * self.out)
        m.weight = nn.Parameter(torch.randn(self.out, self.out, dtype=torch.complex128))

    def run(self, m: Block, x: Tensor) -> Tensor:
        real, imaginary = m.into(x).chunk(2, -1)
        y = torch.complex(real, imaginary)
        y = y @ m.weight.to(y.dtype)
        return y.real.square() + y.imag.square() if self.how == "abs" else torch.cat([y.real, y.imag], -1)


LAYOUTS = (
    "blc,cd->bld",
    "blc,dc->bld",
    "blc,dc->dbl",
    "blc,cd->dlb",
    "...c,dc->...d",
    "b...c,cd->b...d",
    "blc,cd->lbd",
    "cd,blc->bld",
    "blc,dc",
    "blc,cd,d->bld",
    "blc,cd,bl->bld",
    "blc,cde->blde",
    "blc,hdc->bhld",
)


@dataclass(frozen=True)
class Layout(Spec):
    """An einsum, in any layout."""

    text: str = "blc,cd->bld"
    out: int = 6

    def make(self, m: Block, shape: Shape) -> None:
        sizes = {"c": shape[-1], "d": self.out, "e": 2, "h": 2}
        weights = [part for part in self.text.partition("->")[0].split(",") if "b" not in part]
        m.weights = nn.ParameterList(
            nn.Parameter(torch.randn([sizes[c] for c in part if c in sizes])) for part in weights[:2] if "." not in part
        )

    def run(self, m: Block, x: Tensor) -> Tensor:
        made = iter(m.weights)
        parts = self.text.partition("->")[0].split(",")
        operands = [
            x.mean(-1) if part == "bl" else x if part.endswith("c") and part[0] in "b." else next(made)
            for part in parts
        ]
        y = torch.einsum(self.text, *operands)
        back = {"dbl": (1, 2, 0), "dlb": (2, 1, 0), "lbd": (1, 0, 2)}.get(self.text.partition("->")[2])
        if back:
            return y.permute(back)
        if self.text == "blc,hdc->bhld":
            return y.transpose(1, 2).flatten(2)
        return y.flatten(2)


@dataclass(frozen=True)
class Pair(Spec):
    """``nn.Bilinear`` of two projections, or of one with itself."""

    out: int = 5
    same: bool = False

    def make(self, m: Block, shape: Shape) -> None:
        m.a, m.b = nn.Linear(shape[-1], 4), nn.Linear(shape[-1], 4 if self.same else 3)
        m.both = nn.Bilinear(4, 4 if self.same else 3, self.out)

    def run(self, m: Block, x: Tensor) -> Tensor:
        a = m.a(x).relu()
        return m.both(a, a if self.same else m.b(x))


class Sign(torch.autograd.Function):
    """A step forward, nothing at all backward (straight through)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Reversed(torch.autograd.Function):
    """Nothing forward, the gradient's sign backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class Scaled(torch.autograd.Function):
    """A product whose backward is another than autograd's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.clamp(-0.1, 0.1) * ctx.scale, None


@dataclass(frozen=True)
class Gradient(Spec):
    """A backward pass that is not the forward's derivative."""

    how: str = "detach"  # detach, gate, no_grad, frozen, checkpoint, sign, reversed, scaled, quantised
    out: int = 6
    act: str = "tanh"

    def make(self, m: Block, shape: Shape) -> None:
        m.a, m.b, m.c = nn.Linear(shape[-1], self.out), nn.Linear(self.out, self.out), nn.Linear(shape[-1], self.out)
        if self.how == "frozen":
            m.b.requires_grad_(False)

    def run(self, m: Block, x: Tensor) -> Tensor:
        act = ACTS[self.act]
        if self.how == "no_grad":
            with torch.no_grad():
                y = act(m.a(x))
            return m.b(y) + m.c(x)
        y = act(m.a(x))
        if self.how == "detach":
            return m.b(y.detach()) + m.c(x)
        if self.how == "gate":
            return m.b(y) * m.c(x).detach().sigmoid()
        if self.how == "checkpoint":
            return checkpoint(lambda z: act(m.b(z)), y, use_reentrant=False)
        if self.how == "quantised":
            return m.b(y + (y.mul(4).round().div(4) - y).detach())
        if self.how == "scaled":
            return m.b(Scaled.apply(y, 2.0))
        return m.b({"sign": Sign, "reversed": Reversed}[self.how].apply(y) if self.how != "frozen" else y)


@dataclass(frozen=True)
class Region(Spec):
    """A part in another precision, or under another mode."""

    how: str = "bfloat16"  # bfloat16, disabled, enable_grad
    out: int = 6

    @property
    def rounding(self) -> float:
        return {"bfloat16": 3e-2, "disabled": 1e-4}.get(self.how, 1e-8)

    def make(self, m: Block, shape: Shape) -> None:
        m.a, m.b = nn.Linear(shape[-1], self.out), nn.Linear(self.out, self.out)

    def run(self, m: Block, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        if self.how == "enable_grad":
            with torch.enable_grad():
                return m.b(y)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.how == "bfloat16"):
            z = F.linear(y.float(), m.b.weight.float(), m.b.bias.float()).relu()
        return z.to(x.dtype)


class Positive(nn.Module):
    """A parametrisation: positive weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x) - 0.5


class Symmetric(nn.Module):
    """A parametrisation: of a square weight, the mean of it and its transpose."""

    def forward(self, x: Tensor) -> Tensor:
        return (x + x.mT) / 2


@dataclass(frozen=True)
class Made(Spec):
    """A layer whose weight is made of others, on tokens or on images."""

    how: str = "weight"  # weight, rows, old, spectral, orthogonal, masked, structured, positive, symmetric
    out: int = 6
    conv: bool = False

    def make(self, m: Block, shape: Shape) -> None:
        width = shape[1] if len(shape) == 4 else shape[-1]
        square = self.how in ("symmetric",)
        out = width if square else self.out
        layer = (
            nn.Conv2d(width, out, 3 if self.conv and not square else 1, padding=int(self.conv and not square))
            if len(shape) == 4
            else nn.Linear(width, out)
        )
        m.before = nn.Conv2d(width, width, 1) if len(shape) == 4 else nn.Linear(width, width)
        m.layer = self.made(layer) if not (square and len(shape) == 4) else layer

    def made(self, layer: nn.Module) -> nn.Module:
        """Returns the layer, its weight made anew at each call."""
        if self.how == "weight":
            return parametrizations.weight_norm(layer)
        if self.how == "rows":
            return parametrizations.weight_norm(layer, dim=1)
        if self.how == "old":
            return nn.utils.weight_norm(layer)
        if self.how == "spectral":
            return parametrizations.spectral_norm(layer)
        if self.how == "orthogonal":
            return parametrizations.orthogonal(layer)
        if self.how == "masked":
            return prune.l1_unstructured(layer, "weight", 0.4)
        if self.how == "structured":
            return prune.ln_structured(layer, "weight", 0.4, n=2, dim=0)
        parametrize.register_parametrization(layer, "weight", Positive() if self.how == "positive" else Symmetric())
        return layer

    def run(self, m: Block, x: Tensor) -> Tensor:
        return m.layer(m.before(x).relu()).tanh()


@dataclass(frozen=True)
class Average(Spec):
    """A mean, a sum or a norm over the channels, which stay as they were where what went was zero."""

    how: str = "gate"  # gate, sum, centre, power, group, l2, softmax

    def make(self, m: Block, shape: Shape) -> None:
        m.gain = nn.Parameter(torch.ones(1))
        m.groups = gcd(2, shape[1] if len(shape) == 4 else shape[-1])

    def zeros(self) -> bool:
        return self.how not in ("centre", "variance")

    def run(self, m: Block, x: Tensor) -> Tensor:
        dim = 1 if x.dim() == 4 else -1
        if self.how == "gate":
            return x * (m.gain * x.mean(dim, keepdim=True)).sigmoid()
        if self.how == "sum":
            return x * (m.gain * x.sum(dim, keepdim=True)).sigmoid()
        if self.how == "power":
            return x * torch.rsqrt(x.square().mean(dim, keepdim=True) + 1e-3)
        if self.how == "l2":
            return F.normalize(x, dim=dim) * m.gain
        if self.how == "variance":
            return x / (x.var(dim, keepdim=True) + 1.0)
        return x * (x.std(dim, keepdim=True, correction=0) + m.gain)


@dataclass(frozen=True)
class Training(Spec):
    """Something that only training does, and a compiler that looks at evaluation must announce."""

    how: str = "scale"  # scale, more, kept
    out: int = 6

    def make(self, m: Block, shape: Shape) -> None:
        m.a, m.b = nn.Linear(shape[-1], self.out), nn.Linear(shape[-1], self.out)
        m.norm = (Kept if self.how == "kept" else nn.BatchNorm1d)(self.out)

    def run(self, m: Block, x: Tensor) -> Tensor:
        y = m.norm(m.a(x).transpose(1, 2)).transpose(1, 2).relu()
        if not m.training or self.how == "kept":
            return y
        return y * 2 if self.how == "scale" else y + m.b(x)


class Kept(nn.BatchNorm1d):
    """A batch norm that stays as it is, also in training."""

    def train(self, mode: bool = True) -> Kept:
        return super().train(False)


@dataclass(frozen=True)
class Vanishing(Spec):
    """A residual branch that may go altogether."""

    how: str = "two"  # two, one, norm, scaled
    hidden: int = 4

    def make(self, m: Block, shape: Shape) -> None:
        width = shape[-1]
        m.up, m.down, m.one = nn.Linear(width, self.hidden), nn.Linear(self.hidden, width), nn.Linear(width, width)
        m.norm = nn.BatchNorm1d(width)
        m.gamma = nn.Parameter(torch.ones(width))

    def run(self, m: Block, x: Tensor) -> Tensor:
        if self.how == "one":
            return x + m.one(x).relu()
        if self.how == "norm":
            return x + m.norm(m.one(x).transpose(1, 2)).transpose(1, 2).relu()
        y = m.down(m.up(x).relu())
        return x + (y * m.gamma if self.how == "scaled" else y)


@dataclass(frozen=True)
class Written(Spec):
    """Ops with a place to write to, or that make a mask."""

    how: str = "out"  # out, tril, triu, slice, mask, cumsum
    out: int = 6

    def make(self, m: Block, shape: Shape) -> None:
        m.a, m.square = nn.Linear(shape[-1], self.out), nn.Parameter(torch.randn(shape[1], shape[1]) * 0.5)

    def run(self, m: Block, x: Tensor) -> Tensor:
        y = m.a(x)
        if self.how in ("tril", "triu"):
            return (m.square.tril() if self.how == "tril" else m.square.triu()) @ y
        if self.how == "slice":
            z = torch.zeros_like(y)
            z[:, 1:] = y[:, :-1]
            return z + y
        if self.how == "mask":
            z = y.clone()
            z[z < 0] = 0.0
            return z
        return (
            y.cumsum(1)
            if self.how == "cumsum"
            else torch.mul(y, 2.0) + torch.add(y.detach(), 1.0, out=torch.empty_like(y.detach()))
        )


@dataclass(frozen=True)
class Deform(Spec):
    """A deformable convolution, its offsets and mask from the image itself."""

    out: int = 6
    masked: bool = False

    def make(self, m: Block, shape: Shape) -> None:
        m.offset, m.mask = nn.Conv2d(shape[1], 18, 3, padding=1), nn.Conv2d(shape[1], 9, 1)
        m.conv = DeformConv2d(shape[1], self.out, 3, padding=1)

    def run(self, m: Block, x: Tensor) -> Tensor:
        return m.conv(x, m.offset(x).tanh() * 0.7, m.mask(x).sigmoid() if self.masked else None)


@dataclass(frozen=True)
class Spectrum(Spec):
    """A filter over space, in frequencies."""

    how: str = "real"  # real, modes, power

    def make(self, m: Block, shape: Shape) -> None:
        m.filter = nn.Parameter(torch.randn(shape[1], shape[2], shape[3] // 2 + 1))
        m.mix = nn.Parameter(torch.randn(shape[1], 5))

    def run(self, m: Block, x: Tensor) -> Tensor:
        z = torch.fft.rfft2(x)
        if self.how == "real":
            return torch.fft.irfft2(z * m.filter, s=x.shape[2:])
        if self.how == "power":
            return torch.fft.fft2(x).real
        low = torch.einsum("bcxy,cd->bdxy", z, m.mix.to(z.dtype))
        return torch.fft.irfft2(low, s=x.shape[2:])
