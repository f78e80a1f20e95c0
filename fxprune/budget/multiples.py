"""Multiples of channels that devices work on at once, and widths that are none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from fxprune.budget.constraints import Constraints
from fxprune.results.record import GroupRow

#: Bytes of the channels that an instruction works on at once, by what torch says of a processor.
CPU_BYTES = {"AVX512": 64, "AVX2": 32, "SVE256": 32}

#: Of other processors, and of the tensor cores of a GPU, whose kernels want rows that start at such bytes.
OTHER_BYTES = 16


def usual_multiple(device: torch.device, itemsize: int) -> int:
    """Returns how many channels a device works on at once, for weights of so many bytes each."""
    here = device.type in ("cpu", "meta")
    width = CPU_BYTES.get(torch.backends.cpu.get_cpu_capability(), OTHER_BYTES) if here else OTHER_BYTES
    return max(1, width // itemsize)


def itemsize_of(model: nn.Module) -> int:
    """Returns the bytes of an element of most of a model's weights."""
    sizes: Counter[int] = Counter()
    for tensor in model.parameters():
        sizes[tensor.dtype.itemsize] += tensor.numel()
    return max(sizes, key=sizes.__getitem__, default=4)


def awkward(groups: Sequence[GroupRow], multiple: int) -> list[int]:
    """Returns how many channels are left of each group that keeps no multiple, where there was room for one."""
    eased = Constraints(round_to=multiple, eased=True)
    pruned = [row for row in groups if row.kind == "channel" and 0 < row.after < row.before]
    return [
        row.after for row in pruned if row.after % eased.multiple(1, row.before) and row.after & (row.after - 1) != 0
    ]
