"""Block-wise reconstruction: all weights of a block learn to give the dense model's values, by gradient, without labels.

Sequential covariance changes only the layer that reads what went. Here the layers before it, whose units stay, learn as
well: every block, from one target to the next, follows the dense model from what the pruned model really feeds it
(block-wise as in BRECQ, Li et al. 2021, arXiv 2102.05426, section 3.2; targets are those of `sequential`). No gradient
crosses a target, so that blocks learn side by side in one pass and only one block's values are held at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune._base.names import fetch
from fxprune.coupling.coupling import Coupling
from fxprune.recovery.consumers import Consumer
from fxprune.recovery.protocol import Recovered, RecoveryContext
from fxprune.recovery.sequential import find_drift, sequential
from fxprune.twin.interpreter import Run

_PASSES = 8
#: Highest learning rate, as a share of a tensor's root mean square; and the least of it that counts.
_RATE, _LEAST = 1e-3, 1e-2
#: Samples of a step, at most: a few large batches would be too few steps.
_SAMPLES = 32
#: One step's samples in so many are held out, to tell whether anything was learnt.
_HELD_OUT = 8


def reconstruct(context: RecoveryContext) -> Recovered:
    """Returns full-size replacements that follow the dense model more closely than `sequential`'s, or those.

    Adam with a cosine, its rate a share of each tensor's size; a step for 32 samples, or for a batch where its size is
    fixed. One step's samples in eight are held out where there are as many; what was learnt is kept only if the targets'
    mean error falls there.

    Args:
        context: the layers that lose columns, whose outputs, or the sums they go into, are the targets; and the inputs,
            which are gone through eleven times.
    """
    start, coupling, inputs = sequential(context), context.selection.coupling, context.inputs
    blocks = _Blocks(context, start.tensors)
    count = sum(1 for _ in _parts(coupling, inputs))
    held_out = {i for i in range(count) if i % _HELD_OUT == _HELD_OUT - 1} or set(range(count))
    learning = [i for i in range(count) if count < _HELD_OUT or i not in held_out]

    def check() -> float:
        return sum(blocks.follow(flat) for i, flat in enumerate(_parts(coupling, inputs)) if i in held_out)

    before = check()
    groups = [{"params": [p], "lr": _RATE * max(_size(p), _LEAST)} for p in blocks.parameters.values()]
    if not groups or not learning:
        return start
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
    steps = _PASSES * len(learning)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    for _ in range(_PASSES):
        for i, flat in enumerate(_parts(coupling, inputs)):
            if i in learning:
                optimizer.zero_grad()
                blocks.follow(flat, learn=True)
                optimizer.step()
                schedule.step()
    if check() >= before:
        return replace(
            start, skipped=(*start.skipped, "reconstruction: what was learnt is no better on held-out samples")
        )
    module = coupling.captured.module
    tensors = {name: x.detach().to(fetch(module, name).dtype) for name, x in blocks.tensors.items()}
    return Recovered(tensors)


def _parts(coupling: Coupling, inputs: Iterable[Sequence[Tensor]]) -> Iterator[Sequence[Tensor]]:
    """Yields the flat inputs in parts of at most 32 samples, if the graph takes any batch size."""
    captured = coupling.captured
    shapes = [captured.info[node].shape for node in captured.module.graph.nodes if node.op == "placeholder"]
    batched = [captured.batch[0] > 1 and shape[:1] == (captured.batch[0],) for shape in shapes]
    for flat in inputs:
        size = max((len(x) for x, split in zip(flat, batched, strict=True) if split), default=1)
        count = math.ceil(size / _SAMPLES)
        pairs = zip(flat, batched, strict=True)
        yield from zip(*(x.tensor_split(count) if split else (x,) * count for x, split in pairs), strict=True)


def _target(consumer: Consumer) -> fx.Node:
    """Returns where a layer's output is whole: the sum it goes into, or behind what takes its shift."""
    if drift := find_drift(consumer.node):
        return drift.total
    behind = None if consumer.home is None else consumer.home.behind
    return consumer.node if behind is None else behind


def _size(tensor: Tensor) -> float:
    return float(tensor.detach().square().mean().sqrt())


class _Blocks:
    """The dense model and the masked twin side by side, from target to target."""

    def __init__(self, context: RecoveryContext, start: Mapping[str, Tensor]) -> None:
        self.coupling, self.slicer = context.selection.coupling, context.selection.slicer
        graph, module = self.coupling.captured.module.graph, self.coupling.captured.module
        self.targets = {_target(consumer) for consumer in context.consumers}
        self.targets |= {source for node in graph.nodes if node.op == "output" for source in node.all_input_nodes}
        names = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
        own = {
            name: x for name in names if isinstance(x := fetch(module, name), nn.Parameter) and x.is_floating_point()
        }
        halves = any(x.dtype in (torch.float16, torch.bfloat16) for x in own.values())
        self.parameters: dict[str, Tensor] = {}
        for name, value in own.items():
            now = start.get(name, value).detach()
            self.parameters[name] = now.to(torch.promote_types(now.dtype, torch.float32)).clone().requires_grad_()
        self.tensors = {**start, **self.parameters}
        dtype = torch.float32 if halves else None  # halves are too coarse to learn in
        self.dense = Run(context.dense, dtype)
        self.pruned = Run(context.selection.with_tensors(self.tensors), dtype)

    def follow(self, inputs: Sequence[Tensor], *, learn: bool = False) -> float:
        """Returns the mean error of the targets on one batch, as a share of their variance; ``learn`` leaves gradients."""
        with torch.no_grad():
            wanted = {node: values[node] for node, values in self.dense.steps(inputs) if node in self.targets}
        errors = []
        with torch.set_grad_enabled(learn):
            for node, values in self.pruned.steps(inputs):
                if node in self.targets and (error := self._error(node, values[node], wanted.pop(node))) is not None:
                    errors.append(float(error.detach()))
                    if error.requires_grad:
                        error.backward()
                        for held, value in values.items():
                            if held.op != "get_attr":
                                values[held] = pytree.tree_map_only(Tensor, Tensor.detach, value)
        return sum(errors) / max(len(errors), 1)

    def _error(self, node: fx.Node, got: Any, wanted: Any) -> Tensor | None:
        """Returns the mean squared error over what is kept, as a share of the variance, if that is a number."""
        if not isinstance(wanted, Tensor) or not wanted.is_floating_point():
            return None
        axes = self.coupling.values.get(node)
        for dim, axis in enumerate(axes if isinstance(axes, tuple) else ()):
            if self.slicer.changed(axis):
                kept = torch.from_numpy(self.slicer.index(axis)).to(wanted.device)
                got, wanted = got.index_select(dim, kept), wanted.index_select(dim, kept)
        variance = wanted.var() if wanted.numel() > 1 else wanted.new_zeros(())
        if not bool(torch.isfinite(variance)) or float(variance) == 0:
            return None
        error: Tensor = (got - wanted).square().mean() / variance
        return error
