"""The call that a model was captured with, without its values: enough to capture it again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune.data.batch import short
from fxprune.data.calls import Call, bound_call

_DTYPES = {short(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}

#: Containers that a file may ask for. torch's own reader imports any module that a defaultdict or enum names.
_PLAIN_NODES = {"builtins.dict", "builtins.list", "builtins.tuple", "collections.OrderedDict"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor argument: shape, dtype (``"float32"``), and the dimensions whose size may change."""

    shape: tuple[int, ...]
    dtype: str
    dynamic: tuple[int, ...] = ()

    def zeros(self, device: torch.device | str, grow: int) -> Tensor:
        """Returns zeros ``[*shape]``, every dynamic dimension larger by ``grow``."""
        sizes = [size + grow if axis in self.dynamic else size for axis, size in enumerate(self.shape)]
        return torch.zeros(sizes, dtype=_DTYPES[self.dtype], device=device)


Constant = bool | int | float | str | torch.dtype | torch.device | None


@dataclass(frozen=True, slots=True)
class ExampleSpec:
    """The arguments of one call, by parameter name.

    Attributes:
        structure: the tree of ``{parameter name: value}``, as ``torch.utils._pytree.treespec_dumps`` writes
            it; empty if the call holds something that has no JSON form.
        leaves: its leaves in order: a ``TensorSpec``, or a constant.
    """

    structure: str
    leaves: tuple[TensorSpec | Constant, ...]

    @classmethod
    def of(cls, arguments: Mapping[str, Any], dynamic: Sequence[Iterable[int]] | None = None) -> ExampleSpec:
        """Returns the spec of a call.

        Args:
            arguments: the bound arguments by parameter name: ``signature.bind(*args, **kwargs).arguments``.
            dynamic: for every leaf the dimensions whose size may change; by default none.
        """
        leaves, structure = pytree.tree_flatten(dict(arguments))
        dims: Sequence[Iterable[int]] = dynamic if dynamic is not None else [()] * len(leaves)
        # Not every call has a JSON form: `treespec_dumps` raises NotImplementedError or TypeError for a container or key that
        # it does not know, `_read_structure` PlanError for one that is not plain, `_spec` TypeError for a leaf. Compiling
        # goes on without an example; what needs one says so (`_need_structure`).
        try:
            text = pytree.treespec_dumps(structure)
            _read_structure(text, "example")
            return cls(text, tuple(_spec(leaf, axes) for leaf, axes in zip(leaves, dims, strict=True)))
        except (NotImplementedError, TypeError, PlanError):
            return cls("", ())

    def call(self, model: nn.Module, device: torch.device | str, grow: int = 0) -> Call:
        """Returns (args, kwargs) of a call with zeros.

        Args:
            model: whose forward is to be called.
            device: where the zeros go.
            grow: how much larger the dynamic dimensions are: two calls that differ in it show which they are.

        Raises:
            PlanError: the model's forward has no such parameters, or the zeros do not fit into memory.
        """
        self._need_structure()
        try:
            leaves = [leaf.zeros(device, grow) if isinstance(leaf, TensorSpec) else leaf for leaf in self.leaves]
        except (RuntimeError, OverflowError, TypeError) as error:
            raise PlanError(f"the plan's example cannot be made: {error}") from error
        arguments = pytree.tree_unflatten(leaves, pytree.treespec_loads(self.structure))
        signature = inspect.signature(model.forward)
        if strange := sorted(arguments.keys() - signature.parameters.keys()):
            raise PlanError(f"the plan was made for another model: forward{signature} has no parameter {strange[0]!r}")
        return bound_call(signature, arguments)

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON data.

        Raises:
            PlanError: the call has no JSON form.
        """
        self._need_structure()
        return {"structure": self.structure, "leaves": [_to_json(leaf) for leaf in self.leaves]}

    @classmethod
    def from_dict(cls, data: Any, where: str = "example") -> ExampleSpec:
        """Returns the spec that ``to_dict`` gave.

        Raises:
            PlanError: the data are damaged, or name a container that is not plain.
        """
        leaf = partial(untrusted.sequence_of, read=_from_json)
        found = untrusted.fields_of(data, where, {"structure": untrusted.string, "leaves": leaf})
        structure = _read_structure(found["structure"], f"{where}: structure")
        if structure.num_leaves != len(found["leaves"]):
            raise PlanError(f"{where}: expected {structure.num_leaves} leaves, got {len(found['leaves'])}")
        return cls(**found)

    def _need_structure(self) -> None:
        if not self.structure:
            kinds = "tensors, numbers and text in dicts, lists and tuples"
            raise PlanError(f"the example call has no JSON form: expected {kinds} as the model's arguments")


def _spec(leaf: Any, dynamic: Iterable[int]) -> TensorSpec | Constant:
    if isinstance(leaf, Tensor):
        return TensorSpec(tuple(int(size) for size in leaf.shape), short(leaf.dtype), tuple(sorted(dynamic)))
    if isinstance(leaf, bool | int | float | str | torch.dtype | torch.device | None):
        return leaf
    raise TypeError(f"a leaf of type {type(leaf).__name__}")


def _to_json(leaf: TensorSpec | Constant) -> dict[str, Any]:
    if isinstance(leaf, TensorSpec):
        return {"shape": list(leaf.shape), "dtype": leaf.dtype, "dynamic": list(leaf.dynamic)}
    if isinstance(leaf, torch.dtype):
        return {"torch.dtype": short(leaf)}
    if isinstance(leaf, torch.device):
        return {"torch.device": str(leaf)}
    return {"constant": leaf}


def _from_json(value: Any, where: str) -> TensorSpec | Constant:
    data = untrusted.mapping(value, where)
    if data.keys() == {"constant"}:
        return _constant(data["constant"], where)
    if data.keys() == {"torch.dtype"}:
        return _DTYPES[_dtype(data["torch.dtype"], where)]
    if data.keys() == {"torch.device"}:
        return _device(untrusted.string(data["torch.device"], where), where)
    readers = {"shape": untrusted.integers, "dtype": _dtype, "dynamic": untrusted.integers}
    spec = TensorSpec(**untrusted.fields_of(value, where, readers))
    if max(spec.dynamic, default=-1) >= len(spec.shape):
        raise PlanError(f"{where}: dynamic dimension {max(spec.dynamic)} of a tensor of shape {list(spec.shape)}")
    return spec


def _constant(value: Any, where: str) -> Constant:
    if value is None or isinstance(value, bool):
        return value
    return untrusted.string(value, where) if isinstance(value, str) else untrusted.number(value, where)


def _dtype(value: Any, where: str) -> str:
    name = untrusted.string(value, where)
    if name not in _DTYPES:
        raise PlanError(f"{where}: expected a dtype such as 'float32', got {name!r:.40}")
    return name


def _device(name: str, where: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise PlanError(f"{where}: expected a device such as 'cpu', got {name!r:.40}") from error


def _read_structure(text: str, where: str) -> pytree.TreeSpec:
    """Reads a tree that holds nothing but plain containers and whose root is a dict of arguments."""
    try:
        protocol, tree = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise PlanError(f"{where}: it is no tree ({error})") from error
    if protocol != 1:
        raise PlanError(f"{where}: expected protocol 1, got {protocol!r:.40}")
    _check_node(tree, where)
    if tree["type"] != "builtins.dict":
        raise PlanError(f"{where}: expected a dict of arguments, got {tree['type']!r:.40}")
    try:
        structure: pytree.TreeSpec = pytree.treespec_loads(text)
        pytree.tree_unflatten([0] * structure.num_leaves, structure)
    except Exception as error:
        raise PlanError(f"{where}: it is no tree ({error})") from error
    return structure


def _check_node(node: Any, where: str, depth: int = 0) -> None:
    data = untrusted.record(node, where, ("type", "context", "children_spec"))
    children = untrusted.sequence(data["children_spec"], where)
    if data["type"] is not None or data["context"] is not None:
        kind = untrusted.string(data["type"], where)
        if kind not in _PLAIN_NODES:
            raise PlanError(f"{where}: containers of type {kind!r:.80} are not read from files")
        _check_context(kind, data["context"], len(children), where)
    if depth > 50:
        raise PlanError(f"{where}: nested too deeply")
    for child in children:
        _check_node(child, where, depth + 1)


def _check_context(kind: str, context: Any, children: int, where: str) -> None:
    """A list or tuple has no context; a dict has its keys, which must be text."""
    try:
        value = json.loads(untrusted.string(context, where))
    except (ValueError, RecursionError) as error:
        raise PlanError(f"{where}: {kind} has a damaged context ({error})") from error
    plain = kind in ("builtins.list", "builtins.tuple")
    if plain and value is not None:
        raise PlanError(f"{where}: {kind} has a context")
    keys = () if plain else untrusted.texts(value, where)
    if not plain and (len(set(keys)) != len(keys) or len(keys) != children):
        raise PlanError(f"{where}: {kind} expected {children} different keys, got {len(keys)}")
