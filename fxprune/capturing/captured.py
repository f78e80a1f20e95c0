"""Capture: from a PyTorch model to one flat graph of ATen operators over the model's own tensors."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn
from unicodedata import normalize

from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune._base.errors import CaptureError, FxpruneError, FxpruneWarning, GradientWarning, TrainingWarning
from fxprune._base.shown import html_summary, text_summary
from fxprune.capturing.call import CallSpec
from fxprune.capturing.effective import Folded, fold_weights, left_computed
from fxprune.capturing.flatten import Flat, flatten
from fxprune.capturing.hooks import lost_hooks
from fxprune.capturing.marks import MARK
from fxprune.capturing.normalize import normalise
from fxprune.capturing.normalize.dtypes import follow_dtype
from fxprune.capturing.observed import Training, compare_modes
from fxprune.capturing.shapes import TensorInfo, infer
from fxprune.capturing.sizes import Sizes, read_sizes
from fxprune.capturing.source import Source, open_sources, open_training
from fxprune.capturing.state import State, hang, read_state
from fxprune.capturing.training import lost_norms, restore_training
from fxprune.data.batch import shown
from fxprune.data.calls import Call, bound_call

_QUOTES = frozenset("\"'\\")

__all__ = ["MARK", "CallSpec", "Captured", "TensorInfo", "capture"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Captured:
    """A model as one flat, normalised graph of ATen operators.

    Attributes:
        module: The graph. Placeholders are the flat tensor leaves of the call, the output is one flat tuple.
            Parameters and buffers are `get_attr` nodes under their original dotted names, and the attributes
            are the model's own tensors.
        model: The user's model, to be read only: hyper-parameters of leaf modules come from it.
        call: How the user's arguments map to placeholders and how outputs are rebuilt.
        info: What each node is: a `TensorInfo`, a list of them, an int (a size, at the primes) or None.
        at_example: The same with the sizes of the example for all: what the graph is if nothing is free.
        batch: The batch size as (prime in ``info``, size in the example); (1, 1) if it is not dynamic.
        example: The flat example leaves, in placeholder order.
        persistent: Names of parameters and persistent buffers.
        ties: Every other name of a tied tensor to the canonical name used in the graph.
        unused: Names of parameters that the graph never reaches.
        notes: What the user should know: behaviour that the graph does not keep.
        warned: Those of the notes that are to be warned of.
        folded: Every plain tensor that stands for a computed weight to the model's own tensors that it was computed
            from; first comes a parameter of its shape, if there is one.
        resting: Modules that the model's own ``train()`` leaves in evaluation mode, by name.
        all_free: Whether every size is free that the model leaves free.
        held: Tensors that must stay whole, by their names in the graph, and why.
    """

    module: fx.GraphModule
    model: nn.Module
    call: CallSpec
    info: dict[fx.Node, Any]
    at_example: dict[fx.Node, Any]
    batch: tuple[int, int]
    example: tuple[Tensor, ...]
    persistent: frozenset[str]
    ties: dict[str, str]
    unused: frozenset[str]
    notes: tuple[str, ...] = ()
    warned: tuple[FxpruneWarning, ...] = ()
    folded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    resting: frozenset[str] = frozenset()
    all_free: bool = False
    held: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Returns what was captured, how it is called, and what the graph does not keep."""
        return text_summary(f"fxprune.Captured: {type(self.model).__name__}", (f"{a}: {b}" for a, b in self._facts()))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Says what can be kept instead.

        Raises:
            FxpruneError: always.
        """
        raise stays_in_place(self)

    def _repr_html_(self) -> str:
        return html_summary(f"fxprune.Captured: {type(self.model).__name__}", self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        given = [self.info[node] for node in self.module.graph.find_nodes(op="placeholder")]
        sizes = [
            str([f"{e}?" if s != e else e for s, e in zip(x.shape, x.example, strict=True)]).replace("'", "")
            for x in given
        ]
        calls = sum(node.op == "call_function" for node in self.module.graph.nodes)
        return [
            ("inputs", ", ".join(sizes) + " (? where any size goes)"),
            ("operators", f"{calls:,}"),
            ("parameters and buffers", f"{len(self.persistent):,}"),
            ("parameters never reached", f"{len(self.unused):,}"),
            *(("note", note) for note in self.notes),
        ]


def capture(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    batches: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]] = (),
) -> Captured:
    """Capture a model as a flat graph, in eval mode, and leave the model exactly as it was.

    Args:
        model: Any module that `torch.export` can export, or an exported program.
        args: Positional example arguments.
        kwargs: Keyword example arguments.
        dynamic_shapes: As `torch.export.export` takes it. By default every dimension is free that the model leaves free;
            where the sizes depend on each other in too involved a way, the batch, the sequence length of token ids, and every
            dimension that differs between the examples.
        batches: Further example calls, as (args, kwargs).

    Raises:
        CaptureError: If the model cannot be captured; names the module and the line, and says what to try.
    """
    return next(captures(model, args, kwargs, dynamic_shapes=dynamic_shapes, batches=batches))


def _check_example(args: Any, kwargs: Any) -> None:
    if not isinstance(args, (tuple, list)):
        raise CaptureError(f"args: expected a tuple of arguments, such as (x,), got {shown(args):.80}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise CaptureError(f"kwargs: expected a mapping from names to arguments, got {shown(kwargs):.80}")


def captures(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    batches: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]] = (),
) -> Iterator[Captured]:
    """Capture a model as `capture` does: with all sizes free that can be, with those that are usually free, with none.

    Yields:
        A graph; the next one is captured if it is asked for.

    Raises:
        CaptureError: If the model cannot be captured.
    """
    _check_example(args, kwargs)
    for source in open_sources(model, args, kwargs or {}, dynamic_shapes, batches):
        try:
            found = _captured(source)
        except Exception:  # whatever a shape in too many unknowns leads to
            if not source.free:
                raise
            continue
        if not source.free or found.at_example is not found.info:
            yield found


def in_training(captured: Captured) -> Captured:
    """Capture a captured model in training mode, at the sizes of the example: what its parameters are to each other there.

    Raises:
        CaptureError: If it cannot be captured.
    """
    source = open_training(captured.model, *example_call(captured))
    state, flat, sizes, folded = _flattened(source)
    normalise(flat.graph, sizes, {*state.parameters, *(one.name for one in folded)})
    persistent = state.persistent | {one.name for one in folded}
    module = _build(flat, persistent)
    info, at_example, batch = infer(module, source.tensors, source.batched, sizes)
    return replace(
        captured,
        module=module,
        call=source.call,
        info=info,
        at_example=at_example,
        batch=batch,
        example=source.tensors,
        persistent=persistent,
    )


def _flattened(source: Source) -> tuple[State, Flat, Sizes, list[Folded]]:
    state = read_state(source.model)
    flat = flatten(source.program, state)
    sizes = read_sizes(source.program, flat, source.batched)
    return state, flat, sizes, fold_weights(flat, source.model, state)


def _captured(source: Source) -> Captured:
    state, flat, sizes, folded = _flattened(source)
    computed = left_computed(flat.graph)
    parameters = {*state.parameters, *(one.name for one in folded)}
    found = normalise(flat.graph, sizes, parameters)
    notes = [note for note in found if isinstance(note, str)] + _told(folded) + _untold(computed)
    training = Training() if source.exported else compare_modes(source.model, source.example, _silent(flat.graph))
    lost = [*training.notes, *restore_training(flat.graph, training.dropouts)]
    lost += lost_norms(flat.graph, source.model, training.norms)
    notes += [training.failure] if training.failure else []
    follow_dtype(flat)
    persistent = state.persistent | {one.name for one in folded}
    module = _build(flat, persistent)
    info, at_example, batch = infer(module, source.tensors, source.batched, sizes)
    for node in module.graph.nodes:
        node.meta.pop("val", None)  # without export's fake tensors the graph can be copied and pickled
        node.meta.setdefault("module", "")
    used = _attributes(module.graph).union(*(one.sources for one in folded))
    hooks = lost_hooks(source.model, training.hooking)
    gradients = [*_unlike(folded), *source.functions.notes(), *hooks]
    kept = [note for note in found if isinstance(note, FxpruneWarning)]
    warned = (*kept, *map(GradientWarning, gradients), *map(TrainingWarning, lost))
    return Captured(
        module=module,
        model=source.model,
        call=source.call,
        info=info,
        at_example=at_example,
        batch=batch,
        example=source.tensors,
        persistent=persistent,
        ties=state.ties,
        unused=frozenset(p for p in state.parameters if state.canonical[p] == p and p not in used),
        notes=(*notes, *map(str, warned)),
        warned=warned,
        folded={one.name: one.sources for one in folded},
        resting=training.resting,
        all_free=source.free,
    )


#: How the note on them begins.
COMPUTED_WEIGHTS = "computed weights are plain tensors in the result"


def _told(folded: list[Folded]) -> list[str]:
    """Return what the user should know of weights that are plain now."""
    if not folded:
        return []
    return [
        f"{COMPUTED_WEIGHTS}, and train as such if at all: {_listed(folded)}; "
        "where training needs the parametrization, the mask or the standardisation, put it on the result's layers"
    ]


def _unlike(folded: list[Folded]) -> list[str]:
    """Return what the user should know of weights that are plain now, and had other gradients."""
    unlike = [one for one in folded if not one.alike]
    if not unlike:
        return []
    return [
        f"computed weights whose gradient stops on the way to their parameters, or reaches only some of them: {_listed(unlike)}; "
        "in the result each trains as a plain tensor, in all of its values"
    ]


def _listed(folded: list[Folded]) -> str:
    names = [f"{one.name} ({one.by})" for one in folded]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _untold(modules: list[str]) -> list[str]:
    """Return what the user should know of weights that are still computed with a statistic of themselves."""
    if not modules:
        return []
    more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
    return [
        f"weights of {', '.join(modules[:3])}{more} are computed from parameters in forward, with statistics over what stays: "
        "removing channels changes the others"
    ]


def example_call(captured: Captured) -> Call:
    """Returns the call that a model was captured with, ``(args, kwargs)``."""
    call, given = captured.call, iter(captured.example)
    pairs = zip(call.placeholders, call.literals, strict=True)
    leaves = [value if name is None else next(given) for name, value in pairs]
    return bound_call(call.signature, pytree.tree_unflatten(leaves, call.in_spec))


def stays_in_place(value: Any) -> FxpruneError:
    """Returns the error for a copy or a pickle of what refers to the nodes of a graph, which have no life outside it."""
    return FxpruneError(
        f"a {type(value).__name__} refers to the nodes of a torch.fx graph and cannot be copied or pickled: make it anew from "
        "the model, and keep what is data: the plan, the report, fxprune.explain(...)"
    )


def _silent(graph: fx.Graph) -> frozenset[str]:
    """Return the modules that the graph keeps as they are, by name."""
    return frozenset(str(node.args[1]) for node in graph.nodes if node.target is MARK)


def _attributes(graph: fx.Graph) -> set[str]:
    """Return the names of the parameters, buffers and blocks that a graph uses."""
    return {str(node.target) for node in graph.find_nodes(op="get_attr")}


def _build(flat: Flat, persistent: frozenset[str]) -> fx.GraphModule:
    """Return a module that runs the flat graph; its attributes are the user's tensors themselves."""
    used = _attributes(flat.graph)
    root = hang(((name, tensor) for name, tensor in flat.tensors.items() if name in used), persistent)
    for name, block in flat.submodules.items():
        root.add_module(name, block)
    _check_names(root, [*flat.tensors, *flat.submodules])
    module = fx.GraphModule(root, flat.graph)
    _copy_persistence(root, module)
    return module


def _check_names(root: nn.Module, names: Iterable[str]) -> None:
    """Refuse names of parts that a graph module has uses of its own for, and those that no code can be written with.

    Raises:
        CaptureError: there is one; says which.
    """
    for name in names:
        if strange := [
            part
            for part in name.split(".")
            if keyword.iskeyword(part)
            or not part.isprintable()
            or set(part) & _QUOTES
            or normalize("NFKC", part) != part
        ]:
            raise CaptureError(
                f"the model calls a part of itself {strange[0]!r} (of {name!r}), which torch.fx cannot write code with: "
                "rename it; expected no word of Python's, no quote, no backslash and no letter that Python reads as another one"
            )
    needed = set(dir(fx.GraphModule(nn.Module(), fx.Graph()))) - set(dir(nn.Module()))
    if clash := [name for held in (root._modules, root._parameters, root._buffers) for name in held if name in needed]:
        raise CaptureError(
            f"the model calls a part of itself {clash[0]!r}, which a torch.fx.GraphModule needs for itself: "
            "rename that attribute, or wrap the model in a module that holds it"
        )


def _copy_persistence(source: nn.Module, target: nn.Module) -> None:
    """Restore which buffers stay out of the state dict: `fx.GraphModule` forgets it."""
    for path, module in source.named_modules():
        if module._non_persistent_buffers_set:
            target.get_submodule(path)._non_persistent_buffers_set.update(module._non_persistent_buffers_set)
