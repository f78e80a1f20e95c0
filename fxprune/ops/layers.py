"""Modules of emitted networks for calls that no ``torch.nn`` class makes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        """Returns what the op returns: the outputs, then the last hidden state (and the cell state of an LSTM).

        Args:
            input: ``[batch, time, in]``, or with time first as the options say; so are the outputs.
            hx: the first states, ``[layers x directions, batch, hidden]`` each; so are the last ones.
        """
        params = [getattr(self, name) for name in self.names]
        # the graph made the initial states in the dtype of the example: follow the module where it was moved
        hx = [state.to(input.dtype) for state in hx] if isinstance(hx, list | tuple) else hx.to(input.dtype)
        result: tuple[Tensor, ...] = getattr(torch.ops.aten, self.op).input(
            input, hx, params, train=self.training, **self.options
        )
        return result

    def extra_repr(self) -> str:
        """Returns the op and its options."""
        return ", ".join([self.op, *(f"{name}={value}" for name, value in self.options.items())])


class CustomFunction(nn.Module):
    """A ``torch.autograd.Function`` of one tensor, with its own backward.

    Args:
        function: its class.
        args: what it is called with.
        place: which of them the tensor takes the place of.
    """

    def __init__(
        self, function: type[torch.autograd.Function], args: tuple[Any, ...] = (None,), place: int = 0
    ) -> None:
        super().__init__()
        self.function = function
        self.args = args
        self.place = place

    def forward(self, input: Tensor) -> Tensor:
        """Returns what the Function gives for ``input``, ``[...]``."""
        args = (*self.args[: self.place], input, *self.args[self.place + 1 :])
        return self.function.apply(*args)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Returns the class."""
        return self.function.__qualname__
