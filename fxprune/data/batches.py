"""Calibration data, checked and on the model's device; and whether a model can work with it.

The forms of one batch are read in ``fxprune.data.batch``; here is the collection, read as often as needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Dataset

from fxprune._base.errors import CalibrationError
from fxprune.data.batch import Batch, ForwardArgs, Signature, bad_batch, read_batch, size_of
from fxprune.data.calls import tensors_of
from fxprune.data.checks import is_mask, non_finite


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
        self._seen: dict[int, object] = {}
        #: Whether a pass had another batch in the place of one of an earlier pass.
        self.moved = False

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches of one pass.

        Raises:
            CalibrationError: no batches, one of an unknown form, NaN or Inf, or one unlike the first.
        """
        for index, batch in enumerate(cast("Iterator[Batch]", self.rounds(0, 1))):
            leaves = [x for x in tensors_of((batch.args, batch.kwargs)) if not x.is_meta and not x.is_complex()]
            told = tuple((tuple(x.shape), float(x.sum(dtype=torch.float64))) for x in leaves)
            self.moved |= self._seen.setdefault(index, told) != told
            yield batch

    def rounds(self, place: int, among: int, *, whole: bool = False) -> Iterator[Batch | None]:
        """Yields, of each ``among`` batches in turn, that at ``place``; None where the last few have none there.

        All of them are read, so that whatever draws random numbers meanwhile draws the same for every place.

        Args:
            place: from 0.
            among: how many batches make a round.
            whole: leave the last few out if they are fewer.

        Raises:
            CalibrationError: as for a pass.
        """
        source, index = iter(self._source), 0
        while (turn := list(islice(source, among))) and (len(turn) == among or not whole):
            yield self._checked(turn[place], index + place) if place < len(turn) else None
            index += len(turn)
        if index:
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
        args, kwargs, targets = call = read_batch(raw, index, self._forward_args)
        if self._reference is not None and set(kwargs) == set(self._reference.keywords):
            kwargs = {key: kwargs[key] for key in self._reference.keywords}
        if self._device.type != "meta" and any(leaf.is_meta for leaf in tensors_of((args, kwargs, targets))):
            raise bad_batch(index, "a tensor lies on the meta device; expected values to work with")
        batch = Batch(self._moved(args), self._moved(kwargs), self._moved(targets), size_of(call, index))
        signature = Signature.of(batch, index)
        self._reference = self._reference or signature
        self._reference.check(signature, index)
        for name, leaf in batch.leaves():
            if isinstance(leaf, Tensor) and (flaw := non_finite(leaf, allow_minus_inf=is_mask(leaf))):
                hint = "" if flaw == "NaN" else " (an additive mask can use torch.finfo(dtype).min)"
                raise bad_batch(index, f"{name} holds {flaw}; expected finite numbers{hint}")
        return batch

    def _moved(self, tree: Any) -> Any:
        return pytree.tree_map_only(Tensor, lambda tensor: _recordable(tensor.detach().to(self._device)), tree)


def _recordable(tensor: Tensor) -> Tensor:
    """Returns a tensor, ``[...]``, that autograd takes, which takes none that was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


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
    return cast("Iterable[Any]", calib)
