"""Turn an exported program into one flat graph: placeholders for tensor leaves, `get_attr` for the state."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from fxprune._base.errors import CaptureError
from fxprune.capturing.regions import AUTOCAST, GRAD, Autocast, within
from fxprune.capturing.state import State

META = ("val", "nn_module_stack", "stack_trace", "module")
_ATTRIBUTES = {InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR}
_CHECKS = re.compile(r"_assert|_guards|sym_constrain|_functional_assert|_functional_sym")


@dataclass(slots=True, eq=False)
class Flat:
    """A flat graph in the making.

    Attributes:
        graph: The graph; its nodes carry ``val``, export's fake tensors.
        tensors: The tensors of its `get_attr` nodes, by name.
        submodules: Graph modules of higher-order operators that could not be inlined, by name.
    """

    graph: fx.Graph = field(default_factory=fx.Graph)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    submodules: dict[str, fx.GraphModule] = field(default_factory=dict)


def flatten(program: ExportedProgram, state: State) -> Flat:
    """Return the program as one flat graph.

    Placeholders are the tensor leaves of the call, the output is one flat tuple. Parameters, buffers and lifted
    constants are `get_attr` nodes under the model's own names, one node a tensor. Checks are dropped. Blocks under
    ``no_grad`` or autocast are inlined; their nodes carry the mode that they run in (see `fxprune.capturing.regions`).

    Raises:
        CaptureError: If the program takes something other than tensors and constants.
    """
    flat = Flat()
    env: dict[fx.Node, Any] = {}
    held: dict[int, fx.Node] = {}
    for node, spec in zip(program.graph.find_nodes(op="placeholder"), program.graph_signature.input_specs, strict=True):
        if spec.kind in _ATTRIBUTES:
            assert spec.target is not None
            name, tensor = _attribute(spec.target, program, state)
            if id(tensor) not in held:
                flat.tensors[name] = tensor
                made = flat.graph.create_node("get_attr", name, name=name.replace(".", "_"))
                held[id(tensor)] = _keep_meta(made, node)
            env[node] = held[id(tensor)]
        elif spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument):
            env[node] = _keep_meta(flat.graph.placeholder(node.name), node)
        elif spec.kind is not InputKind.USER_INPUT:
            raise CaptureError(f"input {node.name!r} is a {spec.kind.name.lower()}: only tensors can be captured")
    _inline(program.graph_module, env, flat, {})
    _write_output(program, env, flat)
    for node in flat.graph.nodes:  # a shared module has one name, as a shared tensor has
        path = node.meta.get("module", "")
        node.meta["module"] = state.modules.get(path, path)
    return flat


def _attribute(target: str, program: ExportedProgram, state: State) -> tuple[str, Tensor]:
    """Return the canonical name and the user's own tensor behind an input of the program."""
    name = state.canonical.get(target, target)
    if name in state.tensors:
        return name, state.tensors[name]
    tensor = program.state_dict.get(target, program.constants.get(target))
    if not isinstance(tensor, Tensor):
        raise CaptureError(f"attribute {target!r} is a {type(tensor).__name__}: only tensors can be captured")
    return name, tensor


def _keep_meta(node: fx.Node, source: fx.Node) -> fx.Node:
    node.meta = {key: source.meta[key] for key in META if key in source.meta}
    stack = list(source.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0].partition("@")[0] if stack else ""
    node.meta["module"] = "" if path.startswith("_empty_nn_module_stack") else path
    return node


def _inline(module: fx.GraphModule, env: dict[fx.Node, Any], flat: Flat, modes: Mapping[str, Any]) -> Sequence[Any]:
    """Copy the body of ``module``, which runs in these modes, into the flat graph and return what it outputs."""
    for node in module.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            outputs: Sequence[Any] = fx.map_arg(node.args[0], lambda n: env[n])
            return outputs
        if getattr(node.target, "__module__", "").startswith("torch._functorch"):
            raise CaptureError(
                "a transform of torch.func (vmap, grad, jvp) runs within forward, of which torch.export leaves no operators: "
                "write out what it computes, or compile the modules before and after it"
            )
        if node.op == "get_attr":
            env[node] = _submodule(module, node, env, flat)
        elif _is_check(node):
            continue
        elif (region := _region(node)) is not None:
            env[node] = _inline_call(module, region, env, flat, modes)
        elif node.target is operator.getitem and isinstance(env.get(node.args[0]), (tuple, list)):
            env[node] = env[node.args[0]][node.args[1]]
        else:
            env[node] = _keep_meta(flat.graph.node_copy(node, lambda n: env[n]), node)
            env[node].meta.update(modes)
    raise AssertionError("an exported graph has an output")


def _is_check(node: fx.Node) -> bool:
    name = getattr(node.target, "__name__", str(node.target))
    return node.op == "call_module" or (not node.users and bool(_CHECKS.match(name)))


@dataclass(frozen=True, slots=True)
class _Region:
    """A call of a submodule in a mode of its own.

    Attributes:
        body: Names the submodule.
        operands: What it is called with.
        modes: Entries for the ``meta`` of its nodes.
    """

    body: fx.Node
    operands: Sequence[Any]
    modes: Mapping[str, Any]


def _region(node: fx.Node) -> _Region | None:
    """Return what a higher-order operator calls if it only switches a mode."""
    args: Any = node.args
    if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
        return _Region(args[1], args[2:], {GRAD: args[0]})
    if node.target is torch.ops.higher_order.wrap_with_autocast:
        return _Region(args[4], args[5:], {AUTOCAST: (Autocast(*args[:4]),)})
    return None


def _inline_call(
    module: fx.GraphModule, region: _Region, env: dict[fx.Node, Any], flat: Flat, modes: Mapping[str, Any]
) -> Sequence[Any]:
    inner = module.get_submodule(str(region.body.target))
    assert isinstance(inner, fx.GraphModule)
    operands = fx.map_arg(region.operands, lambda n: env[n])
    given = dict(zip(inner.graph.find_nodes(op="placeholder"), operands, strict=True))
    return _inline(inner, given, flat, within(modes, region.modes))


def _submodule(module: fx.GraphModule, node: fx.Node, env: dict[fx.Node, Any], flat: Flat) -> fx.Node | None:
    """Keep the submodule of an opaque higher-order operator (a loop) as it is."""
    if all(_region(user) is not None for user in node.users):
        return None
    inner = module.get_submodule(str(node.target))
    assert isinstance(inner, fx.GraphModule)
    name = f"_block_{len(flat.submodules)}"
    flat.submodules[name] = inner
    return _keep_meta(flat.graph.create_node("get_attr", name), node)


def _write_output(program: ExportedProgram, env: dict[fx.Node, Any], flat: Flat) -> None:
    """Return the user's outputs as one flat tuple; outputs that stand for mutated state are left out."""
    results: Any = program.graph.output_node().args[0]
    specs = program.graph_signature.output_specs
    leaves = [value for value, spec in zip(results, specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT]
    flat.graph.output(tuple(fx.map_arg(leaves, lambda n: env[n])))
