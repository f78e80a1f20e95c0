"""How a stored graph is called: its signature, and the trees of its arguments and outputs, as JSON data.

A tree is null (a leaf) or an object with a ``kind``. Dicts, lists, tuples and deques are plain. Of another container its class's
name is stored; it is that class again where this process has it already (nothing is imported): registered with torch's pytree,
or a namedtuple of the same fields. Elsewhere it is a dict of its names, or a tuple where it has none.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
import keyword
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.utils import _pytree as pytree

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune.capturing.call import CallSpec
from fxprune.storage.graph.limits import describe_limits, read_limits
from fxprune.storage.graph.values import DEPTH, Opaque, Unstorable, plain, to_json

_KINDS = {
    name: getattr(inspect.Parameter, name.upper())
    for name in ["positional_only", "positional_or_keyword", "var_positional", "keyword_only", "var_keyword"]
}
_IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)

#: Names that the generated code of a `PrunedModule` needs for itself.
_OWN_NAMES = frozenset({"self", "_inputs_of", "_outputs_of"})

_PLAIN = {"list": list, "tuple": tuple, "dict": dict, "ordered_dict": collections.OrderedDict}
_STARRED: dict[Any, type] = {inspect.Parameter.VAR_POSITIONAL: tuple, inspect.Parameter.VAR_KEYWORD: dict}
_LEAF = pytree.tree_structure(0)


def identifier(value: Any, where: str) -> str:
    """Returns a name for a variable in generated code: ASCII, no keyword, none that the code needs for itself."""
    name = keyword_name(value, where)
    if name in _OWN_NAMES:
        raise untrusted.refusal(name, where, "a name that the generated code leaves free")
    return name


def keyword_name(value: Any, where: str) -> str:
    """Returns a name for an argument in generated code."""
    name = untrusted.string(value, where)
    if not _IDENTIFIER.fullmatch(name) or keyword.iskeyword(name):
        raise untrusted.refusal(name, where, "a Python name")
    return name


def describe_call(call: CallSpec) -> dict[str, Any]:
    """Returns JSON data for a call convention.

    Raises:
        Unstorable: an argument or a container has no JSON form.
    """
    parameters = list(call.signature.parameters.values())
    defaults = [p.default for p in parameters if p.default is not p.empty]
    return {
        "parameters": [_write_parameter(parameter) for parameter in parameters],
        "arguments": _write_tree(call.in_spec),
        "leaves": [
            {"literal": _write_literal(literal, defaults)} if name is None else {"input": name}
            for name, literal in zip(call.placeholders, call.literals, strict=True)
        ],
        "outputs": _write_tree(call.out_spec),
        **({} if call.limits is None else {"limits": describe_limits(call.limits)}),
        **({} if call.assumed is None else {"assumed": list(call.assumed)}),
    }


def read_call(data: Any, where: str) -> CallSpec:
    """Returns the call convention that ``describe_call`` was given.

    Raises:
        PlanError: the data are damaged.
    """
    found = untrusted.record(data, where, ("parameters", "arguments", "leaves", "outputs"), ("limits", "assumed"))
    parameters = untrusted.sequence_of(found["parameters"], f"{where}: parameters", _read_parameter)
    with untrusted.reading(f"{where}: parameters"):
        signature = inspect.Signature(parameters)
    in_spec = _read_tree(found["arguments"], f"{where}: arguments")
    _check_arguments(in_spec, signature, f"{where}: arguments")
    leaves = untrusted.sequence_of(found["leaves"], f"{where}: leaves", _read_leaf)
    if len(leaves) != in_spec.num_leaves:
        raise PlanError(f"{where}: expected {in_spec.num_leaves} leaves, got {len(leaves)}")
    out_spec = _read_tree(found["outputs"], f"{where}: outputs")
    inputs, literals = tuple(name for name, _ in leaves), tuple(value for _, value in leaves)
    limits = None
    if "limits" in found:
        limits = read_limits(found["limits"], sum(name is not None for name in inputs), f"{where}: limits")
    assumed = untrusted.texts(found["assumed"], f"{where}: assumed") if "assumed" in found else None
    return CallSpec(signature, in_spec, out_spec, inputs, literals, limits, assumed)


# -- parameters and leaves ------------------------------------------------------------------------------------------


def _write_parameter(parameter: inspect.Parameter) -> dict[str, Any]:
    row, default = {"name": parameter.name, "kind": parameter.kind.name.lower()}, parameter.default
    return row if default is parameter.empty else {**row, "default": _write_literal(default, (default,))}


def _write_literal(value: Any, defaults: Sequence[Any]) -> Any:
    """Returns JSON data for a constant; a default that has no JSON form becomes opaque."""
    try:
        return to_json(value)
    except Unstorable:
        if not any(value is default for default in defaults):
            raise
    return to_json(Opaque(getattr(value, "__qualname__", type(value).__qualname__)))


def _read_parameter(value: Any, where: str) -> inspect.Parameter:
    found = untrusted.record(value, where, ("name", "kind"), ("default",))
    name = identifier(found["name"], f"{where}: name")
    kind = untrusted.one_of(_KINDS, found["kind"], f"{where}: kind")
    default = plain(found["default"], where) if "default" in found else inspect.Parameter.empty
    with untrusted.reading(where):
        return inspect.Parameter(name, _KINDS[kind], default=default)


def _read_leaf(value: Any, where: str) -> tuple[str | None, Any]:
    found = untrusted.mapping(value, where)
    if found.keys() == {"input"}:
        return identifier(found["input"], where), None
    if found.keys() == {"literal"}:
        return None, plain(found["literal"], where)
    raise untrusted.refusal(value, where, "an input or a literal")


def _check_arguments(spec: pytree.TreeSpec, signature: inspect.Signature, where: str) -> None:
    if spec.type is not dict or not set(spec.context) <= signature.parameters.keys():
        raise PlanError(f"{where}: expected a dict of the signature's parameters")
    for name, child in zip(spec.context, spec.children(), strict=True):
        kind = signature.parameters[name].kind
        if child.type is not _STARRED.get(kind, child.type):
            raise PlanError(f"{where}: {name!r}: expected the form of {kind.description} arguments")


# -- trees ----------------------------------------------------------------------------------------------------------


def _write_tree(spec: pytree.TreeSpec) -> Any:
    if spec.is_leaf():
        return None
    return {**_write_node(spec.type, spec.context), "children": [_write_tree(c) for c in spec.children()]}


def _write_node(kind: Any, context: Any) -> dict[str, Any]:
    if kind is collections.defaultdict:
        kind, context = dict, context[1]
    for name, cls in _PLAIN.items():
        if kind is cls:
            return {"kind": name} if context is None else {"kind": name, "keys": [to_json(key) for key in context]}
    if kind is collections.deque:
        return {"kind": "deque", "length": context}
    if kind is collections.namedtuple:
        return {"kind": "namedtuple", "class": _full_name(context), "names": list(context._fields)}
    row = {"kind": "registered", "class": _full_name(kind), "context": to_json(context)}
    names = _names_in(context)
    return row if names is None else {**row, "names": names}


def _names_in(context: Any) -> list[str] | None:
    """Returns the names of the children in the contexts of transformers' outputs and torch's dataclasses, if it is one."""
    if isinstance(context, (list, tuple)) and len(context) == 2 and isinstance(context[0], list):
        context = context[0]
    if isinstance(context, (list, tuple)) and all(isinstance(name, str) for name in context):
        return list(context)
    return None


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _read_tree(data: Any, where: str, depth: int = 0) -> pytree.TreeSpec:
    if data is None:
        return _LEAF
    if depth > DEPTH:
        raise PlanError(f"{where}: nested too deeply")
    found = untrusted.mapping(data, where)
    kind = untrusted.one_of(_NODE_READERS, found.get("kind"), f"{where}: kind")
    required, optional, read = _NODE_READERS[kind]
    found = untrusted.record(found, where, ("kind", "children", *required), optional)
    rows = untrusted.sequence(found["children"], f"{where}: children")
    children = [_read_tree(child, where, depth + 1) for child in rows]
    cls, context = read(found, len(children), where)
    return pytree.TreeSpec(cls, context, children)


def _read_plain(found: Mapping[str, Any], count: int, where: str) -> tuple[Any, Any]:
    cls = _PLAIN[found["kind"]]
    if "keys" not in found:
        return cls, None
    keys = [plain(key, where) for key in untrusted.sequence(found["keys"], f"{where}: keys")]
    return cls, _different("keys", keys, count, where)


def _read_deque(found: Mapping[str, Any], count: int, where: str) -> tuple[Any, Any]:
    length = untrusted.maybe(untrusted.integer)(found["length"], f"{where}: length")
    if length is not None and length < count:
        raise PlanError(f"{where}: {count} entries in a deque of length {length}")
    return collections.deque, length


def _read_namedtuple(found: Mapping[str, Any], count: int, where: str) -> tuple[Any, Any]:
    names = _read_names(found, count, where)
    cls = _loaded(untrusted.string(found["class"], f"{where}: class"))
    same = isinstance(cls, type) and pytree.is_namedtuple_class(cls) and list(cls._fields) == names  # type: ignore[attr-defined]
    return (collections.namedtuple, cls) if same else (tuple, None)


def _read_registered(found: Mapping[str, Any], count: int, where: str) -> tuple[Any, Any]:
    name = untrusted.string(found["class"], f"{where}: class")
    names = _read_names(found, count, where) if "names" in found else None
    context = plain(found["context"], f"{where}: context")
    cls = next((cls for cls in _registered() if _full_name(cls) == name), None)
    if cls is None:
        return (tuple, None) if names is None else (dict, names)
    if dataclasses.is_dataclass(cls) and not set(names or ()) <= {f.name for f in dataclasses.fields(cls)}:
        raise PlanError(f"{where}: {name!r:.80} has no such fields")
    return cls, context


def _read_names(found: Mapping[str, Any], count: int, where: str) -> list[str]:
    return _different("names", list(untrusted.texts(found["names"], f"{where}: names")), count, where)


def _different(what: str, entries: list[Any], count: int, where: str) -> list[Any]:
    with untrusted.reading(f"{where}: {what}"):
        different = len(set(entries))
    if not len(entries) == different == count:
        raise PlanError(f"{where}: expected {count} different {what}, got {different}")
    return entries


def _registered() -> Iterator[type]:
    """Yields the classes that somebody registered as containers: not torch's own machinery, some of which holds code."""
    for cls in list(pytree.SUPPORTED_NODES):
        home = getattr(cls, "__module__", "")
        torchs = home.partition(".")[0] in ("torch", "builtins", "collections")
        if isinstance(cls, type) and (not torchs or home == "torch.return_types"):
            yield cls


def _loaded(name: str) -> Any:
    """Returns what a full name stands for in the modules that are loaded; no attribute is computed, nothing imported."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:cut]))
        for part in parts[cut:]:
            found = found.__dict__.get(part) if isinstance(found, (type(sys), type)) else None
        if found is not None:
            return found
    return None


_NODE_READERS: dict[str, tuple[tuple[str, ...], tuple[str, ...], Any]] = {
    **{name: (("keys",) if issubclass(cls, dict) else (), (), _read_plain) for name, cls in _PLAIN.items()},
    "deque": (("length",), (), _read_deque),
    "namedtuple": (("class", "names"), (), _read_namedtuple),
    "registered": (("class", "context"), ("names",), _read_registered),
}
