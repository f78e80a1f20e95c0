"""Modules of emitted networks for calls that no ``torch.nn`` class makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


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

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as the class does, by the width of the first layer."""
        rows = getattr(self, self.names[0]).shape[0]
        hidden = rows // {"lstm": 4, "gru": 3}.get(self.op, 1)
        bound = hidden**-0.5 if hidden else 0.0
        for name in self.names:
            nn.init.uniform_(getattr(self, name), -bound, bound)

    def forward(self, input: Tensor, hx: Any) -> tuple[Tensor, ...]:
        """Returns what the op returns: the outputs, then the last hidden state (and the cell state of an LSTM).

        Args:
            input: ``[batch, time, in]``, or with time first as the options say; so are the outputs.
            hx: the first states, ``[layers x directions, batch, hidden]`` each; so are the last ones.

        Raises:
            ValueError: a state or a parameter is of another shape. The op does not look, and would write past the end of one.
        """
        params = [getattr(self, name) for name in self.names]
        self._check(input, hx if isinstance(hx, list | tuple) else [hx], params)
        # the graph made the initial states in the dtype of the example: follow the module where it was moved
        hx = [state.to(input.dtype) for state in hx] if isinstance(hx, list | tuple) else hx.to(input.dtype)
        result: tuple[Tensor, ...] = getattr(torch.ops.aten, self.op).input(
            input, hx, params, train=self.training, **self.options
        )
        return result

    def _check(self, input: Tensor, states: Sequence[Tensor], params: Sequence[Tensor]) -> None:
        if len(states) == 2 and states[0].shape[-1:] != states[1].shape[-1:]:
            return  # of an LSTM with projections, whose code looks for itself
        each = 4 if self.options["has_biases"] else 2
        directions = 2 if self.options["bidirectional"] else 1
        count = self.options["num_layers"] * directions
        if input.dim() != 3 or len(states) != (2 if self.op == "lstm" else 1) or len(params) != each * count:
            raise ValueError(f"{self.op}: expected a batch of sequences, and states and parameters of {count} layers")
        hidden, width = params[1].shape[-1], input.shape[2]
        batch = input.shape[0 if self.options["batch_first"] else 1]
        for state in states:
            _check_shape(f"{self.op}: a state", state, [count, batch, hidden])
        for index, (name, value) in enumerate(zip(self.names, params, strict=True)):
            layer, place = index // (each * directions), index % each
            columns = [[width if layer == 0 else hidden * directions], [hidden], [], []][place]
            _check_shape(f"{self.op}: {name}", value, [_GATES[self.op] * hidden, *columns])

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


def _check_shape(what: str, value: Tensor, expected: Sequence[int]) -> None:
    if list(value.shape) != list(expected):
        raise ValueError(f"{what}: expected {list(expected)}, got {list(value.shape)}")
