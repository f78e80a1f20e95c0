"""Small models of many kinds, each with a call: what emit is tried on."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from tests.models.libraries import swin, transformer, vit

Pair = namedtuple("Pair", "first second")


@dataclass
class Case:
    model: Callable[[], nn.Module]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


class Structured(nn.Module):
    """Dict input, defaults, keyword-only and variable arguments, nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, batch, weight=None, scale=2.0, *, mode="sum", mask=None, **extra):
        y = self.layer(batch["x"]) + batch["more"][0]
        y = y if weight is None else y * weight
        y = y if mask is None else y * mask
        y = y + extra["shift"] * scale if "shift" in extra else y
        return {"pair": Pair(y, [y.sum(1), mode]), "none": None, "twice": y * 2}


class Attentive(nn.Module):
    """`nn.MultiheadAttention` with and without weights, in an encoder layer with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 4, dropout=0.3, batch_first=True)
        self.cross = nn.MultiheadAttention(16, 4, dropout=0.2, kdim=8, vdim=8, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.attn(x, x, x, need_weights=False)[0]
        y, weights = self.cross(x, memory, memory)
        return self.encoder(x + y), weights


class Layers(nn.Module):
    """Every kind of layer that becomes a module again, some in unusual ways."""

    def __init__(self) -> None:
        super().__init__()
        self.circular = nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular")
        self.same = nn.Conv2d(8, 8, 3, padding="same", groups=4, bias=False)
        self.cumulative = nn.BatchNorm2d(8, eps=1e-3, momentum=None)
        self.sync = nn.SyncBatchNorm(8)
        self.instance = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.group = nn.GroupNorm(2, 8, eps=1e-4)
        self.prelu = nn.PReLU(8)
        self.up = nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.conv1 = nn.Conv1d(6, 8, 3, dilation=2)
        self.norm1 = nn.BatchNorm1d(8)
        self.up1 = nn.ConvTranspose1d(8, 4, 2, stride=2)
        self.conv3 = nn.Conv3d(1, 2, 3, stride=(1, 2, 1), padding=(1, 0, 1))
        self.norm3 = nn.BatchNorm3d(2, affine=False)
        self.up3 = nn.ConvTranspose3d(2, 2, 2)
        self.plain = nn.LayerNorm((7,), elementwise_affine=False)
        self.layer = nn.LayerNorm(7, bias=False)
        self.rms = nn.RMSNorm(7, eps=1e-5)
        self.embed = nn.Embedding(11, 7, padding_idx=2)
        self.index = nn.Parameter(torch.ones(7))
        self.register_buffer("offset", torch.arange(7.0), persistent=False)
        self.register_buffer("shift", torch.arange(7.0))
        self.register_buffer("idle", torch.arange(3.0))
        self.never = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.sync(self.cumulative(self.same(self.circular(x)))))
        x = self.up(self.prelu(self.group(x)))
        x = self.up1(self.norm1(self.conv1(x.flatten(2))))
        x = self.up3(self.norm3(self.conv3(x[:, None, :, :28].reshape(-1, 1, 4, 4, 7)))).flatten(1)
        x = x[:, :14].reshape(-1, 2, 7)
        x = self.rms(self.layer(self.plain(x))) * self.index + self.offset * self.shift
        return x + self.embed((x[..., 0] > 0).long() + 2)


class Shared(nn.Module):
    """One module called twice, under two names, and one weight in two roles."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.4))
        self.second = self.first
        self.borrowed = nn.Linear(6, 6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.frozen.weight
        self.normed = nn.Linear(6, 6)
        self.scales = nn.ParameterList([nn.Parameter(torch.rand(6)), nn.Parameter(torch.rand(6))])

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)) * self.scales[1]
        x = self.borrowed(x) + F.linear(x, self.borrowed.weight.t())
        return self.normed(self.tied(self.frozen(x))) * self.scales[0]


class Noisy(nn.Module):
    """Everything that is random in training and silent in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.channels = nn.Dropout2d(0.5)
        self.alpha = nn.AlphaDropout(0.3)
        self.features = nn.FeatureAlphaDropout(0.3)
        self.leak = nn.RReLU(0.1, 0.2)
        self.depth = torchvision.ops.StochasticDepth(0.5, "row")
        self.silent = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.channels(self.drop(self.conv(x)))
        x = self.leak(self.features(self.alpha(x)))
        x = x + self.depth(self.silent(x) * 2)
        x = F.dropout(F.dropout(x, 0.25, self.training), 0.0, self.training)
        q = F.dropout2d(x, 0.2, self.training).flatten(2)
        return F.scaled_dot_product_attention(q, q, q, dropout_p=0.3 if self.training else 0.0)


class Recurrent(nn.Module):
    """An LSTM with dropout between its layers, and a GRU both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(5, 6, 2, batch_first=True, dropout=0.5, proj_size=4)
        self.gru = nn.GRU(4, 3, bidirectional=True)
        self.rnn = nn.RNN(6, 3, nonlinearity="relu", bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, (h, c) = self.lstm(x)
        z, n = self.gru(y.transpose(0, 1))
        return self.rnn(z)[0] + n.sum() + h.sum(), c


def _image(size: int = 32) -> tuple[Tensor]:
    return (torch.randn(2, 3, size, size),)


def _ids() -> dict[str, Tensor]:
    ids = torch.randint(3, 50, (2, 9))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


_STRUCTURED = {"x": torch.randn(3, 4), "more": (torch.randn(3, 5),)}
_MORE = {"mask": torch.rand(3, 5), "shift": torch.randn(3, 5), "mode": "mean"}

CASES = {
    "resnet18": Case(torchvision.models.resnet18, _image()),
    "mobilenet_v3_small": Case(torchvision.models.mobilenet_v3_small, _image()),
    "shufflenet": Case(torchvision.models.shufflenet_v2_x0_5, _image()),
    "googlenet": Case(lambda: torchvision.models.googlenet(init_weights=False), _image()),
    "vit": Case(lambda: vit(image_size=32, dropout=0.1, attention_dropout=0.2), _image()),
    "swin": Case(lambda: swin(dropout=0.1, attention_dropout=0.1, stochastic_depth_prob=0.3), _image()),
    "bert": Case(lambda: transformer("BertForMaskedLM"), (), _ids()),
    "llama": Case(
        lambda: transformer("LlamaForCausalLM", num_key_value_heads=2, tie_word_embeddings=True, attention_dropout=0.1),
        (),
        {**_ids(), "use_cache": False},
    ),
    "structured": Case(Structured, (_STRUCTURED, torch.randn(3, 5)), _MORE),
    "attentive": Case(Attentive, (torch.randn(2, 7, 16), torch.randn(2, 5, 8))),
    "layers": Case(Layers, (torch.randn(2, 3, 6, 8),)),
    "shared": Case(Shared, (torch.randn(4, 6),)),
    "noisy": Case(Noisy, (torch.randn(2, 3, 8, 8),)),
    "recurrent": Case(Recurrent, (torch.randn(2, 7, 5),)),
}
