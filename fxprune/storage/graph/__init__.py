"""A pruned model as JSON data and tensors: what ``fxprune.load`` needs to make it without the original's class.

`describe` gives the data, `rebuild` the module. Reading executes nothing: operators, functions and layers are looked up in
closed tables, names are checked before they stand in generated code, and no module is imported. (Calling the module that was
read runs its operators, which is what it is for.)
"""

from __future__ import annotations

import json
import warnings
from typing import Any

import torch
from torch import nn

from fxprune._base import untrusted
from fxprune._base.errors import FxpruneWarning, PlanError, outside
from fxprune.rewriting.pruned import RESTING, PrunedModule
from fxprune.storage.graph.convention import describe_call, identifier, read_call
from fxprune.storage.graph.nodes import build_graph, describe_nodes
from fxprune.storage.graph.tree import Role, Values, build_tree, describe_modules, describe_tensors, lost_of, tensors_of
from fxprune.storage.graph.values import Unstorable

__all__ = ["SCHEMA", "Role", "Unstorable", "describe", "rebuild", "tensors_of"]

SCHEMA = 1

_FORMAT = "fxprune graph"
_FIELDS = ("format", "schema", "name", "call", "modules", "tensors", "nodes")
_RESTING = "resting"  # only where a module stays in evaluation mode


def describe(pruned: nn.Module) -> str:
    """Returns a pruned model without its values, as JSON text with a line for each module, tensor and node.

    Raises:
        Unstorable: it is no single graph, or holds what a file may not name; says what.
    """
    if not isinstance(pruned, PrunedModule):
        raise Unstorable("the model was pruned in parts, the rest of it is its own code")
    call = getattr(pruned.graph._codegen, "call", None)
    if call is None:
        raise Unstorable("the graph has no call convention")
    data = {
        "format": _FORMAT,
        "schema": SCHEMA,
        "name": type(pruned).__name__,
        "call": describe_call(call),
        "modules": describe_modules(pruned),
        "tensors": describe_tensors(pruned),
        "nodes": describe_nodes(pruned.graph),
    }
    if resting := vars(pruned).get(RESTING):
        data[_RESTING] = list(resting)
    text = "{\n" + ",\n".join(f"{_json(key)}: {_lines(value)}" for key, value in data.items()) + "\n}\n"
    _check_readable(text, pruned)
    return text


def rebuild(text: str | bytes, values: Values, what: str) -> PrunedModule:
    """Returns the module that ``describe`` was given, in evaluation mode.

    Args:
        text: what ``describe`` returned; anybody may have changed it.
        values: gives the tensors.
        what: the text's name in messages.

    Raises:
        PlanError: the text is damaged or of a newer format; says where.
    """
    data = untrusted.decode(text, what)
    if data.get("format") != _FORMAT:
        raise PlanError(f"{what}: it is no {_FORMAT}")
    untrusted.check_schema(data.get("schema"), what, (SCHEMA,))
    data = untrusted.record(data, what, _FIELDS, (_RESTING,))
    name = identifier(data["name"], f"{what}: name")
    call = read_call(data["call"], f"{what}: call")
    root = build_tree(data["modules"], data["tensors"], values, what)
    graph = build_graph(data["nodes"], root, call, f"{what}: nodes")
    with untrusted.reading(what):
        pruned = PrunedModule(root, graph, call, name)
        pruned.graph.lint()
    if resting := data.get(_RESTING):
        vars(pruned)[RESTING] = tuple(untrusted.sequence_of(resting, f"{what}: {_RESTING}", untrusted.string))
    if lost := lost_of(root):
        warnings.warn(
            f"{', '.join(lost[:3])}: what this does while training is not stored, and it does nothing here; load with the "
            "model, fxprune.load(directory, model), to train as before",
            FxpruneWarning,
            stacklevel=outside(),
        )
    return pruned.eval()


def _check_readable(text: str, pruned: PrunedModule) -> None:
    """Makes sure that the text can be read again, without any values."""
    empty = {name: torch.empty_like(tensor, device="meta") for name, _, tensor in tensors_of(pruned)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rebuild(text, lambda name, role: empty[name], "graph")
    except PlanError as error:
        raise Unstorable(f"it cannot be read again: {error}") from error


def _lines(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return _json(value)
    return "[\n" + ",\n".join(_json(row) for row in value) + "\n]"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
