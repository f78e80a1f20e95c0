"""Calibration data, checked and on the model's device; and whether a model can work with it.

The forms of one batch are read in ``fxprune.data.batch``; here is the collection, read as often as needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from fxprune._base.errors import CalibrationError
from fxprune.capturing.exported import untouched
from fxprune.data.batch import Batch, ForwardArgs, Signature, bad_batch, read_batch, short, size_of


class Batches:
    """Calibration data that can be gone through again and again; each pass yields the same kind of ``Batch``.

    A batch may be

    - a tensor: ``model(x)``;
    - ``(inputs, targets)``, a tuple or list of two: the inputs may be a tensor, a tuple or a dict;
    - a tuple or list of one: ``model(x)``, as a ``DataLoader`` makes of a ``TensorDataset`` without targets;
    - a mapping, such as a transformers ``BatchEncoding``: keyword arguments; ``labels`` or ``label`` is kept
      out of the call, as the targets;
    - anything else, or a tuple of inputs, with ``forward_args``.

    Example:
        >>> batches = Batches([torch.ones(4, 3), torch.ones(2, 3)], device="cpu")
        >>> [batch.size for batch in batches]
        [4, 2]
    """

    def __init__(self, calib: Any, *, device: torch.device | str, forward_args: ForwardArgs | None = None) -> None:
        """Wraps ``calib``; nothing is read yet.

        Args:
            calib: a ``DataLoader``, a list, or any iterable that starts anew each time; or a single tensor or
                mapping, which counts as one batch.
            device: where the tensors go: the model's device.
            forward_args: makes a call out of a batch. It returns a tuple of arguments, a mapping of keyword
                arguments, ``(args, kwargs)`` or ``(args, kwargs, targets)``. ``tuple`` itself serves for a
                batch that is a sequence of inputs.

        Raises:
            CalibrationError: ``calib`` cannot be gone through twice, or is no collection of batches.
        """
        self._source = _batches_of(calib)
        self._device = torch.device(device)
        self._forward_args = forward_args
        self._reference: Signature | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches of one pass.

        Raises:
            CalibrationError: no batches, one of an unknown form, NaN or Inf, or one unlike the first.
        """
        index = -1
        for index, raw in enumerate(self._source):
            yield self._checked(raw, index)
        if index >= 0:
            return
        if self._reference is None:
            raise CalibrationError("calibration data: it is empty; expected at least one batch")
        raise CalibrationError(
            "calibration data: it ran dry: an earlier pass found batches, this one found none. fxprune reads "
            "the data several times: pass a list or a DataLoader, not a generator"
        )

    def __len__(self) -> int:
        """Returns the number of batches.

        Raises:
            TypeError: the data do not tell.
        """
        return len(self._source)  # type: ignore[arg-type]

    def first(self) -> Batch:
        """Returns the first batch."""
        return next(iter(self))

    def shapes(self, among: int) -> list[Batch]:
        """Returns the first batch of every shape (the number of samples aside) that occurs ``among`` the first so many."""
        found: dict[tuple[Any, ...], Batch] = {}
        for batch in islice(self, among):
            leaves = (leaf for _, leaf in batch.leaves())
            found.setdefault(tuple(leaf.shape[1:] if isinstance(leaf, Tensor) else None for leaf in leaves), batch)
        return list(found.values())

    def _checked(self, raw: Any, index: int) -> Batch:
        args, kwargs, targets = read_batch(raw, index, self._forward_args)
        if self._reference is not None and set(kwargs) == set(self._reference.keywords):
            kwargs = {key: kwargs[key] for key in self._reference.keywords}
        size = size_of((args, kwargs, targets), index)
        batch = Batch(self._moved(args), self._moved(kwargs), self._moved(targets), size)
        signature = Signature.of(batch, index)
        self._reference = self._reference or signature
        self._reference.check(signature, index)
        for name, leaf in batch.leaves():
            if isinstance(leaf, Tensor) and (flaw := non_finite(leaf, allow_minus_inf=_is_mask(leaf))):
                hint = "" if flaw == "NaN" else " (an additive mask can use torch.finfo(dtype).min)"
                raise bad_batch(index, f"{name} holds {flaw}; expected finite numbers{hint}")
        return batch

    def _moved(self, tree: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda tensor: tensor.detach().to(self._device), tree)


def need_targets(batch: Batch, index: int, method: str) -> Any:
    """Returns the targets of a batch.

    Args:
        batch: the batch.
        index: its place in the data, for the message.
        method: the method that asks for them.

    Raises:
        CalibrationError: the batch has none.
    """
    if batch.targets is None:
        raise bad_batch(
            index,
            f"method {method!r} needs targets and there are none: pass (inputs, targets), a dict with "
            "'labels', or forward_args that returns (args, kwargs, targets)",
        )
    return batch.targets


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
    asked = [f"the method needs {' and '.join(needs)}"] if needs else []
    asked += [f"recover={recover!r}"] if recover is not None else []
    asked += ["verify=True"] if verify else []
    if asked:
        raise CalibrationError(
            f"the model lies on the meta device and has no values to work with, but {', '.join(asked)}: choose "
            "method='random' or a Scorer with needs=(), recover=None and verify=False, then apply the plan to the weights"
        )
    return True


def _is_mask(tensor: Tensor) -> bool:
    """Returns whether a tensor is an additive mask: zeros and -Inf."""
    if tensor.is_meta or not tensor.is_floating_point():
        return False
    return bool(((tensor == 0) | (tensor == -torch.inf)).all())


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
        mask_like = id(tensor) not in parameters | statistics
        if tensor.is_meta:
            raise CalibrationError(f"the model: {name} lies on the meta device; expected values to work with")
        if flaw := non_finite(tensor, allow_minus_inf=mask_like):
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
        raise bad_batch(0, f"forward{signature}: {error}; got {batch}{kept_out}; see forward_args") from error
    try:
        _forward(model, _narrowed(batch, 2))
    except Exception:  # a model may insist on its batch size: what counts is the batch as it is
        _forward_or_tell(model, batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Has a model run in evaluation mode, without gradients; whatever it writes, it is as it was on leaving.

    Its buffers are copies meanwhile, flags and attributes are restored.
    """
    with untouched(model, training=False), torch.no_grad():
        copies = {id(buffer): buffer.clone() for buffer in model.buffers()}
        for module in model.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = copies[id(buffer)]
        yield


def non_finite(tensor: Tensor, *, allow_minus_inf: bool = False) -> str:
    """Returns what a tensor holds of ``"NaN"``, ``"Inf"`` or ``"-Inf"``; ``""`` for nothing of the kind."""
    if tensor.is_meta or tensor.numel() == 0:
        return ""
    values = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    if not values.is_floating_point():
        return ""
    if values.element_size() == 1:  # float8 has no aminmax
        values = values.float()
    low, high = (float(bound) for bound in torch.aminmax(values))
    if low != low:
        return "NaN"
    if high == float("inf"):
        return "Inf"
    return "-Inf" if low == float("-inf") and not allow_minus_inf else ""


def _batches_of(calib: Any) -> Iterable[Any]:
    if isinstance(calib, Tensor | Mapping):
        return [calib]
    kind = type(calib).__name__
    if isinstance(calib, tuple) and len(calib) == 2 and all(isinstance(part, Tensor) for part in calib):
        raise CalibrationError(
            "calibration data: expected batches, got a tuple of two tensors: one batch of inputs and targets is "
            "[(inputs, targets)], two batches of inputs are [first, second]"
        )
    if isinstance(calib, Dataset):
        raise CalibrationError(
            f"calibration data: expected batches, got the dataset {kind}, which yields single samples: wrap "
            "it, DataLoader(dataset, batch_size=32) (batch_size=None if it yields whole batches)"
        )
    if isinstance(calib, Iterator):
        raise CalibrationError(
            f"calibration data: expected something that can be read several times, got {kind}, which runs "
            "dry after one pass: pass a list or a DataLoader"
        )
    if isinstance(calib, str | bytes) or not (hasattr(calib, "__iter__") or hasattr(calib, "__getitem__")):
        raise CalibrationError(f"calibration data: expected a DataLoader, a list or a tensor, got {kind}")
    batches: Iterable[Any] = calib
    return batches


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
        raise bad_batch(0, f"the model fails on it: {complaint}\n  expected {wanted}\n  got {batch}") from error


def _forward(model: nn.Module, batch: Batch) -> None:
    with evaluating(model):
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
