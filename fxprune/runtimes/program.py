"""A model as an exported program: what goes in, what comes out, and which sizes are free."""

from __future__ import annotations

import dataclasses
import inspect
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune._base.errors import ExportError
from fxprune._base.modes import untouched
from fxprune.capturing.conditions import read_limits
from fxprune.capturing.exported import asked_export
from fxprune.capturing.limits import Limits
from fxprune.capturing.prepared import Example, prepare
from fxprune.data.batch import short
from fxprune.data.calls import Call, tensors_of
from fxprune.runtimes.sizes import Sizes, expression, named_shape, names_of, shape_at, sizes_of, within


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor that goes into a file or comes out; a size that may change is a name, or made of names."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """An exported program of a module.

    Attributes:
        module: what was exported.
        exported: the program; its outputs are plain containers.
        call: what it was exported with.
        inputs: the tensors of a call, in order.
        outputs: the tensors that come out, in order.
        names: of the sizes that may change: the program's symbol -> name.
        limits: what the sizes are held to: by export, by operators, and by what the module itself asked.
    """

    module: nn.Module
    exported: ExportedProgram
    call: Call
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    names: Mapping[Any, str]
    limits: Limits

    def symbolic(self) -> list[Tensor]:
        """Returns the inputs' fake tensors, ``[...]`` each, whose free sizes are symbols."""
        return [node.meta["val"] for node in _input_nodes(self.exported)]

    def allows(self, sizes: Sizes) -> bool:
        """Returns whether a call may have these sizes, of the symbols."""
        if not within(sizes, self.exported.range_constraints):
            return False
        given = [torch.empty(shape_at(value, sizes), device="meta") for value in self.symbolic()]
        return self.limits.allows(self.limits.sizes(given))

    def dtypes(self) -> set[torch.dtype]:
        """Returns the types of all tensors that it computes."""
        values = (node.meta.get("val") for graph in _graphs(self.exported) for node in graph.nodes)
        return {value.dtype for value in values if isinstance(value, Tensor)}

    def attends(self) -> bool:
        """Returns whether it has attention, whose masks and scores eight bits do not hold."""
        return any("scaled_dot_product" in str(node.target) for graph in _graphs(self.exported) for node in graph.nodes)

    def call_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Returns a call in the program's form: by name in its order, with what capture gave of itself."""
        return (*args, *self.call[0][len(args) :]), {name: kwargs.get(name, own) for name, own in self.call[1].items()}

    def outputs_in_place(self, tensors: Sequence[Tensor]) -> Any:
        """Returns tensors that came out, ``[...]`` each, in the containers that the module gives; a list if it gives more than tensors."""
        entry = self.exported.module_call_graph[0].signature
        fits = entry is not None and entry.out_spec.num_leaves == len(tensors)
        return pytree.tree_unflatten(list(tensors), entry.out_spec) if fits and entry is not None else list(tensors)

    def run(self, call: Call) -> list[Tensor]:
        """Returns what the module itself gives in evaluation mode: its tensors, ``[...]`` each, in order."""
        return tensors_of(outputs_of(self.module, call))


def trace(
    module: nn.Module,
    call: Call,
    varying: Sequence[Sequence[int]] = (),
    *,
    dynamic_batch: bool = True,
    dynamic_shapes: Any = None,
    bounded: bool = False,
) -> Program:
    """Returns a module as a program, exported in evaluation mode; the module stays as it is.

    Args:
        module: what is exported.
        call: one call of it.
        varying: for each tensor of the call the dimensions that are free beside those that always are; none if
            empty.
        dynamic_batch: whether the batch is free.
        dynamic_shapes: as `torch.export.export` takes it, instead of all that; nothing is free if it is empty.
        bounded: sizes that have no bound may be as large as in this call, and no larger.

    Raises:
        CaptureError: it cannot be exported.
        ExportError: the batch is to be free and is not; or the module calls an operator of this package.
    """
    example = _keywords_kept(prepare(module, *call), call)
    chosen = dynamic_shapes is not None
    if chosen or not dynamic_batch:
        example = _unrepeated(example, module, call)
    free = _with_free(example, varying, dynamic_batch)
    empty = [torch.zeros_like(x) if isinstance(x, Tensor) else x for x in free.leaves]
    # a file keeps its example: none of the user's data
    exported, asked = asked_export(module, _holding(free, empty), dynamic_shapes, marks=False)
    _refuse_ours(exported)
    call = example.bound.args, example.bound.kwargs
    given = [isinstance(leaf, Tensor) for leaf in example.leaves]
    batched = list(compress(example.batch, given))
    symbolic = {node.name: node.meta["val"] for node in _input_nodes(exported)}
    if dynamic_batch and not chosen:
        _insist_on_batch(symbolic, batched)
    if bounded:
        _bound(exported, sizes_of([*symbolic.values()], tensors_of(call)))
    names = names_of(symbolic, batched)
    outputs = outputs_of(module, call)
    _give_plain(exported, outputs)
    return Program(
        module=module,
        exported=exported,
        call=call,
        inputs=_values(symbolic.items(), names),
        outputs=_values(_outputs(exported, _plain(outputs)), names),
        names=names,
        limits=read_limits(exported, [*compress(example.names, given)], [*compress(example.leaves, given)], asked),
    )


def outputs_of(module: nn.Module, call: Call) -> Any:
    """Returns what a module gives in evaluation mode; it and the call stay as they are."""
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, call)  # a model may write into its inputs
    with untouched(module, training=False), torch.no_grad():
        return module(*args, **kwargs)


def _keywords_kept(example: Example, call: Call) -> Example:
    """Returns the example so that what was given by name is passed by name."""
    parameters: list[inspect.Parameter] = []
    by_name = False  # from the first argument that was given by name on, all are
    for name, parameter in example.signature.parameters.items():
        by_name = by_name or name in call[1]
        kind = (
            parameter.KEYWORD_ONLY if by_name and parameter.kind is parameter.POSITIONAL_OR_KEYWORD else parameter.kind
        )
        if not by_name or kind is not parameter.VAR_POSITIONAL:
            parameters.append(parameter.replace(kind=kind))
    signature = example.signature.replace(parameters=parameters)
    bound = inspect.BoundArguments(signature, example.bound.arguments)
    return dataclasses.replace(example, signature=signature, bound=bound)


def _unrepeated(example: Example, module: nn.Module, call: Call) -> Example:
    """Returns the example with the sizes that were given: `prepare` makes two samples of one."""
    given = inspect.signature(module.forward).bind(*call[0], **call[1])
    tensors = iter(tensors_of(dict(given.arguments)))
    return _holding(example, [next(tensors).clone() if isinstance(x, Tensor) else x for x in example.leaves])


def _holding(example: Example, leaves: Sequence[Any]) -> Example:
    arguments = {**example.bound.arguments, **pytree.tree_unflatten(list(leaves), example.spec)}
    bound = inspect.BoundArguments(example.signature, OrderedDict(arguments))
    return dataclasses.replace(example, bound=bound, leaves=tuple(leaves))


def _with_free(example: Example, varying: Sequence[Sequence[int]], dynamic_batch: bool) -> Example:
    """Returns the example with more dimensions free, and the batch or not."""
    more = iter(varying or [()] * len(example.leaves))
    dynamic = []
    for leaf, dims, flag in zip(example.leaves, example.dynamic, example.batch, strict=True):
        found = {*dims, *(next(more) if isinstance(leaf, Tensor) else ())}
        dynamic.append(tuple(sorted(found if dynamic_batch or not flag else found - {0})))
    return dataclasses.replace(example, dynamic=tuple(dynamic))


def _insist_on_batch(symbolic: Mapping[str, Tensor], batched: Sequence[bool]) -> None:
    flagged = [label for label, flag in zip(symbolic, batched, strict=True) if flag]
    label = min(flagged, key=lambda name: symbolic[name].ndim < 2, default="")  # as in capture: the first that has rows
    if label and expression((lead := symbolic[label]).shape[0]) is None:
        raise ExportError(
            f"the model's graph holds for {label} of {list(lead.shape)} only, the batch is not free: pass "
            "dynamic_batch=False to write a file for that batch"
        )


def _bound(exported: ExportedProgram, sizes: Sizes) -> None:
    """Bounds those sizes of a program that have no bound: memory that is planned ahead has to end somewhere."""
    for symbol, size in sizes.items():
        bounds = exported.range_constraints[symbol]
        if not bounds.upper.is_Integer:
            exported.range_constraints[symbol] = narrower = type(bounds)(min(int(bounds.lower), size), size)
            _environment(exported).var_to_range[symbol] = narrower


def _environment(exported: ExportedProgram) -> Any:
    """Returns what knows of a program's symbols; it has some."""
    sizes = (size for node in _input_nodes(exported) for size in node.meta["val"].shape)
    return next(size.node.shape_env for size in sizes if isinstance(size, torch.SymInt))


def _refuse_ours(exported: ExportedProgram) -> None:
    """Refuses a program that only a process with this package could load."""
    for target in (node.target for graph in _graphs(exported) for node in graph.nodes):
        if getattr(target, "namespace", "") == "fxprune":
            raise ExportError(
                f"the model calls {target}, an operator of fxprune itself that no file can hold: export what was compiled, or "
                "the model itself, and not the graph of a capture"
            )


def _graphs(exported: ExportedProgram) -> list[fx.Graph]:
    """Returns a program's graph and those within it, such as a region under autocast."""
    return [module.graph for module in exported.graph_module.modules() if isinstance(module, fx.GraphModule)]


def _input_nodes(exported: ExportedProgram) -> list[fx.Node]:
    nodes = {node.name: node for node in exported.graph.find_nodes(op="placeholder")}
    given = [nodes[name] for name in exported.graph_signature.user_inputs if isinstance(name, str) and name in nodes]
    return [node for node in given if isinstance(node.meta.get("val"), Tensor)]


def _plain(value: Any) -> Any:
    """Returns dicts, lists and tuples in place of their subclasses."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return tuple(_plain(item) for item in value) if isinstance(value, tuple) else value


def _give_plain(exported: ExportedProgram, outputs: Any) -> None:
    """Has a program return plain containers, so that nothing but torch is needed to load it."""
    leaves, structure = pytree.tree_flatten(_plain(outputs))
    entry = exported.module_call_graph[0].signature
    same = [id(leaf) for leaf in leaves] == [id(leaf) for leaf in pytree.tree_leaves(outputs)]
    if same and entry is not None:
        entry.out_spec = structure


def _outputs(exported: ExportedProgram, outputs: Any) -> list[tuple[str, Tensor]]:
    """Returns the name and fake value of each tensor that comes out; names follow the containers' keys."""
    nodes = {node.name: node for node in exported.graph.nodes}
    found: list[tuple[str, Tensor]] = []
    paths = pytree.tree_leaves_with_path(outputs)
    for (path, leaf), source in zip(paths, exported.graph_signature.user_outputs, strict=True):
        if isinstance(leaf, Tensor):
            keys = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path]
            name = "_".join(keys)
            clear = name and not name[0].isdigit() and name not in nodes
            found.append((name if clear else "_".join(["output", *keys]), nodes[str(source)].meta["val"]))
    return found


def _values(tensors: Iterable[tuple[str, Tensor]], names: Mapping[Any, str]) -> tuple[Value, ...]:
    return tuple(Value(name, short(x.dtype), named_shape(x, names)) for name, x in tensors)
