"""Several processes at one compilation or training: what each takes of the work, and how what they found becomes one.

All of them go the same way through the stages and hold the same plan. Batches, and the sets of units that are masked, are shared out;
sums of them are added up in float64, the same number in every process. Gradients are added up as they are.
"""

from __future__ import annotations

import contextlib
import datetime
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from fxprune._base.errors import FxpruneError

T = TypeVar("T")

#: How long a process waits for the others, at most; less where the process group was made with less.
PATIENCE = datetime.timedelta(minutes=10)

#: Seconds that the store of the process group has for an answer.
_ANSWER = 5.0

#: Tensors are added up together while they take no more bytes.
_AT_ONCE = 1 << 25


@dataclass(frozen=True, slots=True, eq=False)
class Ranks:
    """The processes.

    Attributes:
        group: of gloo, their own.
        rank: of this one.
        world: how many there are.
    """

    group: Any
    rank: int
    world: int

    @property
    def reason(self) -> str:
        """Where in the store a process that fails says why."""
        return f"fxprune: why {self.group.group_name} failed"


_RANKS: ContextVar[Ranks | None] = ContextVar("ranks", default=None)


def rank() -> int:
    """Returns the number of this process; 0 if it is alone."""
    ranks = _RANKS.get()
    return 0 if ranks is None else ranks.rank


def world() -> int:
    """Returns how many processes share the work."""
    ranks = _RANKS.get()
    return 1 if ranks is None else ranks.world


def own(items: Iterable[T]) -> Iterator[tuple[int, T]]:
    """Yields this process's share of what all have, each with its number among all."""
    for number, item in enumerate(items):
        if number % world() == rank():
            yield number, item


def summed(*parts: Tensor) -> list[Tensor]:
    """Returns the sums over all processes of tensors, ``[...]`` each, of the same shapes everywhere; in float64, to all the same."""
    ranks = _RANKS.get()
    if ranks is None or not parts:
        return list(parts)
    whole = torch.cat([part.detach().double().cpu().reshape(-1) for part in parts])
    _together(ranks, lambda: dist.all_reduce(whole, group=ranks.group))
    found = whole.split([part.numel() for part in parts])
    return [each.reshape(part.shape).to(part.device) for each, part in zip(found, parts, strict=True)]


def gathered(value: T) -> list[T]:
    """Returns what each process has, by rank."""
    ranks = _RANKS.get()
    if ranks is None:
        return [value]
    found: list[Any] = [None] * ranks.world
    _together(ranks, lambda: dist.all_gather_object(found, value, group=ranks.group))
    return found


def of_first(make: Callable[[], T]) -> T:
    """Returns what the first process makes; the others make nothing."""
    ranks = _RANKS.get()
    if ranks is None:
        return make()
    found: list[Any] = [make() if ranks.rank == 0 else None]
    _together(ranks, lambda: dist.broadcast_object_list(found, dist.get_global_rank(ranks.group, 0), ranks.group))
    return cast("T", found[0])


def add_up(tensors: Sequence[Tensor]) -> None:
    """Writes the sums over all processes in place of tensors, ``[...]`` each, of the same shapes and dtypes everywhere; to all the same.

    They are added in their order, some at once, half precision in float32: equal tensors give equal bits in every run. Those of an
    accelerator go by the default group's backend.
    """
    ranks = _RANKS.get()
    if ranks is None:
        return
    for some in _lots(tensors):
        whole = torch.cat([t.detach().to(torch.promote_types(t.dtype, torch.float32)).reshape(-1) for t in some])
        group = ranks.group if whole.device.type == "cpu" else None
        _together(ranks, lambda whole=whole, group=group: dist.all_reduce(whole, group=group))  # type: ignore[misc]
        for tensor, part in zip(some, whole.split([tensor.numel() for tensor in some]), strict=True):
            tensor.detach().copy_(part.reshape(tensor.shape))


def _lots(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yields tensors in their order, as many at once as may be added together: of one dtype and device, not too many bytes."""
    lot: list[Tensor] = []
    for tensor in tensors:
        alike = not lot or (lot[0].dtype, lot[0].device) == (tensor.dtype, tensor.device)
        if lot and not (alike and sum(each.nbytes for each in lot) + tensor.nbytes <= _AT_ONCE):
            yield lot
            lot = []
        lot.append(tensor)
    if lot:
        yield lot


def check_same(own: Mapping[str, Any]) -> None:
    """Makes sure that things are the same in all processes.

    Args:
        own: what this one has, by what it is.

    Raises:
        FxpruneError: something differs; says what.
    """
    every = gathered(own)
    for what, value in own.items():
        if any(each[what] != value for each in every):
            raise FxpruneError(f"{what} differs between the {world()} processes: expected the same in each of them")


def _together(ranks: Ranks, call: Callable[[], Any]) -> None:
    try:
        call()
    except RuntimeError as error:
        text = f"another process has failed, or does not answer{_reason(ranks)}: {str(error)[:200]}"
        raise FxpruneError(text) from error


def _reason(ranks: Ranks) -> str:
    """Returns why another process failed, if it said so."""

    def ask(store: Any) -> str:
        return f" ({store.get(ranks.reason).decode()})" if store.check([ranks.reason]) else ""

    return _of_store(ask) or ""


def _of_store(ask: Callable[[Any], T]) -> T | None:
    """Returns what the store of the default group answers; None where it does not: the process that has it may be gone, or hang."""
    found: list[T] = []

    def asked() -> None:
        with contextlib.suppress(Exception):
            found.append(ask(dist.distributed_c10d._get_default_store()))

    asking = threading.Thread(target=asked, daemon=True)
    asking.start()
    asking.join(_ANSWER)
    return found[0] if found else None


def world_size() -> int:
    """Returns how many processes the default group has; 1 if there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextlib.contextmanager
def shared() -> Iterator[None]:
    """Has the processes of the default group, if there is one, share what is done meanwhile; an error in one ends it in all.

    Raises:
        FxpruneError: not all of them came here.
    """
    if world_size() == 1 or _RANKS.get() is not None:
        yield
        return
    try:
        patience = min(PATIENCE, dist.distributed_c10d._get_default_store().timeout)  # type: ignore[attr-defined]
        group = dist.new_group(backend="gloo", timeout=patience)
    except RuntimeError as error:
        raise FxpruneError(
            f"in a process group all {dist.get_world_size()} processes compile or train together, and not all came: call it in each of them with "
            "the same arguments, or compile with alone=True where one does it by itself"
        ) from error
    ranks = Ranks(group, dist.get_rank(), dist.get_world_size())
    token = _RANKS.set(ranks)
    try:
        yield
    except BaseException as error:
        _tell(ranks, error)
        raise
    finally:
        _RANKS.reset(token)
        dist.destroy_process_group(group)


def _tell(ranks: Ranks, error: BaseException) -> None:
    """Says to the others why this process fails, unless one of them did before."""
    words = f"rank {ranks.rank}: {type(error).__name__}: {str(error)[:300]}"
    _of_store(lambda store: None if store.check([ranks.reason]) else store.set(ranks.reason, words))
