"""From the normalised graph to a runnable graph module over the user's own tensors."""

from __future__ import annotations

from torch import fx, nn

from fxprune._base.errors import CaptureError
from fxprune.capturing.flatten import Flat
from fxprune.capturing.state import State, hang


def build(flat: Flat, state: State) -> fx.GraphModule:
    """Return a module that runs the flat graph; its attributes are the user's tensors themselves."""
    used = {str(node.target) for node in flat.graph.nodes if node.op == "get_attr"}
    root = hang(((name, tensor) for name, tensor in flat.tensors.items() if name in used), state.persistent)
    for name, block in flat.submodules.items():
        root.add_module(name, block)
    _check_names(root)
    module = fx.GraphModule(root, flat.graph)
    _copy_persistence(root, module)
    return module


def _check_names(root: nn.Module) -> None:
    """Refuse names of parts that a graph module has uses of its own for.

    Raises:
        CaptureError: there is one; says which.
    """
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


def clean(graph: fx.Graph) -> None:
    """Drop export's fake tensors, so that the graph can be copied and pickled."""
    for node in graph.nodes:
        node.meta.pop("val", None)
        node.meta.setdefault("module", "")


def unreached(module: fx.GraphModule, state: State) -> frozenset[str]:
    """Return the parameters that the graph never uses, under their canonical names."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    return frozenset(name for name in state.parameters if state.canonical[name] == name and name not in used)
