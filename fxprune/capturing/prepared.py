"""Prepare a model's example call for `torch.export`: flat leaves, a batch of at least 2, dynamic dimensions."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxprune._base.errors import CaptureError

_AUTO = torch.export.Dim.AUTO

#: The argument of transformers' models that asks for a key-value cache.
_CACHE = "use_cache"


@dataclass(frozen=True, slots=True)
class Example:
    """One call of the model, canonical: arguments bound to their names, tensors cloned.

    Attributes:
        signature: The model's forward signature, without ``self``.
        bound: The bound call; its arguments hold the leaves below.
        leaves: Every leaf of the bound arguments, in order: tensors and plain constants.
        spec: The tree structure of the bound arguments (a dict from parameter name to value).
        dynamic: For every leaf, its dynamic dimensions (empty for a constant).
        batch: For every leaf, whether its dimension 0 is the batch.
        assumed: Arguments that are as they are for capture's sake, so that a call may leave them out.
    """

    signature: inspect.Signature
    bound: inspect.BoundArguments
    leaves: tuple[Any, ...]
    spec: pytree.TreeSpec
    dynamic: tuple[tuple[int, ...], ...]
    batch: tuple[bool, ...]
    assumed: tuple[str, ...] = ()

    def all_free(self) -> Example:
        """Returns the example with every dimension free: export fixes those that the model does."""
        every = tuple(tuple(range(leaf.ndim)) if isinstance(leaf, Tensor) else () for leaf in self.leaves)
        return replace(self, dynamic=every)

    def none_free(self) -> Example:
        """Returns the example with every dimension fixed."""
        return replace(self, dynamic=((),) * len(self.leaves))

    def grown(self) -> Example:
        """Returns the example with its first sample once more at the end of each batch."""
        leaves = tuple(
            torch.cat([leaf, leaf[:1]]) if flag else leaf for leaf, flag in zip(self.leaves, self.batch, strict=True)
        )
        bound = self.signature.bind_partial()
        bound.arguments.update(pytree.tree_unflatten(list(leaves), self.spec))
        return replace(self, bound=bound, leaves=leaves)

    @property
    def names(self) -> tuple[str, ...]:
        """What the user calls each leaf: ``x``, ``batch['mask']``, ``images[1]``; without the name of a ``**kwargs``."""
        collector = next((p.name for p in self.signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
        paths, _ = pytree.tree_flatten_with_path(dict(self.bound.arguments))
        return tuple(_name_of([part for part in path if part != pytree.MappingKey(collector)]) for path, _ in paths)

    @property
    def dynamic_shapes(self) -> dict[str, Any]:
        """The dynamic dimensions in the form that `torch.export.export` takes, without sizes of 0 and 1, which it fixes."""
        pairs = zip(self.leaves, self.dynamic, strict=True)
        specs = iter([{dim: _AUTO for dim in dims if leaf.shape[dim] > 1} or None for leaf, dims in pairs])
        return {name: _shapes_like(value, specs) for name, value in self.bound.arguments.items()}


def _name_of(path: Sequence[Any]) -> str:
    return f"{path[0].key}{pytree.keystr(tuple(path[1:]))}"


def _shapes_like(value: Any, specs: Iterator[Any]) -> Any:
    """Arrange ``specs`` as ``value`` is; classes other than Python's own count as lists of their parts.

    Raises:
        CaptureError: A named tuple checks its parts, as a packed sequence does.
    """
    parts, spec = pytree.tree_flatten(value, is_leaf=lambda part: part is not value)
    if spec.is_leaf():
        return next(specs)
    shapes = [_shapes_like(part, specs) for part in parts]
    if spec.type not in pytree.BUILTIN_TYPES:
        return shapes
    try:
        return pytree.tree_unflatten(shapes, spec)
    except Exception as error:
        raise CaptureError(
            f"a {type(value).__name__} among the arguments cannot be captured: it takes nothing but its own kind of parts "
            f"({type(error).__name__}: {error}). Let the module take the tensors themselves, padded, and make the "
            f"{type(value).__name__} where no channel is to go; or compile only the submodules that take tensors"
        ) from error


def prepare(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    batches: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]] = (),
) -> Example:
    """Bind an example call to the model's signature and decide which dimensions are dynamic.

    Every tensor is cloned, since export merges inputs that are the same object. A batch of 1 is repeated to 2,
    since export specialises on 1. Dynamic are the batch, the sequence length of token ids, and every
    dimension that differs between the example and ``batches``.

    Raises:
        CaptureError: If the arguments do not fit the model's forward.
    """
    signature = inspect.signature(model.forward)
    bound = _bind(model, signature, args, kwargs)
    leaves, spec = pytree.tree_flatten(dict(bound.arguments))
    flags = _batch_flags(leaves)
    dynamic = [set(dims) for dims in _default_dynamic(leaves, flags)]
    for other_args, other_kwargs in batches:
        others, other_spec = pytree.tree_flatten(dict(_bind(model, signature, other_args, other_kwargs).arguments))
        if other_spec != spec:
            raise CaptureError(f"the example calls differ in structure: expected {spec}, got {other_spec}")
        for dims, leaf, other in zip(dynamic, leaves, others, strict=True):
            dims |= _differing(leaf, other)
    leaves = [_ready(leaf, flag) for leaf, flag in zip(leaves, flags, strict=True)]
    bound.arguments.update(pytree.tree_unflatten(leaves, spec))
    return Example(
        signature,
        bound,
        tuple(leaves),
        spec,
        tuple(tuple(sorted(dims)) for dims in dynamic),
        tuple(flags),
        (_CACHE,) if _takes_cache(model) and _given(bound).get(_CACHE) is False else (),
    )


def _bind(
    model: nn.Module, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    try:
        bound = signature.bind(*args, **kwargs)
        if _takes_cache(model) and getattr(model.config, _CACHE) and _CACHE not in _given(bound):
            bound = signature.bind(*args, **kwargs, **{_CACHE: False})
    except TypeError as error:
        raise CaptureError(
            f"the example does not fit {type(model).__name__}.forward{signature}: {error}. "
            "Pass args= and kwargs= as you would call the model."
        ) from error
    return bound


def _given(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return the arguments of a call by their names, those that ``**kwargs`` collects among them."""
    collectors = [p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    return {**bound.arguments, **{k: v for name in collectors for k, v in bound.arguments.get(name, {}).items()}}


def _takes_cache(model: nn.Module) -> bool:
    """Say whether the model can be told not to return a key-value cache, which is no pytree."""
    if not hasattr(getattr(model, "config", None), _CACHE):
        return False
    parameters = inspect.signature(model.forward).parameters
    return _CACHE in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _batch_flags(leaves: list[Any]) -> list[bool]:
    """Say for each leaf whether its dimension 0 is the batch: the size that the first tensors share."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
    size = next((leaf.shape[0] for leaf in sorted(tensors, key=lambda leaf: leaf.ndim < 2)), None)
    return [isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size for leaf in leaves]


def _default_dynamic(leaves: list[Any], flags: list[bool]) -> list[set[int]]:
    """Return each leaf's dynamic dimensions: the batch, and every dimension as long as a row of token ids."""
    lengths = {leaf.shape[1] for leaf in leaves if _is_ids(leaf) and leaf.shape[1] > 1}
    return [
        {d for d, size in enumerate(_shape(leaf)) if (d == 0 and flag) or (d > 0 and size in lengths)}
        for leaf, flag in zip(leaves, flags, strict=True)
    ]


def _is_ids(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim == 2 and not leaf.is_floating_point() and not leaf.is_complex()


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(leaf.shape) if isinstance(leaf, Tensor) else ()


def _differing(leaf: Any, other: Any) -> set[int]:
    if not isinstance(leaf, Tensor) or not isinstance(other, Tensor):
        return set()
    if leaf.ndim != other.ndim:
        raise CaptureError(f"the example calls differ in rank: {tuple(leaf.shape)} and {tuple(other.shape)}")
    return {d for d, (a, b) in enumerate(zip(leaf.shape, other.shape, strict=True)) if a != b}


def _ready(leaf: Any, batched: bool) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    if batched and leaf.shape[0] == 1:
        return torch.cat([leaf.detach(), leaf.detach()])
    return leaf.detach().clone()


def of_program(program: ExportedProgram) -> Example:
    """Return the example call that an exported program was made with.

    Raises:
        CaptureError: If the program does not carry its example inputs.
    """
    if program.example_inputs is None:
        raise CaptureError("the exported program carries no example inputs; export the model anew, or pass the model")
    args, kwargs = program.example_inputs
    signature = _program_signature(program, len(args), kwargs)
    bound = signature.bind(*args, **kwargs)
    leaves, spec = pytree.tree_flatten(dict(bound.arguments))
    return Example(signature, bound, tuple(leaves), spec, ((),) * len(leaves), tuple(_batch_flags(leaves)))


def _program_signature(program: ExportedProgram, positional: int, kwargs: Mapping[str, Any]) -> inspect.Signature:
    """Return the signature of an exported program: its defaults are lost."""
    entry = program.module_call_graph[0].signature
    names = (entry.forward_arg_names if entry is not None else None) or []
    kind: Any = inspect.Parameter.POSITIONAL_OR_KEYWORD
    if len(names) != positional + len(kwargs):
        names, kind = [f"arg_{i}" for i in range(positional)], inspect.Parameter.POSITIONAL_ONLY
    first = [inspect.Parameter(name, kind) for name in names[:positional]]
    return inspect.Signature([*first, *(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in kwargs)])
