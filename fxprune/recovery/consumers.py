"""The layers that read pruned channels: their columns, where a constant shift of their output can go, and their new tensors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, fx
from torch.nn import functional

from fxprune._base.errors import RecoveryError
from fxprune._base.names import fetch
from fxprune._base.pages import touched
from fxprune._base.shelf import Shelf
from fxprune.algebra.channels import Mask
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.selection import Selection
from fxprune.ops.registry import bind, is_kind
from fxprune.ops.tracer import Contraction
from fxprune.recovery.affine import Affine, added_to, affine_of, own_parameter
from fxprune.recovery.windows import Windows


@dataclass(frozen=True, slots=True, eq=False)
class Home:
    """The tensor that takes a constant shift of a layer's output: ``tensor += sign * shift``.

    Attributes:
        tensor: its name.
        sign: 1 or -1.
        behind: the op behind the layer that it belongs to, if it is not the layer's own: what that gives does not move.
    """

    tensor: str
    sign: int
    behind: fx.Node | None = None


#: As many samples are ample for a regression: for few columns, and for each of many.
_SAMPLES, _PER_COLUMN = 1 << 16, 128


class Draw(NamedTuple):
    """Which batch of how many samples are drawn from."""

    batch: int
    batches: int


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """A linear layer, a convolution or a product with a matrix, that reads channels of which some go.

    Its input becomes a matrix with ``groups * columns`` columns, its weight ``[groups, outputs, columns]``.

    Attributes:
        node: the op in the captured graph.
        weight: the weight's name.
        bias: the bias' name, if there is one.
        affine: what the op is.
        groups: convolution groups.
        kept: for each group which columns stay, ``[groups, columns]``.
        rows: which outputs stay, ``[groups, outputs]``.
        home: where a shift goes, or None.
    """

    node: fx.Node
    weight: str
    bias: str | None
    affine: Affine
    groups: int
    kept: Mask
    rows: Mask
    home: Home | None

    @property
    def source(self) -> fx.Node:
        """The node that gives the layer's input."""
        return self.affine.input

    @property
    def alone(self) -> bool:
        """Whether each output reads one channel, as in a depthwise convolution: none makes up for another."""
        return self.groups > 1 and self.kept.shape[1] == math.prod(self.affine.arguments.kernel)

    def matrix(self, weight: Tensor) -> Tensor:
        """Returns a weight as ``[groups, outputs, columns]``."""
        weight = weight.mT if self.affine.inward else weight
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1)

    def restored(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Returns ``[groups, outputs, columns]`` in the shape and dtype of the weight."""
        shape = like.mT.shape if self.affine.inward else like.shape
        weight = matrix.reshape(shape).to(like.dtype)
        return weight.mT.contiguous() if self.affine.inward else weight

    def samples(self, shape: Sequence[int]) -> int:
        """Returns how many samples an output of this shape holds: tokens, or batch times positions."""
        return math.prod(shape[:-1] if self.affine.last else (shape[0], *shape[2:]))

    def columns(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Returns samples of an input as ``[rows, groups, columns]``, unfolded under a convolution's kernel: those chosen, or all."""
        if self.affine.last:
            every = x.reshape(-1, 1, x.shape[-1])
            return every if rows is None else every[rows]
        windows = _windows(x, self.affine.arguments)  # [b, *positions, c, *kernel]
        places = windows.shape[: x.dim() - 1]
        chosen = windows if rows is None else windows[torch.unravel_index(rows, places)]
        return chosen.reshape(math.prod(places) if rows is None else len(rows), self.groups, -1)

    @property
    def windows(self) -> Windows | None:
        """The windows that it reads, if they move by one along one dimension or two."""
        a = self.affine.arguments
        dims = 0 if self.affine.last else len(a.kernel)
        if not 0 < dims <= 2 or {*_tuple(a.stride, dims), *_tuple(a.dilation, dims)} != {1}:
            return None
        pads, alone = _pads(a), (1,) * (2 - dims)  # one dimension is two, of which one is of length 1
        if any(before != behind for before, behind in pads):
            return None
        return Windows((*alone, *a.kernel), (*(0 for _ in alone), *(p for p, _ in pads)), self.groups)

    def outputs(self, y: Tensor, rows: Tensor | None = None) -> Tensor:
        """Returns samples of an output, or anything of its shape, as ``[rows, groups, outputs]``: those chosen, or all."""
        if not self.affine.last:
            y = y.movedim(1, -1)
        every = y.reshape(-1, self.groups, y.shape[-1] // self.groups)
        return every if rows is None else every[rows]

    def read(self, values: Mapping[fx.Node, Any], memory_limit: int, draw: Draw) -> Tensor:
        """Returns chosen samples of what the layer reads, ``[rows, groups, columns]``, from the values alive at its node."""
        rows = self.choose(values[self.node].shape, memory_limit, draw)
        return self.columns(values[self.source], rows)

    def choose(self, shape: Sequence[int], memory_limit: int, draw: Draw) -> Tensor | None:
        """Returns which samples of an output of this shape count, ``[rows]``, in order, so that all batches' are ample, and fit; None for all."""
        count, columns = self.samples(shape), self.kept.shape[1]
        ample = _PER_COLUMN * columns if self.alone else max(_SAMPLES, _PER_COLUMN * columns)
        most = min(-(-ample // draw.batches), max(memory_limit // (16 * columns * self.groups), 1))
        if count <= most:
            return None
        return torch.randint(count, (most,), generator=torch.Generator().manual_seed(draw.batch)).sort().values


class Replacements:
    """Full-size replacements of parameters and buffers; what was not changed is the model's own.

    Args:
        coupling: of the captured graph.
        start: replacements that there are already.
        shelf: where the tensors of layers that are changed go, if not into memory.

    Attributes:
        tensors: name -> replacement; grows.
        shelf: where they go.
        told: what is to be known of layers that were changed; grows.
    """

    def __init__(
        self, coupling: Coupling, start: Mapping[str, Tensor] | None = None, shelf: Shelf | None = None
    ) -> None:
        self._module = coupling.captured.module
        self.tensors: dict[str, Tensor] = dict(start or {})
        self.shelf = shelf
        self.told: list[str] = []

    def value(self, name: str) -> Tensor:
        """Returns a parameter or buffer, ``[...]``, as recovery has left it so far."""
        found: Tensor = self.tensors[name] if name in self.tensors else fetch(self._module, name).detach()
        touched(found)
        return found

    def made(self, consumer: Consumer) -> bool:
        """Returns whether a layer's tensors are on the shelf since an earlier run, and takes them from there."""
        if self.shelf is None or consumer.weight not in self.shelf:
            return False
        names = (consumer.weight, *(() if consumer.home is None else (consumer.home.tensor,)))
        self.tensors.update((name, self.shelf[name]) for name in names)
        self.told += [self.shelf.notes[consumer.weight]] if consumer.weight in self.shelf.notes else []
        return True

    def add(self, consumer: Consumer, update: Tensor, shift: Tensor, note: str = "") -> None:
        """Changes a layer.

        Args:
            consumer: the layer.
            update: is added to its weight, ``[groups, outputs, columns]``.
            shift: is added to its outputs, ``[groups, outputs]``, where the layer has a home for that.
            note: what is to be known of it.

        Raises:
            RecoveryError: one of them is no tensor of that shape; names the layer.
        """
        expected = tuple(consumer.matrix(self.value(consumer.weight)).shape)
        _check_shape(f"{consumer.weight}: update", update, expected)
        _check_shape(f"{consumer.weight}: shift", shift, expected[:2])
        weight = self.value(consumer.weight)
        new = consumer.matrix(weight).double() + update
        made = {consumer.weight: consumer.restored(new, weight)}
        if consumer.home is not None:
            home = self.value(consumer.home.tensor)
            moved = home.double() + consumer.home.sign * shift.reshape(-1)
            made[consumer.home.tensor] = moved.to(home.dtype)
        if self.shelf is not None:
            self.shelf.put(made, note)
        self.told += [note] if note else []
        self.tensors |= made


def _check_shape(what: str, value: Any, expected: tuple[int, ...]) -> None:
    got = list(value.shape) if isinstance(value, Tensor) else value
    if got != list(expected):
        raise RecoveryError(f"{what}: expected a tensor {list(expected)}, got {got!r:.80}")


def _tuple(value: int | Sequence[int], n: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


def _windows(x: Tensor, a: SimpleNamespace) -> Tensor:
    """Before: x[b, c, *space].  After: a view [b, *positions, c, *kernel]."""
    n = len(a.kernel)
    stride, dilation = _tuple(a.stride, n), _tuple(a.dilation, n)
    x = functional.pad(x, [p for pair in reversed(_pads(a)) for p in pair])
    for dim in range(n):
        x = x.unfold(2 + dim, dilation[dim] * (a.kernel[dim] - 1) + 1, stride[dim])[..., :: dilation[dim]]
    return x.movedim(1, n + 1)


def _pads(a: SimpleNamespace) -> list[tuple[int, int]]:
    """Returns how many zeros lie before and behind each dimension."""
    n = len(a.kernel)
    if a.padding == "same":
        reach = [d * (k - 1) for k, d in zip(a.kernel, _tuple(a.dilation, n), strict=True)]
        return [(r // 2, r - r // 2) for r in reach]
    return [(p, p) for p in ((0,) * n if a.padding == "valid" else _tuple(a.padding, n))]


def find_consumers(
    selection: Selection, *, every: bool = False, depthwise: bool = False
) -> tuple[list[Consumer], list[str]]:
    """Returns the layers whose input loses channels, in graph order, and notes on those that are left alone.

    Args:
        selection: what goes.
        every: also the layers whose input could lose channels, or nothing, but does not.
        depthwise: also convolutions that read each output from one channel: none makes up for another, but what is left may have drifted.
    """
    coupling, slicer = selection.coupling, selection.slicer
    uses = Counter(str(c.weight.target) for c in coupling.contractions if c.weight is not None and c.axis)
    found: list[Consumer] = []
    notes: list[str] = []
    for contraction in coupling.contractions:
        node, weight = contraction.node, contraction.weight
        if weight is None or not (every or slicer.changed(contraction.axis)):
            continue
        if is_kind(node, "recurrent"):
            continue  # `fxprune.recovery.gates`
        name, affine = str(weight.target), affine_of(coupling, contraction)
        tensor = fetch(coupling.captured.module, name)
        if affine is None:
            notes.append(f"{name}: no compensation for {node.target}")
        elif tensor.is_complex():
            notes.append(f"{name}: no compensation for complex weights")
        elif uses[name] > 1 or len(weight.users) > 1:
            notes.append(f"{name}: used more than once")
        elif _depthwise(affine, tensor) and not depthwise:
            continue  # nothing is left to take over
        elif not affine.last and len(coupling.captured.info[affine.input].shape) != tensor.dim():
            notes.append(f"{name}: an input without a batch")
        elif not affine.last and _vary(affine.arguments):
            notes.append(f"{name}: windows that follow the input's size")
        else:
            found.append(_consumer(selection, contraction, affine, tensor))
    return found, list(dict.fromkeys(notes))


def _depthwise(affine: Affine, weight: Tensor) -> bool:
    return getattr(affine.arguments, "groups", 1) > 1 and weight.shape[1] == 1


def _consumer(selection: Selection, contraction: Contraction, affine: Affine, weight: Tensor) -> Consumer:
    coupling, slicer, node = selection.coupling, selection.slicer, contraction.node
    assert contraction.weight is not None
    groups = getattr(affine.arguments, "groups", 1)
    outs, columns, *kernel = (weight.mT if affine.inward else weight).shape if weight.dim() > 1 else (1, len(weight))
    affine.arguments.kernel = tuple(kernel)
    axes = coupling.values[contraction.weight]
    channels = slicer.mask(contraction.axis)
    outputs = slicer.mask(axes[affine.outward]) if weight.dim() > 1 else None
    channels = np.ones(columns * groups, bool) if channels is None else channels
    outputs = np.ones(outs, bool) if outputs is None else outputs
    kept = np.repeat(channels.reshape(groups, -1), math.prod(kernel), axis=1)
    bias = own_parameter(coupling, affine.bias)
    home = _home(coupling, node, affine, bias)
    return Consumer(node, str(contraction.weight.target), bias, affine, groups, kept, outputs.reshape(groups, -1), home)


def _vary(a: SimpleNamespace) -> bool:
    """Returns whether a convolution's literals are known only at run time."""
    sizes = [
        x
        for value in (a.stride, a.padding, a.dilation)
        for x in (value if isinstance(value, (list, tuple)) else [value])
    ]
    return any(isinstance(size, fx.Node) for size in sizes)


def _home(coupling: Coupling, node: fx.Node, affine: Affine, bias: str | None) -> Home | None:
    """A shift goes into the bias, into one that is added next, or into the running mean of a batch norm that alone reads the output."""
    if bias is not None:
        return Home(bias, 1)
    if affine.bias is not None or len(node.users) != 1:
        return None
    user = next(iter(node.users))
    if is_kind(user, "batch_norm") and not bind(user).training:
        if affine.last and len(coupling.captured.info[node].shape) != 2:
            return None  # its channels are places
        mean = own_parameter(coupling, bind(user).running_mean)
        return Home(mean, -1, user) if mean else None
    found = added_to(coupling, node, affine)
    return None if found is None else Home(found[1], 1, found[0])
