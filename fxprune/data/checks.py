"""Whether a model can work with its data: one device, finite weights, and a pass that succeeds."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from fxprune._base.errors import CalibrationError
from fxprune._base.modes import lent
from fxprune._base.pages import touched
from fxprune._base.sharded import is_sharded
from fxprune.data.batch import WHOLE, Batch, bad_batch, short

_QUANTISED = ", as in a quantised model; expected plain tensors, to be cut: prune first, then quantise (fxprune.quantize) the result"


def device_of(model: nn.Module) -> torch.device:
    """Returns the one device that holds the model's parameters and buffers (``cpu`` if it has none).

    Raises:
        CalibrationError: they lie on several devices.
    """
    places: dict[torch.device, str] = {}
    for name, tensor in _tensors(model):
        places.setdefault(tensor.device, name)
    if len(places) > 1:
        found = ", ".join(f"{name} on {device}" for device, name in places.items())
        raise CalibrationError(f"the model: expected one device for all of it, got {found}: move it with .to(device)")
    return next(iter(places), torch.device("cpu"))


def without_values(model: nn.Module, needs: Sequence[str], recover: str | None, verify: bool) -> bool:
    """Returns whether a model lies on the meta device, and nothing that is asked for needs its values.

    Raises:
        CalibrationError: something does.
    """
    if not any(tensor.is_meta for _, tensor in _tensors(model)):
        return False
    reasons = {f"the method needs {' and '.join(needs)}": needs, f"recover={recover!r}": recover is not None}
    if asked := [reason for reason, holds in {**reasons, "verify=True": verify}.items() if holds]:
        raise CalibrationError(
            f"the model lies on the meta device and has no values to work with, but {', '.join(asked)}: choose "
            "method='random' or a Scorer with needs=(), recover=None and verify=False, then apply the plan to the weights"
        )
    return True


def is_mask(tensor: Tensor) -> bool:
    """Returns whether a tensor ``[...]`` is an additive mask: zeros and -Inf."""
    known = not tensor.is_meta and tensor.is_floating_point()
    return known and bool(((tensor == 0) | (tensor == -torch.inf)).all())


def check_plain(model: nn.Module) -> None:
    """Makes sure that the model's tensors are numbers side by side, which can be cut: initialised, and not quantised.

    Raises:
        CalibrationError: they are not; names the tensor or the layer.
    """
    for name, tensor in _tensors(model):
        if is_lazy(tensor):
            raise CalibrationError(f"the model: {name} is not initialised yet: call the model once with a batch")
        if is_sharded(tensor):
            raise CalibrationError(
                f"the model: {name} is a DTensor, of which several processes hold a part each: fxprune.compile gathers such a model, as "
                "fxprune.sweep and fxprune.Schedule do; for anything else load its full state dict into a plain one"
            )
        if tensor.is_quantized or hasattr(tensor, "__tensor_flatten__"):
            raise CalibrationError(
                f"the model: {name} is a {type(tensor).__name__} of {short(tensor.dtype)}{_QUANTISED}"
            )
    for name, module in model.named_modules():
        if any(isinstance(value, torch.ScriptObject) for value in vars(module).values()):
            raise CalibrationError(
                f"the model: {name or 'it'} ({type(module).__name__}) holds packed weights{_QUANTISED}"
            )


def check_weights(model: nn.Module) -> None:
    """Makes sure that the model's parameters and buffers hold only finite numbers.

    -Inf is allowed in a buffer that is no batch-norm statistic: attention masks are kept that way.

    Raises:
        CalibrationError: NaN or Inf, or no values at all; names the tensor.
    """
    parameters = {id(parameter) for parameter in model.parameters()}
    statistics = {
        id(buffer)
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._NormBase)
        for buffer in module.buffers(recurse=False)
    }
    for name, tensor in _tensors(model):
        if tensor.is_meta:
            raise CalibrationError(f"the model: {name} lies on the meta device; expected values to work with")
        if flaw := non_finite(tensor, allow_minus_inf=id(tensor) not in parameters | statistics):
            kind = "parameter" if id(tensor) in parameters else "buffer"
            raise CalibrationError(f"the model: {kind} {name} holds {flaw}; expected finite numbers")


def probe(model: nn.Module, batch: Batch) -> None:
    """Makes sure that the model accepts a batch, by a forward pass in evaluation mode on two samples.

    Buffers are copied for the pass, flags and attributes restored: the model stays as it is.

    Raises:
        CalibrationError: the model raised; tells what the batch holds and what the model's parameters are.
    """
    signature = inspect.signature(model.forward)
    try:
        signature.bind(*batch.args, **batch.kwargs)
    except TypeError as error:
        kept_out = "" if batch.targets is None else " and targets, which are kept out of the call"
        way = _as_one(batch) or "see forward_args"
        raise bad_batch(0, f"forward{signature}: {error}; got {batch}{kept_out}; {way}") from error
    try:
        _forward(model, _narrowed(batch, 2))
    except Exception:  # a model may insist on its batch size: what counts is the batch as it is
        _forward_or_tell(model, batch)


def non_finite(tensor: Tensor, *, allow_minus_inf: bool = False) -> str:
    """Returns what a tensor ``[...]`` holds of ``"NaN"``, ``"Inf"`` or ``"-Inf"``; ``""`` for nothing of the kind."""
    touched(tensor)
    values = torch.view_as_real(tensor.detach().resolve_conj()) if tensor.is_complex() else tensor.detach()
    if values.is_meta or not values.numel() or not values.is_floating_point():
        return ""
    if values.element_size() == 1:  # float8 has no aminmax
        values = values.float()
    low, high = (float(bound) for bound in torch.aminmax(values))
    if low != low:
        return "NaN"
    if high == float("inf"):
        return "Inf"
    return "-Inf" if low == float("-inf") and not allow_minus_inf else ""


def flawed(model: nn.Module) -> dict[str, str]:
    """Returns what the model's parameters and buffers hold of NaN and Inf, by name, where they hold any."""
    return {name: flaw for name, tensor in _tensors(model) if (flaw := non_finite(tensor))}


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _forward_or_tell(model: nn.Module, batch: Batch) -> None:
    try:
        _forward(model, batch)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        complaint = f"{type(error).__name__}: {error}"
        wanted = _wanted(model, batch, complaint)
        way = f"\n  {way}" if (way := _as_one(batch)) else ""
        raise bad_batch(0, f"the model fails on it: {complaint}\n  expected {wanted}\n  got {batch}{way}") from error


#: How many channels an image may have.
_COLOURS = (1, 3, 4)


def _as_one(batch: Batch) -> str:
    """Returns how the call is made whose one argument is the batch, where the batch has parts: a list of images, or of one; a dict."""
    parts = len(batch.args) + len(batch.kwargs) + (batch.targets is not None)
    if parts > 1 or batch.kwargs:
        return f"if forward takes the whole batch as one argument, such as a list of images, pass {WHOLE}"
    if any(isinstance(x, Tensor) and x.ndim == 3 and x.shape[0] in _COLOURS for x in batch.args):
        return (
            f"if it is an image without a batch dimension, give it one; if forward takes a list of images, pass {WHOLE}"
        )
    return ""


def _forward(model: nn.Module, batch: Batch) -> None:
    with lent(model, batch.args, batch.kwargs):
        model(*batch.args, **batch.kwargs)


def _narrowed(batch: Batch, size: int) -> Batch:
    def part(tensor: Tensor) -> Tensor:
        return tensor[:size] if tensor.ndim and tensor.shape[0] == batch.size else tensor

    args, kwargs = pytree.tree_map_only(Tensor, part, (batch.args, batch.kwargs))
    return Batch(args, kwargs, None, min(size, batch.size))


def _wanted(model: nn.Module, batch: Batch, complaint: str) -> str:
    """Returns what the model would want instead, as far as its parameters and its complaint tell."""
    tensors = [leaf for _, leaf in batch.leaves() if isinstance(leaf, Tensor)]
    floating = any(tensor.is_floating_point() for tensor in tensors)
    if "indices" in complaint and floating:
        return "int64 or int32 indices for an embedding: convert them with .long()"
    kinds = sorted({short(parameter.dtype) for parameter in model.parameters() if parameter.is_floating_point()})
    strange = any(short(tensor.dtype) not in kinds for tensor in tensors)
    if kinds and strange and (floating or any(tensor.dtype == torch.uint8 for tensor in tensors)):
        return f"{' or '.join(kinds)}, as the model's parameters are: convert the data or the model"
    return "a batch that the model's forward accepts"
