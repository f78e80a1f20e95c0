"""The emitted module: a `GraphModule` that keeps the model's call, and survives copy, pickle and save."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch._ops import HigherOrderOperator, OpOverload
from torch.fx.graph import CodeGen
from torch.utils import _pytree as pytree

from fxprune._base.errors import FxpruneError
from fxprune.capturing.call import CallSpec, same
from fxprune.capturing.regions import enter_autocast, guarded
from fxprune.results.attached import attach, report_if_any
from fxprune.results.certificate import Certificate
from fxprune.results.plan import Plan
from fxprune.results.record import Report
from fxprune.rewriting.places import as_places

#: The attribute of a pruned module that names those of its modules that are never in training mode.
RESTING = "_resting"

_PLAIN_DEFAULTS = (type(None), bool, int, str)


class CallCodeGen(CodeGen):
    """Writes a ``forward`` with the original signature, around a graph of flat inputs and one flat output tuple.

    Args:
        call: the call of the original.
        autocasts: the device types for which the graph switches autocast.

    Before/after: a graph of ``x, mask`` becomes ``def forward(self, batch, mode='sum', **kwargs)``, whose first line
    finds ``x`` and ``mask`` in ``batch`` and refuses a ``mode`` other than the captured one.
    """

    def __init__(self, call: CallSpec, autocasts: Sequence[str] = ()) -> None:
        super().__init__()
        self.call = call
        self.binding = call.binding()
        self.autocasts = tuple(autocasts)

    def gen_fn_def(self, free_vars: list[str], maybe_return_annotation: str, **_: Any) -> str:
        """Returns the head of ``forward`` and the line that turns its arguments into the graph's inputs."""
        before = "@_guarded\n" if self.autocasts else ""
        head = f"{before}def {self._func_name}{self._parameters()}{maybe_return_annotation}:"
        targets = "".join(f"{name.split(':')[0].split('=')[0].strip()}, " for name in free_vars if name != "self")
        given = ", ".join(self.call.signature.parameters)
        return f"{head}\n    {targets and f'{targets}= '}_inputs_of(({given}{',' if given else ''}))"

    def generate_output(self, output_args: Any, *, repr_fn: Callable[[object], str] | None = None, **_: Any) -> str:
        """Returns the statement that gives the flat outputs the structure of the original's."""
        return f"return _outputs_of({(repr_fn or repr)(list(output_args))})"

    def process_inputs(self, *args: Any) -> tuple[Any, ...]:  # type: ignore[override, unused-ignore]
        """Returns the graph's inputs for positional arguments.

        `torch.fx.Interpreter` calls this, and so does `torch.export.export(strict=False)`, which appends the values of
        keyword arguments without their names: they must come in the order of the signature.
        """
        try:
            bound = self.call.signature.bind(*args)
            bound.apply_defaults()
            return tuple(self.binding.inputs(tuple(bound.arguments.values())))
        except TypeError:
            leaves = pytree.tree_leaves(args)
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            known = self.binding.constants()
            others = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
            expected = all(any(same(leaf, value) for value in known) for leaf in others)
            if not expected or len(tensors) != sum(name is not None for name in self.call.placeholders):
                raise
            return tuple(tensors)

    def process_outputs(self, outputs: Any) -> Any:
        """Returns the outputs in the structure of the original's; for `torch.fx.Interpreter`."""
        return self.binding.outputs(outputs)

    def additional_globals(self) -> list[tuple[str, Any]]:
        """Returns what the generated code refers to."""
        defaults = {p.name: p.default for p in self.call.signature.parameters.values() if not _is_plain(p)}
        functions = ("_inputs_of", self.binding.inputs), ("_outputs_of", self.binding.outputs)
        guard = [("_guarded", partial(guarded, self.autocasts))] if self.autocasts else []
        return [
            ("_defaults", _Defaults(defaults)),
            *guard,
            *((name, _traced(function)) for name, function in functions),
        ]

    def _parameters(self) -> str:
        parameters = list(self.call.signature.parameters.values())
        alone = bool(parameters) and parameters[0].kind is inspect.Parameter.POSITIONAL_ONLY
        kind = inspect.Parameter.POSITIONAL_ONLY if alone else inspect.Parameter.POSITIONAL_OR_KEYWORD
        own = inspect.Parameter("self", kind)
        written = [p if _is_plain(p) else p.replace(default=_Global(f"_defaults.{p.name}")) for p in parameters]
        return str(inspect.Signature([own, *written]))


class _Defaults:
    """The defaults of parameters that cannot be written in code, such as a tensor; torch.fx takes them in one piece."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        vars(self).update(values)


class _Global(str):
    """A name in generated code."""

    __slots__ = ()
    __repr__ = str.__str__


def _is_plain(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty or type(parameter.default) in _PLAIN_DEFAULTS


def _traced(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns a function that `torch.fx.symbolic_trace` writes down as one call, since it looks at what it is given."""

    def called(values: Any) -> Any:
        for value in values:
            if isinstance(value, fx.Proxy):
                return value.tracer.create_proxy("call_function", function, (values,), {})
        return function(values)

    return called


class PrunedModule(fx.GraphModule):
    """A pruned model: an ordinary, trainable `torch.fx.GraphModule` with the call of the original.

    ``copy.copy``, ``copy.deepcopy``, ``pickle`` and ``torch.save`` keep its signature, its output types, tied
    parameters and the report. Node ``meta`` is not kept.

    Args:
        root: a tree of modules and tensors with every target of ``graph``; it is taken over, not copied.
        graph: flat inputs, one flat output tuple.
        call: the call of the original, or None for the graph's own.
        class_name: shown by ``repr``.

    Attributes:
        report: what the compilation did; like plan and certificate absent until `fxprune.compile`, ``apply`` or ``load``
            attaches it, or where the model has a part of that name: `fxprune.report` finds it in any case.
        plan: what went, as data.
        certificate: what the comparison with the masked twin found; None if there was none.
    """

    if TYPE_CHECKING:
        report: Report
        plan: Plan
        certificate: Certificate | None

    def __init__(
        self, root: nn.Module, graph: fx.Graph, call: CallSpec | None, class_name: str = "PrunedModule"
    ) -> None:
        super().__init__(nn.Module(), fx.Graph(), class_name)
        for held in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[held] = root.__dict__[held]
        as_places(self)
        if call is not None:
            devices = dict.fromkeys(str(node.args[0]) for node in graph.nodes if node.target is enter_autocast)
            graph.set_codegen(CallCodeGen(_without_annotations(call), tuple(devices)))
        self.graph = graph

    def __prepare_scriptable__(self) -> NoReturn:
        """Says what `torch.jit.script` should be given instead.

        Raises:
            FxpruneError: always: its compiler cannot read how ``forward`` finds the graph's inputs in its arguments.
        """
        raise FxpruneError(
            "torch.jit.script cannot read the forward of a pruned model: use torch.jit.trace(pruned, example), or "
            "fxprune.export for torch.export, AOTInductor or ONNX"
        )

    def train(self, mode: bool = True) -> PrunedModule:
        """Sets the mode of all modules; those that the original's ``train()`` leaves in evaluation mode stay in it."""
        super().train(mode)
        resting = self.__dict__.get(RESTING, ()) if mode else ()
        modules = dict(self.named_modules()) if resting else {}
        for path in resting:
            if path in modules:
                modules[path].training = False
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._recipe(), self._own_state()

    def __deepcopy__(self, memo: dict[int, Any]) -> PrunedModule:
        clone = _rebuild(*self._recipe())
        memo[id(self)] = clone
        clone.__setstate__(copy.deepcopy(self._own_state(), memo))
        return clone

    def __copy__(self) -> PrunedModule:
        clone = _rebuild(*self._recipe())
        state = self._own_state()
        clone.__setstate__({k: copy.copy(v) if isinstance(v, dict | set) else v for k, v in state.items()})
        return clone

    def _recipe(self) -> tuple[tuple[_Row, ...], CallSpec | None, str]:
        return _write_rows(self.graph), getattr(self.graph._codegen, "call", None), type(self).__name__

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores what was pickled; a module that an earlier version pickled has a report, but not by that name."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if (found := report_if_any(self)) is not None:
            attach(self, found)

    def _own_state(self) -> dict[str, Any]:
        """Returns the attributes, without those that `GraphModule` makes anew from a graph."""
        return {name: value for name, value in self.__dict__.items() if name not in _FX_STATE}


def _without_annotations(call: CallSpec) -> CallSpec:
    """Drops the annotations: they need not pickle, and name types that the result does not need."""
    bare = [p.replace(annotation=p.empty) for p in call.signature.parameters.values()]
    return dataclasses.replace(call, signature=inspect.Signature(bare))


# -- the graph as plain data ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Ref:
    """A node among the arguments of another, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class _Op:
    """A torch operator by its name: the operators themselves do not pickle."""

    name: str


_Row = tuple[str, str, Any, Any, Any]


def _write_rows(graph: fx.Graph) -> tuple[_Row, ...]:
    """Returns the nodes as tuples (op, name, target, args, kwargs) that pickle."""
    return tuple(
        (node.op, node.name, _write_target(node.target), _map(node.args, _write_ref), _map(node.kwargs, _write_ref))
        for node in graph.nodes
    )


def _read_rows(rows: Sequence[_Row]) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for op, name, target, args, kwargs in rows:
        args, kwargs = _map(args, _read_ref, nodes), _map(kwargs, _read_ref, nodes)
        nodes[name] = graph.create_node(op, _read_target(target), args, kwargs, name=name)
    return graph


def _write_target(target: Any) -> Any:
    if isinstance(target, OpOverload):
        return _Op(str(target))
    if isinstance(target, HigherOrderOperator):
        return _Op(f"higher_order.{target._name}")
    return target


def _read_target(target: Any) -> Any:
    return operator.attrgetter(target.name)(torch.ops) if isinstance(target, _Op) else target


def _write_ref(value: Any) -> Any:
    return _Ref(value.name) if isinstance(value, fx.Node) else value


def _read_ref(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    return nodes[value.name] if isinstance(value, _Ref) else value


def _map(value: Any, change: Callable[..., Any], *extra: Any) -> Any:
    """Returns plain containers for fx's immutable ones, ``change`` applied to what they hold."""
    if isinstance(value, slice):
        return slice(*(_map(part, change, *extra) for part in (value.start, value.stop, value.step)))
    if isinstance(value, Mapping):
        return {key: _map(item, change, *extra) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_map(item, change, *extra) for item in value)
    return [_map(item, change, *extra) for item in value] if isinstance(value, list) else change(value, *extra)


def _rebuild(rows: Sequence[_Row], call: CallSpec | None, class_name: str) -> PrunedModule:
    """Returns the module of a graph, its tensors and submodules still missing."""
    return PrunedModule(nn.Module(), _read_rows(rows), call, class_name)


_BARE = _rebuild((), None, "PrunedModule")
_FX_STATE = frozenset(_BARE.__dict__) - frozenset(nn.Module().__dict__) - {"meta"}

#: Names that a child of an emitted module cannot have, since the module needs them for itself.
RESERVED = frozenset(dir(_BARE))
