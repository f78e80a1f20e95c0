"""From the normalised graph to a runnable graph module over the user's own tensors."""

from __future__ import annotations

from torch import fx, nn

from fxprune.capturing.flatten import Flat
from fxprune.capturing.state import State, hang

__all__ = ["build", "clean", "unreached"]


def build(flat: Flat, state: State) -> fx.GraphModule:
    """Return a module that runs the flat graph; its attributes are the user's tensors themselves."""
    used = {str(node.target) for node in flat.graph.nodes if node.op == "get_attr"}
    root = hang(((name, tensor) for name, tensor in flat.tensors.items() if name in used), state.persistent)
    for name, block in flat.submodules.items():
        root.add_module(name, block)
    module = fx.GraphModule(root, flat.graph)
    _copy_persistence(root, module)
    return module


def _copy_persistence(source: nn.Module, target: nn.Module) -> None:
    """Restore which buffers stay out of the state dict: `fx.GraphModule` forgets it."""
    for path, module in source.named_modules():
        if module._non_persistent_buffers_set:
            target.get_submodule(path)._non_persistent_buffers_set.update(module._non_persistent_buffers_set)


def clean(graph: fx.Graph) -> None:
    """Drop export's fake tensors, so that the graph can be copied and pickled."""
    for node in graph.nodes:
        node.meta.pop("val", None)
        node.meta.setdefault("module", "")


def unreached(module: fx.GraphModule, state: State) -> frozenset[str]:
    """Return the parameters that the graph never uses, under their canonical names."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    return frozenset(name for name in state.parameters if state.canonical[name] == name and name not in used)
