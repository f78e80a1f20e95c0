"""Sizes that export knows nothing of: it takes no size of 1 for free, though most models are no different there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune._base.graphs import Reading
from fxprune._base.modes import lent, untouched
from fxprune.capturing.exported import without_fast_path
from fxprune.capturing.fakes import Fakes, outcome, unlogged
from fxprune.capturing.limits import Limits, Term, met, sizes_in, value_of
from fxprune.capturing.marks import MARK
from fxprune.capturing.prepared import Example

aten = torch.ops.aten

#: What leaves all numbers as they are, and only says where they lie.
_SILENT = {
    aten.clone.default,
    aten.contiguous.default,
    aten.empty.memory_format,
    aten.lift_fresh_copy.default,
    aten._assert_tensor_metadata.default,
    aten._reshape_alias.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.sym_size.int,
    torch.ops.prim.device.default,
    MARK,
}

#: An operator, the shapes of its tensors and its other operands.
_Log = list[tuple[Any, ...]]


def least_sizes(model: nn.Module, example: Example, program: ExportedProgram, limits: Limits) -> Limits:
    """Returns the limits, a free size down to 1 where the program is right there too.

    It is if model and program run the same operators with the same operands on inputs of that size, or come to the same numbers:
    both run, once with a batch of 1 and once with every other free size 1. A condition that says no more than that a size is not 1
    goes with it: it was asked for in passing.
    """
    batch = {
        term
        for leaf, shape in zip(compress(example.batch, map(_is_tensor, example.leaves)), limits.shapes, strict=True)
        for term in shape[:1]
        if leaf and isinstance(term, str)
    }
    free = dict(limits.least)
    for group in (batch & free.keys(), free.keys() - batch):
        kept = tuple(condition for condition in limits.conditions if not _says_not_one(condition, group))
        if group and _right_at_one(model, example, program, replace(limits, conditions=kept), group):
            free.update(dict.fromkeys(group, 1))
            limits = replace(limits, conditions=kept)
    return replace(limits, least=tuple(free.items()))


def holding_at(
    model: nn.Module, example: Example, program: ExportedProgram, limits: Limits, given: Sequence[Tensor]
) -> Limits | None:
    """Returns the limits without the conditions that a call does not meet where the program gives what the model gives.

    A model that keeps what it made for the last size takes another way at that size, to the same numbers.

    Args:
        model: what was exported.
        example: the call.
        program: what became of the model at another size.
        limits: of the program.
        given: the tensors of the call, ``[...]`` each.

    Returns:
        The limits, or None where the numbers differ.
    """
    sizes = limits.sizes(given)
    kept = tuple(condition for condition in limits.conditions if met(condition, sizes))
    if kept == limits.conditions:
        return limits
    alike = _same_numbers(model, example, program, [leaf.shape for leaf in given])
    return replace(limits, conditions=kept) if alike else None


def _same_numbers(
    model: nn.Module, example: Example, program: ExportedProgram, shapes: Sequence[Sequence[int]]
) -> bool:
    """Return whether model and program give the same on the beginnings of the example's tensors, of some shapes."""
    wanted = iter(shapes)
    leaves = [leaf[tuple(map(slice, next(wanted)))] if _is_tensor(leaf) else leaf for leaf in example.leaves]
    if any(leaf.is_meta for leaf in (*leaves, *model.parameters()) if _is_tensor(leaf)):
        return False
    bound = _bound(example, leaves)
    with lent(model, bound.arguments), without_fast_path():
        expected, got = (
            _run(lambda: pytree.tree_leaves(model(*bound.args, **bound.kwargs))),
            _run(lambda: _outputs(program, leaves, _own)),
        )
    return expected is not None and got is not None and all(map(_close, expected, got))


def _own(value: Any) -> Any:
    """Return what a program may write to: parameters are put back as they were."""
    return value.clone() if _is_tensor(value) and not isinstance(value, nn.Parameter) else value


def _close(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return bool(a == b)
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def _says_not_one(condition: Term, group: Set[str]) -> bool:
    """Return whether a condition on one of some sizes holds wherever it is not 1."""
    names = sizes_in(condition)
    if len(names) != 1 or names[0] not in group:
        return False
    return not met(condition, {names[0]: 1}) and all(met(condition, {names[0]: n}) for n in range(2, 100))


def _right_at_one(
    model: nn.Module, example: Example, program: ExportedProgram, limits: Limits, group: Set[str]
) -> bool:
    tensors = [leaf for leaf in example.leaves if _is_tensor(leaf)]
    sizes = {name: 1 if name in group else size for name, size in limits.sizes(tensors).items()}
    if not all(met(condition, sizes) for condition in limits.conditions):
        return False
    shapes = [[int(value_of(term, sizes)) for term in shape] for shape in limits.shapes]
    at_one = _Both(model, example, program, shapes)
    if at_one.alike:
        return True
    if at_one.ends_alike and _same_numbers(model, example, program, shapes):
        return True  # it takes another way there, to the same numbers, as attention to a single position does
    as_given = _Both(model, example, program, [leaf.shape for leaf in tensors])
    return not as_given.alike and at_one.ends_alike  # the logs say nothing of this model


class _Both:
    """A model and its program, run on fake inputs of some shapes.

    Attributes:
        alike: whether they ran the same operators with the same operands.
        ends_alike: whether their outputs are alike, or both failed.
    """

    def __init__(
        self, model: nn.Module, example: Example, program: ExportedProgram, shapes: Sequence[Sequence[int]]
    ) -> None:
        wanted = iter(shapes)
        leaves = [leaf.new_empty(tuple(next(wanted))) if _is_tensor(leaf) else leaf for leaf in example.leaves]
        known = Fakes()
        with unlogged(), untouched(model, training=False), without_fast_path(), known.mode, torch.no_grad():
            one = _run(lambda: _run_model(model, example, leaves, known))
            other = _run(lambda: _run_program(program, leaves, known))
        self.alike = one is not None and one == other
        self.ends_alike = one == other if one is None or other is None else one[-1] == other[-1]


def _run(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception:  # whatever a model raises at sizes that it does not take, or on tensors without values
        return None


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


def _bound(example: Example, leaves: list[Any]) -> inspect.BoundArguments:
    bound = example.signature.bind_partial()
    bound.arguments.update(pytree.tree_unflatten(leaves, example.spec))
    return bound


def _run_model(model: nn.Module, example: Example, leaves: list[Any], known: Fakes) -> _Log:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    fakes = {name: known(tensor) for name, tensor in tensors.items()}
    bound = _bound(example, leaves)
    with _Recorder() as log:
        outputs = torch.func.functional_call(model, fakes, bound.args, bound.kwargs)
    return [*log.calls, tuple(map(_noted, pytree.tree_leaves(outputs)))]


def _run_program(program: ExportedProgram, leaves: list[Any], known: Fakes) -> _Log:
    with _Recorder() as log:
        outputs = _outputs(program, leaves, known)
    return [*log.calls, tuple(map(_noted, outputs))]


def _outputs(program: ExportedProgram, leaves: list[Any], known: Callable[[Any], Any]) -> list[Any]:
    """Run a program on the leaves of a call; what it holds comes as ``known`` gives it."""
    given, inputs = iter(leaves), []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            inputs.append(next(given))
        else:
            inputs.append(known(program.state_dict.get(str(spec.target), program.constants.get(str(spec.target)))))
    outputs = Reading(program.graph_module).run(*inputs, enable_io_processing=False)
    kinds = [spec.kind for spec in program.graph_signature.output_specs]
    return [value for value, kind in zip(outputs, kinds, strict=True) if kind is OutputKind.USER_OUTPUT]


class _Recorder(TorchDispatchMode):
    """Notes every operator that does something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: _Log = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the operator, then run it."""
        if func not in _SILENT and not _is_view(func):
            self.calls.append((func, *map(_noted, pytree.tree_leaves((args, kwargs or {})))))
        return outcome(func, args, kwargs or {})


def _is_view(func: Any) -> bool:
    """Return whether an operator only looks at its tensor: what it does shows in the shapes of those that follow."""
    return any(entry.alias_info is not None and not entry.alias_info.is_write for entry in func._schema.returns)


def _noted(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else value
