"""Verify: the emitted module against the masked twin.

The twin is the original graph at full size with zeros where a removed channel enters a sum, and statistics over what
is kept. It must give what the emitted module gives.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune._base.names import fetch
from fxprune.algebra.channels import Mask
from fxprune.coupling.branches import collapse_of
from fxprune.coupling.interpreter import Coupling
from fxprune.ops.registry import bind, rule_of
from fxprune.ops.tracer import Contraction
from fxprune.ops.twin import Twin

#: Differences of so many units in the last place of an output's largest value are rounding, whatever the tolerance.
ROUNDING = 16

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a comparison with the masked twin found.

    Attributes:
        verified: True if every output agrees, False if one does not, None if an output is degenerate (constant over
            the batch, or not finite), so that agreement would say nothing.
        max_error: the largest ``max |a - b| / max |a - mean of a over the batch|`` of all outputs.
        tolerance: what it had to stay below.
        dtype: the precision of the comparison.
        note: why it is not verified.
    """

    verified: bool | None
    max_error: float
    tolerance: float
    dtype: str
    note: str = ""


class Run:
    """One pass through the captured graph, node by node, values dropped after their last use.

    Without ``removed`` it is the dense model; with it, the masked twin. ``tensors`` replace parameters and buffers by
    name, and are used as they are: gradients reach those that require them. ``dtype`` lifts all floating values, explicit
    casts included.
    """

    def __init__(
        self, coupling: Coupling, removed: Mask | None = None, tensors: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.coupling = coupling
        self.tensors = {} if tensors is None else tensors  # kept by reference: recovery changes it as it goes
        self.dtype = dtype
        self.slicer = coupling.slicer(removed) if removed is not None else None
        self.masked: dict[fx.Node, list[Contraction]] = {}
        if self.slicer is not None:
            for contraction in coupling.contractions:
                if self.slicer.changed(contraction.axis):
                    self.masked.setdefault(contraction.node, []).append(contraction)
        self.stored: frozenset[fx.Node] = frozenset()
        if self.slicer is not None and dtype is not None:
            self.stored = frozenset(collapse_of(coupling, self.slicer).frontier)
        self.last = last_uses(list(coupling.captured.module.graph.nodes))

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        """Returns the flat outputs."""
        result: tuple[Any, ...] = ()
        for node, values in self.steps(inputs):
            if node.op == "output":
                result = values[node]
        return result

    def steps(self, inputs: Sequence[Tensor]) -> Iterator[tuple[fx.Node, Mapping[fx.Node, Any]]]:
        """Yields every node, front to back, with the values that are alive: its own and its operands' among them."""
        values: dict[fx.Node, Any] = {}
        feed = iter(inputs)
        for node in self.coupling.captured.module.graph.nodes:
            values[node] = self.step(node, values, feed)
            if node in self.stored:
                values[node] = self._as_stored(node, values[node])
            yield node, values
            for source in self.last.get(node, ()):
                del values[source]

    def step(self, node: fx.Node, values: Mapping[fx.Node, Any], feed: Iterator[Tensor]) -> Any:
        """Returns the value of one node."""
        if node.op == "placeholder":
            return self._lift(next(feed))
        if node.op == "get_attr":
            name = str(node.target)
            if name in self.tensors:
                return self._cast_up(self.tensors[name])
            return self._lift(fetch(self.coupling.captured.module, name))
        if node.op == "output":
            return fx.node.map_arg(node.args[0], values.__getitem__)
        if self.slicer is not None and node in self.coupling.statistics:
            rule = rule_of(node.target)
            assert rule is not None and rule.twin is not None, f"{node.target} takes a statistic but has no twin"
            arguments = SimpleNamespace(**self._dtypes(vars(bind(node))))
            return rule.twin(Twin(self.slicer, values.__getitem__), node, arguments)
        masked = {c.source: self._masked(node, c.source, values) for c in self.masked.get(node, ())}
        seen: set[fx.Node] = set()

        def value_of(source: fx.Node) -> Any:
            first = source not in seen  # an operand given twice is masked once
            seen.add(source)
            return masked[source] if first and source in masked else values[source]

        args, kwargs = self._dtypes((node.args, node.kwargs))
        args, kwargs = fx.node.map_arg(args, value_of), fx.node.map_arg(kwargs, value_of)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _as_stored(self, node: fx.Node, value: Tensor) -> Tensor:
        """Rounds the constant that a collapsed branch leaves: the pruned model holds it in the model's own precision."""
        return value.to(self.coupling.captured.info[node].dtype).to(value.dtype)

    def _masked(self, node: fx.Node, source: fx.Node, values: Mapping[fx.Node, Any]) -> Tensor:
        value: Tensor = values[source]
        assert self.slicer is not None
        for contraction in self.masked[node]:
            if contraction.source is source:
                mask = self.slicer.mask(contraction.axis)
                if mask is not None:
                    gone = torch.from_numpy(~mask).nonzero().reshape(-1).to(value.device)
                    value = value.index_fill(contraction.dim, gone, 0)
        return value

    def _lift(self, value: Any) -> Any:
        return self._cast_up(value.detach() if isinstance(value, Tensor) else value)

    def _cast_up(self, value: Any) -> Any:
        if self.dtype is not None and isinstance(value, Tensor) and value.is_floating_point():
            return value.to(self.dtype)
        return value

    def _dtypes(self, arguments: Any) -> Any:
        if self.dtype is None:
            return arguments
        return fx.node.map_aggregate(arguments, self._cast)

    def _cast(self, value: Any) -> Any:
        return self.dtype if isinstance(value, torch.dtype) and value.is_floating_point else value


def last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Returns for each node the operands that none of the nodes after it reads."""
    last: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(nodes):
        for source in node.all_input_nodes:
            if source not in seen:
                seen.add(source)
                last.setdefault(node, []).append(source)
    return last


def lifted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns a copy of an emitted module that works in ``dtype`` throughout, explicit casts included."""
    module = copy.deepcopy(module).to(dtype)
    if isinstance(module, fx.GraphModule):

        def swap(value: Any) -> Any:
            return dtype if isinstance(value, torch.dtype) and value.is_floating_point else value

        for node in module.graph.nodes:
            node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), swap)
        module.recompile()
    return module


@torch.no_grad()
def verify(
    coupling: Coupling, removed: Mask, pruned: nn.Module, batch: tuple[tuple[Any, ...], dict[str, Any]], *,
    tensors: Mapping[str, Tensor] | None = None, dtype: torch.dtype | None = None, tolerance: float | None = None,
) -> Certificate:  # fmt: skip
    """Compares the emitted module with the masked twin on one batch.

    Args:
        coupling: of the original graph.
        removed: a flag for each channel id.
        pruned: the emitted module.
        batch: (args, kwargs) as the model takes them.
        tensors: full-size replacements of parameters, where recovery changed them.
        dtype: compare in this precision instead of the model's own.
        tolerance: instead of 1e-9 in float64, 1e-4 in float32.
    """
    args, kwargs = batch
    inputs = coupling.captured.call.flatten(args, kwargs)
    twin = Run(coupling, removed, tensors, dtype)(inputs)
    if dtype is not None:
        pruned = lifted(pruned, dtype)
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, (args, kwargs)
        )
    result = pytree.tree_leaves(pruned(*args, **kwargs))
    expected = [value for value in twin if value is not None]
    certificate = compare(expected, [value for value in result if value is not None], tolerance)
    if certificate.verified is False:
        again = [value for value in Run(coupling, removed, tensors, dtype)(inputs) if value is not None]
        if compare(expected, again, tolerance).verified is False:
            return replace(certificate, verified=None, note="the model draws random numbers in evaluation mode")
    if certificate.verified is None and not _finite(twin) and _finite(Run(coupling, None, tensors, dtype)(inputs)):
        note = "the outputs are not finite, unlike the original's"
        return replace(certificate, verified=False, max_error=float("inf"), note=note)
    return certificate


def _finite(values: Sequence[Any]) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in values if isinstance(value, Tensor))


def compare(expected: Sequence[Any], got: Sequence[Any], tolerance: float | None = None) -> Certificate:
    """Returns whether flat outputs agree (see `Certificate`)."""
    dtypes = [a.dtype for a in expected if isinstance(a, Tensor) and a.is_floating_point()]
    dtype = dtypes[0] if dtypes else torch.float32
    limit = tolerance if tolerance is not None else TOLERANCE.get(dtype, 1e-4)
    failed = partial(Certificate, False, float("inf"), limit, str(dtype))
    if len(expected) != len(got):
        return failed(f"{len(expected)} outputs expected, {len(got)} came")
    worst, note, proof = 0.0, "", False
    for index, (a, b) in enumerate(zip(expected, got, strict=True)):
        if not isinstance(a, Tensor):
            if isinstance(b, Tensor) or a != b:
                return failed(f"output {index} is another value")
            continue
        if not isinstance(b, Tensor) or (a.shape, a.dtype) != (b.shape, b.dtype):
            return failed(f"output {index} has another shape or dtype")
        if not (a.is_floating_point() or a.is_complex()):
            if not torch.equal(a, b):
                return failed(f"output {index} differs in a whole number")
            proof = proof or bool((a != a[:1]).any() if a.dim() else False)
            continue
        error, problem = _error(a, b, limit)
        if error > limit:
            return Certificate(False, error, limit, str(dtype), "the outputs differ")
        note = note or (f"output {index} {problem}" if problem else "")
        worst, proof = max(worst, error), proof or not problem
    if not proof:
        note = note or "no output varies over the batch"
    return Certificate(None if note else True, worst, limit, str(dtype), note)


def _error(a: Tensor, b: Tensor, limit: float) -> tuple[float, str]:
    """Returns the error of ``b`` as a share of how far ``a`` varies (NaN counts as infinite), and why it proves little."""
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    spread, problem = _spread(a)
    if problem:
        finite = a[torch.isfinite(a)]
        scale = float(finite.abs().max()) if finite.numel() else 0.0
        alike = torch.allclose(a, b, rtol=limit, atol=limit * scale, equal_nan=True)
        return 0.0 if alike else float("inf"), problem
    difference = float((a - b).abs().max())
    if limit * spread < difference <= ROUNDING * torch.finfo(a.dtype).eps * float(a.abs().max()):
        return 0.0, "varies over the batch by little more than rounding"
    return (difference / spread if difference == difference else float("inf")), ""


def _spread(a: Tensor) -> tuple[float, str]:
    """Returns how far an output varies over the batch, and what is wrong with it as evidence, if anything."""
    if not a.numel() or not torch.isfinite(a).all():
        return 0.0, "is not finite" if a.numel() else "is empty"
    mean = a.mean(dim=0, keepdim=True) if a.dim() and a.shape[0] > 1 else a.mean()
    spread = float((a - mean).abs().max())
    if spread <= min(1e3 * torch.finfo(a.dtype).eps, 1e-2) * float(a.abs().max()):
        return spread, "is constant over the batch"
    return spread, ""
