"""How much a stored graph takes: it runs at the size of its example without any values, before anybody calls it.

A file of some kilobytes can ask for a tensor of a billion rows, or repeat a small one again and again. No list of operators
prevents that, and no bound on constants does: sizes multiply. So the shapes are followed through the whole graph, as
`torch.export` does, and what they take must stand in a proportion to what came in. Activations of the models of
``benchmarks/zoo.py`` take at most some ten times what their weights and inputs do; small ones, and long sequences, have a
constant on top.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils import _pytree as pytree

from fxprune._base import untrusted
from fxprune._base.errors import PlanError, brief
from fxprune.capturing.extremes import extreme
from fxprune.capturing.fakes import unlogged
from fxprune.capturing.regions import enter_autocast, exit_autocast, guarded
from fxprune.data.example import ExampleSpec
from fxprune.ops.checked import largest, objection, parts, reads_number, work
from fxprune.rewriting.pruned import PrunedModule

#: Memory at any time: so many bytes, and so many for each byte of weights and inputs.
_BYTES, _BYTES_EACH = 1 << 32, 1 << 6

#: All that is ever written, in multiples of the memory: what takes time.
_TIMES = 1 << 4

#: Multiplications: so many for each pair of a weight and a value of the input, as in a convolution with itself.
_WORK_EACH, _LEAST_WEIGHTS, _LEAST_INPUTS = 1 << 4, 1 << 20, 1 << 14

#: Tensors that one operator returns.
_MOST_PARTS = 1 << 16


def check_size(pruned: PrunedModule, example: ExampleSpec, where: str) -> None:
    """Makes sure that a call at the size of the example neither fails nor takes more than models do.

    Args:
        pruned: the module, of which only shapes are read.
        example: of its inputs.
        where: the file, for messages.

    Raises:
        PlanError: it would; names the node.
    """
    from torch.utils.flop_counter import FlopCounterMode  # which imports triton

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with unlogged(), untrusted.reading(where), torch.no_grad(), mode, FlopCounterMode(display=False) as flops:
        args, kwargs = example.call(pruned, "cpu")
        inputs = pruned.graph._codegen.call.flatten(args, kwargs)  # type: ignore[attr-defined]
        weights = list(pruned.state_dict().values())
        run = _Run(pruned, _bytes([*weights, *inputs]), where)
        kinds = {str(node.args[0]) for node in pruned.graph.nodes if node.target is enter_autocast}
        guarded(sorted(kinds), run.run)(*inputs, enable_io_processing=False)
        done = flops.get_total_flops() + run.work
        most = _WORK_EACH * max(_values(weights), _LEAST_WEIGHTS) * max(_values(inputs), _LEAST_INPUTS)
        if done > most:
            raise PlanError(f"{where}: expected at most {most:,} operations at the size of the example, got {done:,}")


class _Run(fx.Interpreter):
    """Runs a graph on tensors without values; stops at the first node that takes too much.

    Attributes:
        work: operations that torch's counter does not know.
    """

    def __init__(self, module: PrunedModule, given: int, where: str) -> None:
        super().__init__(module)
        self.where, self.work = where, 0
        self._most = _BYTES + _BYTES_EACH * given
        self._alive: dict[fx.Node, list[tuple[Any, int]]] = {}
        self._holders: Counter[Any] = Counter()
        self._live = self._written = 0

    def run_node(self, n: fx.Node) -> Any:
        """Returns a node's result, whose memory is counted."""
        here = f"{self.where}: nodes: {n.name!r:.80}"
        for gone in [node for node in self._alive if node not in self.env]:
            self._release(gone)
        try:
            result = super().run_node(n)
        except PlanError as error:
            raise PlanError(f"{here}: {error}") from error
        except Exception as error:
            raise PlanError(f"{here}: it fails at the size of the example ({brief(error):.200})") from error
        self._hold(n, result)
        if (places := _places(result)) > self._most:
            raise PlanError(
                f"{here}: expected at most {self._most:,} values at the size of the example, got {places:,}"
            )
        if self._live > self._most or self._written > self._most * _TIMES:
            raise PlanError(
                f"{here}: expected at most {self._most:,} bytes at the size of the example, "
                f"got {self._live:,} at once and {self._written:,} in all"
            )
        return result

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Returns the result of a function, once its arguments are found to be sound."""
        if not isinstance(target, OpOverload):
            _check_numbers(target, args)
            return super().call_function(target, args, kwargs)
        kwargs = {
            name: torch.device("cpu") if isinstance(value, torch.device) else value for name, value in kwargs.items()
        }
        if (wrong := objection(target, args, kwargs)) is not None:
            raise PlanError(f"{target}: {wrong}")
        if reads_number(target):
            return _number(target, args)
        if (count := parts(target, args, kwargs)) > _MOST_PARTS:
            raise PlanError(f"{target}: expected at most {_MOST_PARTS} results, got {count}")
        try:
            result = target(*args, **kwargs)
        except (DynamicOutputShapeException, DataDependentOutputException):
            result = largest(target, args, kwargs)
            if result is None:
                raise PlanError(f"{target}: how large its result is depends on values alone") from None
        self.work += work(target, args, kwargs, result)
        return result

    def _hold(self, node: fx.Node, result: Any) -> None:
        own = {} if node.op in ("placeholder", "get_attr") else dict(_storages(result))
        self._alive[node] = list(own.items())
        for key, size in own.items():
            if not self._holders[key]:
                self._live += size
                self._written += size
            self._holders[key] += 1

    def _release(self, node: fx.Node) -> None:
        for key, size in self._alive.pop(node):
            self._holders[key] -= 1
            if not self._holders[key]:
                self._live -= size


def _places(result: Any) -> int:
    """Returns the values of the largest tensor; an empty one counts by its other dimensions, which loops run over."""
    shapes = [leaf.shape for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
    return max((math.prod(max(1, size) for size in shape) for shape in shapes), default=0)


def _storages(result: Any) -> Iterator[tuple[Any, int]]:
    for leaf in pytree.tree_leaves(result):
        if isinstance(leaf, Tensor):
            storage = leaf.untyped_storage()
            yield storage._cdata, storage.nbytes()


def _number(target: OpOverload, args: Any) -> float:
    """Returns a number in the place of one that is read of a tensor: a whole one may be what a division stops the process at."""
    if len(args) != 1 or not isinstance(args[0], Tensor) or not args[0].is_floating_point() or args[0].numel() != 1:
        raise PlanError(f"{target}: expected a tensor of one floating number")
    return 1.0


def _check_numbers(target: Any, args: Any) -> None:
    """Functions of Python take numbers: a list times a number, or a text of so many digits, has no end."""
    if (
        target in (getattr, torch.sym_sum, enter_autocast, exit_autocast, extreme)
        or getattr(target, "__name__", "") == "getitem"
    ):
        return
    for value in args:
        if not isinstance(value, (bool, int, float)):
            raise untrusted.refusal(value, target.__name__, "numbers")


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _values(tensors: Any) -> int:
    return sum(tensor.numel() for tensor in tensors)
