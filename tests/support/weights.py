"""Weights for exactness tests: random everywhere, and with outputs that depend on all of them.

Freshly built networks are no test of a pruning plan: many give constant, vanishing or exploding outputs
(vit_b_16 gives 0, mobilenet_v2 1e-10, inception_v3 1e11), and then a wrong plan looks as exact as a right one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Generator = torch.Generator

# Frozen statistics make a deep network chaotic: a sample that differs from the calibration batch by a tenth grows
# layer by layer, the more so the more a quiet channel is amplified and the larger the gates of squeeze-excitation
# swing. These values keep all networks of the benchmarks within a factor of ten on fresh data, float32 errors at 1e-5.
_OWN = 0.1  # weight of a channel's own variance against the mean over the layer's channels
_BETA = 0.5  # offsets of normalisation layers and of contractions: standard deviation
_GAIN = (0.3, 0.6)  # standard deviation of a contraction's output channel, drawn in this range
_VARIANCE = (1.0, 2.0)  # running variance over the measured one
_FEW = 64  # below so many values in a channel gains are halved, and offsets are positive

_CONVS = (
    F.conv1d,
    F.conv2d,
    F.conv3d,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)
_STATISTICS = (F.batch_norm, F.instance_norm)


def randomise(
    model: nn.Module, seed: int = 0, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None
) -> nn.Module:
    """Gives every parameter, bias and normalisation statistic a random value that keeps activations near one.

    With example inputs (``args`` or ``kwargs``, two samples or more that differ) the network is calibrated on them
    in one evaluation-mode pass: each convolution, linear layer and attention projection gets outputs of standard
    deviation 0.5 to 1.5 around an offset of its own in every channel, each batch norm gets statistics near those of
    its input. Without them the weights are only scaled by their fan-in.

    Args:
        model: changed in place; its training flags are restored.
        seed: the same seed gives the same weights.
        args: positional example inputs.
        kwargs: keyword example inputs.

    Returns:
        The model.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        norms = {id(p) for m in model.modules() if _is_norm(m) for p in m.parameters(recurse=False)}
        scales = {id(getattr(m, "weight", None)) for m in model.modules() if _is_norm(m)}
        for name, parameter in model.named_parameters():
            _fill(name, parameter, generator, norm=id(parameter) in norms, scale=id(parameter) in scales)
        for module in model.modules():
            _fill_statistics(module, generator)
        args = tuple(args)
        if args or kwargs:
            _calibrate(model, generator, args, dict(kwargs or {}))
    return model


def spread(output: Tensor) -> float:
    """Returns how much an output varies over the batch: its standard deviation there over its mean magnitude.

    The batch is the first dimension. Near 0 the output is degenerate, and no comparison of it says anything.
    """
    output = output.detach().double()
    magnitude = output.abs().mean()
    return float(output.std(0).mean() / magnitude) if magnitude > 0 else 0.0


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Returns max |got - expected| over max |expected - mean over the batch|: 0 is equal, no absolute tolerance."""
    got, expected = got.detach().double(), expected.detach().double()
    scale = (expected - expected.mean(0, keepdim=True)).abs().max()
    return float((got - expected).abs().max() / scale)


def fingerprint(model: nn.Module) -> dict[str, tuple[int, str]]:
    """Returns identity and bytes (hashed) of every parameter and buffer: equal before and after, nothing changed."""
    import hashlib

    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        name: (
            id(tensor),
            hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()).hexdigest(),
        )
        for name, tensor in tensors
    }


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _normal(like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _uniform(like: Tensor, generator: Generator, low: float, high: float) -> Tensor:
    return (low + (high - low) * torch.rand(like.shape, generator=generator, dtype=torch.float64)).to(like)


def _fill(name: str, parameter: Tensor, generator: Generator, *, norm: bool, scale: bool) -> None:
    """Norm scales in 0.5 to 1.5, biases small, matrices and kernels by fan-in, lone vectors in +-(0.5 to 1.5)."""
    if not parameter.is_floating_point():
        return
    if norm and scale:
        parameter.copy_(_uniform(parameter, generator, 0.5, 1.5))
    elif norm or name.rpartition(".")[2].endswith("bias"):
        parameter.copy_((_BETA if norm else 0.3) * _normal(parameter, generator))
    elif parameter.numel() == max(parameter.shape, default=1):  # layer scales, class tokens
        sign = _normal(parameter, generator).sign()
        parameter.copy_(sign * _uniform(parameter, generator, 0.5, 1.5))
    elif "embed" in name or "table" in name:  # looked up, not multiplied
        parameter.copy_(_normal(parameter, generator))
    else:
        fan_in = max(1, parameter.numel() // parameter.shape[0])
        parameter.copy_(_normal(parameter, generator) * (1.5 / fan_in**0.5))


def _fill_statistics(module: nn.Module, generator: Generator) -> None:
    mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if isinstance(mean, Tensor) and isinstance(var, Tensor):
        mean.copy_(0.3 * _normal(mean, generator))
        var.copy_(_uniform(var, generator, 0.5, 1.5))


def _calibrate(model: nn.Module, generator: Generator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    training = {module: module.training for module in model.modules()}
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    model.eval()
    try:
        with _Calibration(generator, own):
            model(*args, **kwargs)
    finally:
        for module, flag in training.items():
            module.training = flag


class _Calibration(TorchFunctionMode):
    """Rescales the weights of each contraction, and resets each batch norm's statistics, at its first call."""

    def __init__(self, generator: Generator, own: set[int]) -> None:
        super().__init__()
        self.generator, self.own, self.seen = generator, own, set[int]()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _STATISTICS:
            self._statistics(args, kwargs)
        out = func(*args, **kwargs)
        if func in _CONVS:
            return self._affine(out, 1, *_operands(args, kwargs, 1))
        if func is F.linear:
            return self._affine(out, -1, *_operands(args, kwargs, 1))
        if func is torch.addmm and len(args) == 3:  # transformers' Conv1D: weight is [in, out]
            return self._affine(out, -1, args[2], args[0], output_axis=1)
        if func is F.multi_head_attention_forward:
            weight, bias = _operands(args, kwargs, 11, ("out_proj_weight", "out_proj_bias"))
            return self._affine(out[0], -1, weight, bias), *out[1:]
        return out

    def _fresh(self, tensor: Any) -> bool:
        if not isinstance(tensor, Tensor) or id(tensor) not in self.own or id(tensor) in self.seen:
            return False
        self.seen.add(id(tensor))
        return True

    def _statistics(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        mean, var = _operands(args, kwargs, 1, ("running_mean", "running_var"))
        if mean is None or not self._fresh(mean):
            return
        rows = x.transpose(0, 1).flatten(1)
        variance = _blend(rows.var(1))
        mean.copy_(rows.mean(1) + 0.3 * variance.sqrt() * _normal(mean, self.generator))
        var.copy_(variance * _uniform(var, self.generator, *_VARIANCE))

    @torch.no_grad()  # whatever mode the model is in there
    def _affine(self, out: Tensor, axis: int, weight: Any, bias: Any, output_axis: int = 0) -> Tensor:
        """Gives each output channel a scale and, where there is a bias, an offset of its own."""
        if not self._fresh(weight):
            return out
        raw = (out - bias.view(_broadcast(out, axis))) if isinstance(bias, Tensor) else out
        rows = raw.movedim(axis, 0).flatten(1)
        many = rows.shape[1] >= _FEW
        centred = isinstance(bias, Tensor) and id(bias) in self.own
        share = (0.1 if many else 0.3) if centred else 1.0  # of the mean in the scale: small variations stay small
        size = _blend(rows.var(1) + share * rows.mean(1).square()).sqrt()
        gain = _uniform(size, self.generator, *_GAIN) / (size if many else 2 * size)
        raw = raw * gain.view(_broadcast(out, axis))
        per_weight = _weight_gain(gain, weight, output_axis)
        if per_weight is None:
            return out
        weight.mul_(per_weight)
        if not centred:
            return raw if bias is None else raw + bias.view(_broadcast(out, axis))
        offset = _BETA * _normal(bias, self.generator)
        bias.copy_((offset if many else offset.abs()) - gain * rows.mean(1))  # few and negative: ReLU kills the channel
        return raw + bias.view(_broadcast(out, axis))


def _blend(variance: Tensor) -> Tensor:
    """Draws the channels' variances towards their mean, so that a quiet channel is never amplified much."""
    return _OWN * variance + (1 - _OWN) * variance.mean() + 1e-12


def _operands(
    args: tuple[Any, ...], kwargs: dict[str, Any], at: int, names: tuple[str, str] = ("weight", "bias")
) -> tuple[Any, Any]:
    """Returns two consecutive arguments, given by position or by name."""
    first, second = (args[at + i] if len(args) > at + i else kwargs.get(name) for i, name in enumerate(names))
    return first, second


def _broadcast(out: Tensor, axis: int) -> list[int]:
    shape = [1] * out.ndim
    shape[axis] = -1
    return shape


def _weight_gain(gain: Tensor, weight: Tensor, output_axis: int) -> Tensor | None:
    """Returns the gains laid out along the weight's output axis, or None if they do not fit there."""
    if weight.shape[output_axis] != gain.numel():
        return None
    return gain.view([-1 if i == output_axis else 1 for i in range(weight.ndim)])
