"""A parameter, whole or in parts that several processes hold: sums over it, and changes of it in place, along one dimension.

A `DTensor` (FSDP2's ``fully_shard``, tensor parallelism) is summed by its own operators; what is written is written to the part
that this process holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fxprune._base.sharded import is_sharded, whole


def squares(tensor: Tensor, dim: int) -> Tensor:
    """Returns the sum of squares of each coordinate along ``dim``, ``[size]``, in float32 or what the tensor has beyond it."""
    wide = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
    others = [d for d in range(tensor.dim()) if d != dim]
    found = wide.square()
    return whole(found.sum(others) if others else found)


def clear(tensor: Tensor, dim: int, gone: Tensor) -> None:
    """Writes zeros at the flagged coordinates, ``[size]``, along ``dim``."""
    part, flags = _here(tensor, dim, gone)
    part.masked_fill_(flags, 0)


def scale(tensor: Tensor, dim: int, factors: Tensor) -> None:
    """Multiplies each coordinate along ``dim`` by its factor, ``[size]``; a factor of 0 leaves exact zeros."""
    part, here = _here(tensor, dim, factors)
    part.mul_(here.to(part.dtype)).masked_fill_(here == 0, 0)


def shrink(tensor: Tensor, flags: Tensor, amount: float) -> None:
    """Takes ``amount`` off the size of the flagged values of a vector, ``[size]``, those that are smaller becoming zero."""
    part, here = _here(tensor, 0, flags)
    smaller = part.sign() * (part.abs() - amount).clamp_min(0)
    part.copy_(torch.where(here, smaller, part))


def _here(tensor: Tensor, dim: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the part of a tensor that is here, and what of ``values``, ``[size]``, belongs to it, shaped to go with it."""
    part: Any = tensor.detach()
    values = values.to(part.device)
    if is_sharded(tensor):
        values, part = values[_positions(part, dim)], part.to_local()
    return part, values.reshape([-1 if d == dim else 1 for d in range(tensor.dim())])


def _positions(tensor: Any, dim: int) -> Tensor:
    """Returns where the coordinates along ``dim`` that are here lie in the whole, ``[here]``."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    places = [Shard(0) if place.is_shard(dim) else Replicate() for place in tensor.placements]
    every = torch.arange(tensor.shape[dim], device=tensor.to_local().device)
    found: Tensor = distribute_tensor(every, tensor.device_mesh, places, src_data_rank=None).to_local()
    return found
