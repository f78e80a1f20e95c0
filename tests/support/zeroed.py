"""The original with what was removed set to zero: an oracle for outputs, gradients and buffers that knows nothing of the compiler.

It takes from a result only its plan: tensor -> axis -> kept coordinates. Where all else of a parameter is zero, in what makes a
unit as in what reads it, the original computes what it would without the unit; autograd and batch norm do the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

Kept = Mapping[str, Mapping[int, tuple[int, ...]]]
Inputs = tuple[Tensor, ...]


def certain(model: nn.Module) -> nn.Module:
    """Returns the model, without anything that is drawn at random in training."""
    for module in model.modules():
        for name in ("p", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def with_zeros(model: nn.Module, keep: Kept) -> nn.Module:
    """Returns the model, all zero in it that a plan does not keep; of a weight that is made of others what is made of it."""
    tensors = _tensors(model)
    with torch.no_grad():
        for name, axes in keep.items():
            tensor = tensors.get(name)
            for dim, kept in axes.items():
                if tensor is not None:
                    gone = sorted(set(range(tensor.shape[dim])) - set(kept))
                    tensor.index_fill_(dim, torch.tensor(gone, dtype=torch.int64), 0)
    return model


def as_pruned(model: nn.Module, keep: Kept, *, dead: bool = False) -> nn.Module:
    """Returns the model `with_zeros`, and layer and group norms that are over what is kept of their channels.

    All other statistics count what is gone as zeros; with ``dead`` these norms as well where some channels are zero.
    """
    tensors = _tensors(with_zeros(model, keep))
    kept = {id(tensors[name]): torch.tensor(axes[0]) for name, axes in keep.items() if list(axes) == [0]}
    mode = _OverKept(kept, dead)
    forward = model.forward

    def within(*args: Any, **kwargs: Any) -> Any:
        with mode:
            return forward(*args, **kwargs)

    model.forward = within  # type: ignore[method-assign]
    return model


class _OverKept(TorchFunctionMode):
    """Layer and group norms take their statistics over the channels that are kept; their results for the others are zeros."""

    def __init__(self, kept: Mapping[int, Tensor], dead: bool) -> None:
        super().__init__()
        self.kept, self.dead = kept, dead

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm):
            x, sizes, weight, *rest = (*args, *(kwargs or {}).values())
            kept, grouped = self.kept.get(id(weight)), func in (F.group_norm, torch.group_norm)
            if kept is not None and self.dead and _some_zero(x, sizes if grouped else 0):
                return func(_only(kept, x, 1 if grouped else -1), sizes, weight, *rest)
            if kept is not None:
                return _over_kept(grouped, kept, x, sizes, weight, *rest)
        return func(*args, **(kwargs or {}))


def _some_zero(x: Tensor, groups: int) -> bool:
    """Returns whether some channels are zero, of ``groups`` the same of each."""
    flags = (x == 0).movedim(1 if groups else -1, 0).flatten(1).all(dim=1)
    return bool(flags.reshape(groups or 1, -1).all(dim=0).any())


def _only(kept: Tensor, x: Tensor, dim: int) -> Tensor:
    return torch.zeros_like(x).index_copy(dim, kept, x.index_select(dim, kept))


def _over_kept(
    grouped: bool, kept: Tensor, x: Tensor, sizes: Any, weight: Tensor, bias: Tensor | None, eps: float, *_: Any
) -> Tensor:
    dim = 1 if grouped else -1
    part = x.index_select(dim, kept), weight[kept], None if bias is None else bias[kept]
    if grouped:
        groups = len(set((kept // (x.shape[1] // sizes)).tolist()))
        y = F.group_norm(part[0], groups, *part[1:], eps)
    else:
        y = F.layer_norm(part[0], (len(kept),), *part[1:], eps)
    return torch.zeros_like(x).index_copy(dim, kept, y)


def plain(model: nn.Module, keep: Kept) -> tuple[nn.Module, Kept, set[str]]:
    """Returns the model with each made weight that loses something as a plain one, what is kept of it, and the layers it is in.

    The promise is about the weight that acts: of it the rows and columns that are kept stay as they were. Of a tensor with
    several names each has what is kept of it.
    """
    tensors = _tensors(model)
    by_tensor = {id(tensors[name]): axes for name, axes in keep.items() if name in tensors}
    found = dict(keep) | {name: by_tensor[id(tensor)] for name, tensor in tensors.items() if id(tensor) in by_tensor}
    layers = set[str]()
    for path, module in list(model.named_modules()):
        for name, shape in _made(module):
            origins = [key for key in found if key.startswith((f"{path}.parametrizations.{name}.", f"{path}.{name}_"))]
            axes = {d: kept for key in origins if tuple(tensors[key].shape) == shape for d, kept in found[key].items()}
            axes |= keep.get(f"{path}.{name}", {})
            if not axes:
                continue
            for key in origins:
                found.pop(key)
            _fold(module, name)
            found[f"{path}.{name}"] = axes
            layers.add(path)
    return model, found, layers


def has_made(model: nn.Module) -> bool:
    """Returns whether a weight is made of others at each call."""
    return any(_made(module) for module in model.modules())


def _made(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Returns the names and shapes of the weights that a module makes of others at each call."""
    if parametrize.is_parametrized(module):
        return [(name, tuple(getattr(module, name).shape)) for name in module.parametrizations]
    hooks = [hook for hook in module._forward_pre_hooks.values() if type(hook).__name__ == "WeightNorm"]
    return [(hook.name, tuple(getattr(module, hook.name).shape)) for hook in hooks]


def _fold(module: nn.Module, name: str) -> None:
    kind = type(module)  # a parametrised module shares its class with its copies, and loses a property of it
    module.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
    if parametrize.is_parametrized(module, name):
        parametrize.remove_parametrizations(module, name)
    else:
        nn.utils.remove_weight_norm(module, name)


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


@dataclass(frozen=True)
class Step:
    """What one pass forward and backward gives: outputs, gradients by name (None where there is none), buffers by name.

    ``weights`` are the parameters that the gradients are of.
    """

    outputs: list[Tensor]
    weights: dict[str, Tensor]
    gradients: dict[str, Tensor | None]
    buffers: dict[str, Tensor]


def leaves(value: Any) -> list[Tensor]:
    """Returns the tensors of an output, however nested."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def step(model: nn.Module, inputs: Inputs) -> Step:
    """Returns what one training step's pass gives: the loss is a sum of all outputs with weights of many sizes."""
    model.train()
    model.zero_grad()
    found = leaves(model(*inputs))
    loss = sum((_real(out) * _weights(_real(out))).sum() for out in found if out.requires_grad)
    if isinstance(loss, Tensor):
        loss.backward()
    model.eval()
    tensors = _tensors(model)
    return Step(
        [out.detach() for out in found],
        {name: value.detach() for name, value in tensors.items() if isinstance(value, nn.Parameter)},
        {name: value.grad for name, value in tensors.items() if isinstance(value, nn.Parameter)},
        {name: value.clone() for name, value in tensors.items() if not isinstance(value, nn.Parameter)},
    )


def evaluate(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Returns the outputs in evaluation mode."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one kernel for a whole layer, norms and all
    try:
        with torch.no_grad():
            return leaves(model.eval()(*inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def _weights(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(like.numel())
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like.dtype)


def differing(want: list[Tensor], got: list[Tensor], tolerance: float) -> str:
    """Returns in words how two lists of tensors differ by more than rounding; empty if they do not."""
    if [tuple(t.shape) for t in want] != [tuple(t.shape) for t in got]:
        return f"shapes {[tuple(t.shape) for t in want]}, got {[tuple(t.shape) for t in got]}"
    return next((text for a, b in zip(want, got, strict=True) if (text := _apart(a, b, tolerance))), "")


def _apart(want: Tensor, got: Tensor, tolerance: float) -> str:
    if want.dtype != got.dtype:
        return f"{want.dtype}, got {got.dtype}"
    if not want.numel() or torch.equal(want, got):
        return ""
    want, got = _real(want).double(), _real(got).double()
    if not want.isfinite().all():
        return "" if torch.allclose(want, got, rtol=tolerance, equal_nan=True) else "not finite, and not the same"
    error = (want - got).abs().max().item()
    scale = max(want.abs().max().item(), tolerance)
    return "" if error <= tolerance * scale else f"off by {error / scale:.1e} of the largest"


def sliced(tensor: Tensor, axes: Mapping[int, tuple[int, ...]]) -> Tensor:
    """Returns what is kept of a tensor."""
    for dim, kept in axes.items():
        tensor = tensor.index_select(dim, torch.tensor(kept, dtype=torch.long))
    return tensor


#: The largest gradient that is nothing but rounding, in float64.
_NOISE = 1e-15
#: Of how many such changes rounding may be the sum.
_SHAKES = 100


def shaken(model: nn.Module, inputs: Inputs, want: Step) -> dict[str, float]:
    """Returns how far the gradients of a step go by itself when the weights change in their last digits: what rounding may do.

    A bias before a batch norm has a gradient of zero: what is left of large terms that cancel.
    """
    before = {name: tensor.detach().clone() for name, tensor in _tensors(model).items()}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                weight.mul_(1 + 1e-15 * torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight))
    gradients = step(model, inputs).gradients
    with torch.no_grad():
        for name, tensor in _tensors(model).items():
            tensor.copy_(before[name])
    pairs = ((name, a, gradients.get(name)) for name, a in want.gradients.items())
    return {name: (a - b).abs().max().item() for name, a, b in pairs if a is not None and b is not None and a.numel()}


def other_gradients(
    want: Step, got: Step, keep: Kept, apart: set[str], tolerance: float, rounding: Mapping[str, float] | None = None
) -> Iterator[str]:
    """Yields the parameters whose gradients are not the original's; those of the layers ``apart`` have none to compare with.

    ``rounding``: how far that of each may be off because of it.
    """
    whole = max((g.abs().max().item() for g in want.gradients.values() if g is not None and g.numel()), default=0.0)
    if whole < _NOISE:  # the loss does not depend on the parameters: its gradients are rounding
        return
    for name, gradient in got.gradients.items():
        if name.startswith(tuple(f"{layer}." for layer in apart)) or name not in want.gradients:
            continue
        expected = want.gradients[name]
        if expected is None or gradient is None:
            present = expected if gradient is None else gradient
            if present is not None and present.abs().max() > tolerance * whole:
                yield f"{name}: {'a gradient' if gradient is None else 'none'}, got {'none' if gradient is None else 'one'}"
            continue
        axes = keep.get(name, {})
        factor = _factor(sliced(want.weights[name], axes), got.weights[name], tolerance)
        slack = _SHAKES * (rounding or {}).get(name, 0.0)
        if text := _apart_from(sliced(expected, axes) / factor, gradient, tolerance, whole, slack):
            yield f"{name}: {text}"


def _factor(want: Tensor, got: Tensor, tolerance: float) -> float:
    """Returns what a whole parameter was multiplied by, as the gain of a norm is, or one more than it: its gradient is divided by that."""
    if want.shape != got.shape or want.is_complex() or torch.equal(want, got) or not want.any():
        return 1.0
    for more in (0.0, 1.0):
        before, after = want + more, got + more
        factor = ((before * after).sum() / before.square().sum()).item()
        if factor and torch.allclose(after, factor * before, rtol=tolerance, atol=0.0):
            return float(factor)
    return 1.0


def _apart_from(want: Tensor, got: Tensor, tolerance: float, whole: float, slack: float = 0.0) -> str:
    """Differences are measured against the tensor, or a small share of the largest gradient where that is more: rounding."""
    if want.shape != got.shape:
        return f"shape {tuple(want.shape)}, got {tuple(got.shape)}"
    if not want.numel():
        return ""
    error = (want - got).abs().max().item()
    scale = max(want.abs().max().item(), max(tolerance, 1e-6) * whole)
    return "" if error <= tolerance * scale + slack else f"off by {error / max(scale, 1e-300):.1e} of the largest"


def other_buffers(want: Step, got: Step, keep: Kept, apart: set[str], tolerance: float) -> Iterator[str]:
    """Yields the buffers that are not the original's after a step."""
    for name, value in got.buffers.items():
        if name not in want.buffers or name.startswith(tuple(f"{layer}." for layer in apart)):
            continue
        if text := differing([sliced(want.buffers[name], keep.get(name, {}))], [value], tolerance):
            yield f"{name}: {text}"
