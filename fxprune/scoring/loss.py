"""The loss that gradient methods differentiate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxprune._base.errors import CalibrationError

#: A class that does not count: padding.
IGNORED = -100

Loss: TypeAlias = Callable[[Any, Any], Tensor]


def default_loss(outputs: Any, targets: Any, *, tokens: bool = False) -> Tensor:
    """Returns the mean loss of a batch.

    The outputs' own ``loss`` is not used: a captured graph does not know the targets. Of tokens each is compared with the scores in
    its own place; `fxprune.scoring.causal.causal_loss` compares with those before. Logits are the entry ``logits`` of the outputs,
    else their first floating tensor.

    Args:
        outputs: what the model returns.
        targets: class numbers ``[batch, *positions]`` for logits ``[batch, classes, *positions]``, or for logits
            ``[*, classes]`` of the same leading shape (tokens), which of them `classes_dim` tells; values of the logits' own shape
            for a squared error; or probabilities are not told apart from values: pass a loss of your own.
        tokens: class numbers are of tokens, as for `classes_dim`.

    Raises:
        CalibrationError: outputs and targets do not fit each other.
    """
    logits = logits_of(outputs)
    if not isinstance(targets, Tensor):
        kind = type(targets).__name__
        raise CalibrationError(f"calibration data: targets: expected a tensor, got {kind}; or pass loss=")
    if targets.is_floating_point():
        if targets.shape != logits.shape:
            raise _unfit(logits, targets)
        return functional.mse_loss(logits, targets.to(logits.dtype))
    dim = classes_dim(outputs, targets, tokens=tokens)
    if dim is None:
        raise _unfit(logits, targets)
    classes = _classes(targets, logits.shape[dim])
    if dim == 1:
        return functional.cross_entropy(logits, classes)
    return functional.cross_entropy(logits.flatten(0, -2), classes.flatten())


def classes_dim(outputs: Any, targets: Any, *, tokens: bool = False) -> int | None:
    """Returns the dimension of a model's logits along which the classes of class numbers lie; None if these do not fit.

    The second of ``[batch, classes, *positions]``, the last of ``[*, classes]``. With as many classes as positions logits may be
    either: they are as `torch.nn.functional.cross_entropy` takes them, the second, but the last for ``tokens`` and for an entry
    ``logits`` of the outputs of rank 3, which models of tokens return.

    Args:
        outputs: what the model returns.
        targets: class numbers, ``[batch, *positions]`` or ``[*]``; None is returned for anything else.
        tokens: they are of tokens, ``[batch, tokens]``.
    """
    logits = logits_of(outputs)
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex() or logits.dim() < 2:
        return None
    last = targets.shape == logits.shape[:-1]
    if targets.shape != (logits.shape[0], *logits.shape[2:]):
        return logits.dim() - 1 if last else None
    return 2 if last and logits.dim() == 3 and (tokens or named_logits(outputs) is not None) else 1


def _classes(targets: Tensor, classes: int) -> Tensor:
    """Returns class numbers, ``[...]``, as int64.

    Raises:
        CalibrationError: one is none of so many classes, nor -100, which does not count.
    """
    found = targets.long()
    strange = found[(found != IGNORED) & ((found < 0) | (found >= classes))]
    if strange.numel():
        got = int(strange[0])
        raise CalibrationError(f"calibration data: targets: expected classes from 0 to {classes - 1}, got {got}")
    return found


def one_number(loss: Any) -> Tensor:
    """Returns what a loss of the caller's own gave, ``[]``.

    Raises:
        ValueError: it is not one number.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"loss: expected a tensor of one number, the mean over the batch, got {got}")
    return loss.squeeze()


def logits_of(outputs: Any) -> Tensor:
    """Returns the entry ``logits`` of a model's outputs, else their first floating tensor, ``[...]``.

    Raises:
        CalibrationError: there is none.
    """
    named = named_logits(outputs)
    leaves = pytree.tree_leaves(outputs) if named is None else [named]
    found = next((x for x in leaves if isinstance(x, Tensor) and x.is_floating_point() and x.dim()), None)
    if found is None:
        raise CalibrationError("the model returns no floating tensor to take for logits; pass loss=")
    return found


def named_logits(outputs: Any) -> Tensor | None:
    """Returns the entry ``logits`` of a model's outputs, ``[...]``, if there is one."""
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    return found if isinstance(found, Tensor) else None


def log_probabilities(outputs: Any) -> tuple[Tensor, int]:
    """Returns the log of the softmax of a model's logits in float64, ``[...]``, and the dimension of the classes.

    Classes lie along dimension 1; along the last one for outputs of rank 3 (tokens).
    """
    logits = logits_of(outputs).double()
    dim = logits.dim() - 1 if logits.dim() in (1, 3) else 1
    return logits.log_softmax(dim), dim


def over_samples(loss: Tensor) -> float:
    """Returns a loss ``[samples, *positions]`` averaged over positions (pixels, tokens) and summed over samples."""
    return float(loss[..., None].flatten(1).mean(dim=1).sum()) if loss.dim() else float(loss)


def _unfit(logits: Tensor, targets: Tensor) -> CalibrationError:
    got = f"{str(targets.dtype).removeprefix('torch.')} {list(targets.shape)}"
    return CalibrationError(
        f"calibration data: targets {got} do not fit outputs {list(logits.shape)}: expected class numbers "
        f"[{logits.shape[0]}{', ...' if logits.dim() > 2 else ''}], or values of the outputs' shape; or pass loss="
    )
