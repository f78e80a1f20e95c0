"""ATen calls that are modules again: which op stands for which ``torch.nn`` class, and how to build it.

A recipe never touches weights: it builds a module on the meta device from the sizes of the (sliced) tensors and the
literals of the call, and asks the original module only for what a call in eval mode cannot say (``momentum``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Site:
    """A call of an op on tensors that one module of the original owns.

    Attributes:
        owner: the original module; read only.
        values: every argument of the op by its schema name, defaults included.
        tensors: the sliced tensors by attribute name of the owner (``weight``, ``running_mean``); absent means None.
        rank: number of dimensions of the op's result, if it is known.
    """

    owner: nn.Module
    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    rank: int | None

    def sizes(self, name: str, count: int) -> tuple[int, ...]:
        """Returns an int-list argument of the op as ``count`` ints: ``2`` and ``[2]`` mean ``[2, 2]``."""
        value = self.values[name]
        sizes = (value,) if isinstance(value, int) else tuple(value)
        return sizes * count if len(sizes) == 1 else sizes


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the calls of one op on somebody's parameters become modules.

    Attributes:
        owners: classes of the original module that the op may stand for.
        build: returns the module on the meta device, or None if no plain module does what the call does.
        roles: argument of the op -> attribute of the module; a list of tensors goes by the owner's own list of names.
        inputs: arguments of the op that the module's forward takes, in its order.
        agree: attributes in which a call that borrows the owner's parameters must agree with the owner to be its call.
        borrow: whether a call outside the owner's forward can be the owner's call at all.
    """

    owners: tuple[type[nn.Module], ...]
    build: Callable[[Site], nn.Module | None]
    roles: Mapping[str, str]
    inputs: tuple[str, ...] = ("input",)
    agree: tuple[str, ...] = ()
    borrow: bool = True


@dataclass(frozen=True, slots=True)
class Noise:
    """How an op that is random in training, and captured in eval mode, becomes a module.

    Attributes:
        owners: plain classes of the original module, in order of preference.
        flag: the argument that says "training"; a call with True is random in eval mode as well and stays.
        fields: constructor arguments, by the same name in the op's schema and in the original module.
        functional: the module for a call that no module of the original makes.
    """

    owners: tuple[type[nn.Module], ...]
    flag: str
    fields: tuple[str, ...]
    functional: type[nn.Module]
    input: str = "input"


class FeatureDropout(nn.Module):
    """``F.dropout2d`` and its kin on an input of any rank: drops whole channels while training."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        """Returns ``input`` ``[N, C, ...]`` with channels dropped (training) or unchanged (eval)."""
        return torch.feature_dropout(input, self.p, self.training)

    def extra_repr(self) -> str:
        """Returns the probability."""
        return f"p={self.p}"


class ScaledDotProductAttention(nn.Module):
    """``F.scaled_dot_product_attention`` whose dropout is active while training only."""

    def __init__(self, dropout_p: float) -> None:
        super().__init__()
        self.dropout_p = dropout_p

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Returns attention of ``query`` ``[..., L, E]`` over ``key`` ``[..., S, E]`` and ``value`` ``[..., S, Ev]``."""
        p = self.dropout_p if self.training else 0.0
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    def extra_repr(self) -> str:
        """Returns the probability."""
        return f"dropout_p={self.dropout_p}"


class Recurrent(nn.Module):
    """The parameters of an ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` under their names, and its op.

    Not the class itself: a pruned recurrent layer may have no ``hidden_size`` (layers of several widths), and
    ``torch.compile`` does not take an ``nn.LSTM`` into a full graph, but does take its op.
    """

    def __init__(self, op: str, names: tuple[str, ...], **options: Any) -> None:
        super().__init__()
        self.op = op
        self.names = names
        self.options = options

    def forward(self, input: Tensor, hx: Any) -> tuple[Tensor, ...]:
        """Returns what the op returns: the outputs, then the last hidden state (and the cell state of an LSTM)."""
        params = [getattr(self, name) for name in self.names]
        # the graph made the initial states in the dtype of the example: follow the module where it was moved
        hx = [state.to(input.dtype) for state in hx] if isinstance(hx, list | tuple) else hx.to(input.dtype)
        result: tuple[Tensor, ...] = getattr(aten, self.op).input(
            input, hx, params, train=self.training, **self.options
        )
        return result

    def extra_repr(self) -> str:
        """Returns the op and its options."""
        return ", ".join([self.op, *(f"{name}={value}" for name, value in self.options.items())])


def _conv(cls: type[nn.Module], spatial: int, transposed: bool = False) -> Recipe:
    def build(site: Site) -> nn.Module:
        weight, groups = site.tensors["weight"], site.values["groups"]
        first, second = weight.shape[0], weight.shape[1] * groups
        padding = site.values["padding"]
        options: dict[str, Any] = {"output_padding": site.sizes("output_padding", spatial)} if transposed else {}
        return cls(
            in_channels=first if transposed else second,
            out_channels=second if transposed else first,
            kernel_size=tuple(weight.shape[2:]),
            stride=site.sizes("stride", spatial),
            padding=padding if isinstance(padding, str) else site.sizes("padding", spatial),
            dilation=site.sizes("dilation", spatial),
            groups=groups,
            bias="bias" in site.tensors,
            device="meta",
            **options,
        )

    agree = ("stride", "padding", "dilation", "output_padding")
    return Recipe((cls,), build, _affine(), agree=agree)


def _linear(site: Site) -> nn.Module | None:
    weight = site.tensors["weight"]
    if weight.dim() != 2:
        return None
    return nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in site.tensors, device="meta")


def _statistics_norm(flag: str, plain: Mapping[int, type[nn.Module]]) -> Callable[[Site], nn.Module | None]:
    def build(site: Site) -> nn.Module | None:
        tracked = "running_mean" in site.tensors
        classes = [cls for cls in dict.fromkeys(plain.values()) if isinstance(site.owner, cls)]
        by_rank = plain.get(site.rank) if site.rank is not None else None
        cls = classes[0] if classes else by_rank
        if cls is None or site.values[flag] == tracked:
            return None
        return cls(
            num_features=next(iter(site.tensors.values())).shape[0],
            eps=site.values["eps"],
            momentum=site.owner.momentum,
            affine="weight" in site.tensors,
            track_running_stats=tracked,
            device="meta",
        )

    return build


def _layer_norm(site: Site) -> nn.Module | None:
    weight = site.tensors.get("weight")
    if weight is None:
        return None
    return nn.LayerNorm(tuple(weight.shape), site.values["eps"], bias="bias" in site.tensors, device="meta")


def _rms_norm(site: Site) -> nn.Module:
    return nn.RMSNorm(tuple(site.tensors["weight"].shape), site.values["eps"], device="meta")


def _group_norm(site: Site) -> nn.Module | None:
    weight = site.tensors.get("weight")
    if weight is None:
        return None
    return nn.GroupNorm(site.values["num_groups"], weight.shape[0], site.values["eps"], device="meta")


def _prelu(site: Site) -> nn.Module:
    return nn.PReLU(site.tensors["weight"].numel(), device="meta")


def _embedding(site: Site) -> nn.Module | None:
    if (
        getattr(site.owner, "max_norm", None) is not None
    ):  # the graph renormalises the rows in place, by an op of its own
        return None
    rows, columns = site.tensors["weight"].shape
    padding = site.values["padding_idx"]
    return nn.Embedding(
        rows,
        columns,
        padding_idx=None if padding < 0 else padding,
        scale_grad_by_freq=site.values["scale_grad_by_freq"],
        sparse=site.values["sparse"],
        device="meta",
    )


def _recurrent(op: str, cls: type[nn.Module]) -> Recipe:
    def build(site: Site) -> nn.Module | None:
        if site.values["train"]:
            return None
        names = ("has_biases", "num_layers", "dropout", "bidirectional", "batch_first")
        return Recurrent(op, tuple(site.tensors), **{name: site.values[name] for name in names})

    return Recipe((cls,), build, {"params": "_flat_weights_names"}, ("input", "hx"), borrow=False)


def _affine(*statistics: str) -> dict[str, str]:
    return {name: name for name in ("weight", "bias", *statistics)}


_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE = {2: nn.InstanceNorm1d, 3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}
_STATISTICS = _affine("running_mean", "running_var")

RECIPES: dict[OpOverload, Recipe] = {
    aten.conv1d.default: _conv(nn.Conv1d, 1),
    aten.conv2d.default: _conv(nn.Conv2d, 2),
    aten.conv3d.default: _conv(nn.Conv3d, 3),
    aten.conv1d.padding: _conv(nn.Conv1d, 1),
    aten.conv2d.padding: _conv(nn.Conv2d, 2),
    aten.conv3d.padding: _conv(nn.Conv3d, 3),
    aten.conv_transpose1d.default: _conv(nn.ConvTranspose1d, 1, transposed=True),
    aten.conv_transpose2d.input: _conv(nn.ConvTranspose2d, 2, transposed=True),
    aten.conv_transpose3d.input: _conv(nn.ConvTranspose3d, 3, transposed=True),
    aten.linear.default: Recipe((nn.Linear,), _linear, _affine()),
    aten.batch_norm.default: Recipe((_BatchNorm,), _statistics_norm("training", _NORMS), _STATISTICS, borrow=False),
    aten.instance_norm.default: Recipe(
        (_InstanceNorm,), _statistics_norm("use_input_stats", _INSTANCE), _STATISTICS, borrow=False
    ),
    aten.layer_norm.default: Recipe((nn.LayerNorm,), _layer_norm, _affine(), agree=("eps",)),
    aten.rms_norm.default: Recipe((nn.RMSNorm,), _rms_norm, {"weight": "weight"}, agree=("eps",)),
    aten.group_norm.default: Recipe((nn.GroupNorm,), _group_norm, _affine(), agree=("eps",)),
    aten.prelu.default: Recipe((nn.PReLU,), _prelu, {"weight": "weight"}, ("self",)),
    aten.embedding.default: Recipe(
        (nn.Embedding,),
        _embedding,
        {"weight": "weight"},
        ("indices",),
        agree=("padding_idx", "scale_grad_by_freq", "sparse"),
    ),
    aten.lstm.input: _recurrent("lstm", nn.LSTM),
    aten.gru.input: _recurrent("gru", nn.GRU),
    aten.rnn_tanh.input: _recurrent("rnn_tanh", nn.RNN),
    aten.rnn_relu.input: _recurrent("rnn_relu", nn.RNN),
}

NOISES: dict[OpOverload, Noise] = {
    aten.dropout.default: Noise((nn.Dropout,), "train", ("p",), nn.Dropout),
    aten.feature_dropout.default: Noise((nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), "train", ("p",), FeatureDropout),
    aten.alpha_dropout.default: Noise((nn.AlphaDropout,), "train", ("p",), nn.AlphaDropout),
    aten.feature_alpha_dropout.default: Noise((nn.FeatureAlphaDropout,), "train", ("p",), nn.FeatureAlphaDropout),
    aten.rrelu.default: Noise((nn.RReLU,), "training", ("lower", "upper"), nn.RReLU, "self"),
}
