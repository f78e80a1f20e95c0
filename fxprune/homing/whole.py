"""Layers that go whole: a layer of a list whose residual branches all go is taken out of the list.

What is left of such a layer is its input, and the constants that its branches leave. The list is shorter then, the layers behind have
other numbers, and a bias before the layer takes the constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from fxprune._base.copies import copied
from fxprune._base.modes import lent, random_states_kept
from fxprune._base.names import fetch
from fxprune._base.pages import written
from fxprune.algebra.channels import Ids, Mask
from fxprune.capturing.captured import example_call
from fxprune.coupling.branches import Collapse, collapse_of, host_of, skips_of
from fxprune.coupling.coupling import Coupling
from fxprune.homing.lists import number_anew, set_counts, shorten
from fxprune.ops.registry import bind, conducts, is_kind, rule_of


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A layer of a list that can go whole.

    Attributes:
        path: of the layer.
        blocks: the channels that stand for its branches, ``[blocks]``: they go together.
        constants: the parameters in which the graph keeps what its branches leave.
        carrier: a bias before the layer that can take them.
    """

    path: str
    blocks: Ids
    constants: tuple[str, ...]
    carrier: str | None

    @property
    def container(self) -> str:
        """The path of the list."""
        return self.path.rpartition(".")[0]


def block_channels(coupling: Coupling) -> Mask:
    """Flags the channels that stand for a block, ``[channels]``."""
    found = np.zeros(len(coupling.channels), bool)
    for group in coupling.groups:
        found[coupling.units[group.units]] = group.kind == "block"
    return found


def layers_of(coupling: Coupling) -> tuple[Layer, ...]:
    """Returns the layers that can go whole, of a coupling with blocks, in the order of the model."""
    held = _tensors_of_blocks(coupling)
    found: list[Layer] = []
    taken: set[int] = set()
    for path in _in_lists(coupling.captured.model):
        here = [block for block, names in held.items() if all(name.startswith(f"{path}.") for name in names)]
        if here and taken.isdisjoint(here) and (layer := _layer(coupling, path, np.array(sorted(here)))) is not None:
            found.append(layer)
            taken.update(here)
    works = {container: _runs_without(coupling, container, found) for container in {layer.container for layer in found}}
    return tuple(layer for layer in found if works[layer.container])


def gone(layers: Iterable[Layer], removed: Mask) -> tuple[Layer, ...]:
    """Returns the layers all of whose blocks are removed, for flags ``[channels]``."""
    return tuple(layer for layer in layers if removed[layer.blocks].all())


def within(path: str, layers: Iterable[Layer]) -> bool:
    """Returns whether a module lies in one of some layers, or is one."""
    return any(path == layer.path or path.startswith(f"{layer.path}.") for layer in layers)


def _tensors_of_blocks(coupling: Coupling) -> dict[int, set[str]]:
    """Returns the names of the tensors that each block is made of."""
    blocks, found = block_channels(coupling), dict[int, set[str]]()
    for axis in coupling.axes:
        ids = np.unique(coupling.channels.resolve(axis.labels)) if axis.labels.size else np.zeros(0, np.int64)
        for channel in ids[blocks[ids]].tolist():
            found.setdefault(channel, set()).add(axis.tensor)
    return found


def _in_lists(model: nn.Module) -> list[str]:
    """Returns the layers of lists that have one place in the model, inner ones first."""
    places: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        places[id(module)] = places.get(id(module), 0) + 1
    found = [
        f"{path}.{name}".removeprefix(".")
        for path, module in model.named_modules()
        if isinstance(module, (nn.ModuleList, nn.Sequential))
        for name, child in module._modules.items()
        if child is not None and places[id(child)] == 1
    ]
    return sorted(found, key=lambda path: -path.count("."))


def _layer(coupling: Coupling, path: str, blocks: Ids) -> Layer | None:
    """Returns a layer, if nothing is left of it but its input and constants once some blocks are gone."""
    removed = np.zeros(len(coupling.channels), bool)
    removed[blocks] = True
    collapse = collapse_of(coupling, coupling.slicer(removed))
    if not collapse.constant or not collapse.legal:
        return None
    hosts = {node: host_of(coupling, collapse, node) for node in collapse.frontier}
    constants = tuple(dict.fromkeys(host for host in hosts.values() if host is not None))
    inside = [node for node in collapse.live if _within(node, path)]
    if any(not _adds_constant(collapse, node) for node in inside if node.op != "get_attr"):
        return None
    needed = {str(node.target) for node in collapse.live if node.op == "get_attr"}
    if any(name.startswith(f"{path}.") for name in needed - {*constants}):
        return None
    if not constants:
        return Layer(path, blocks, (), None)
    inputs = [skip for skip in skips_of(collapse) if not _within(skip, path)]
    carriers = {_carrier(coupling, node, path) for node in inputs}
    return Layer(path, blocks, constants, carriers.pop()) if len(carriers) == 1 and None not in carriers else None


def _within(node: fx.Node, path: str) -> bool:
    name = str(node.target) if node.op == "get_attr" else str(node.meta.get("module") or "")
    return name == path or name.startswith(f"{path}.")


def _adds_constant(collapse: Collapse, node: fx.Node) -> bool:
    return is_kind(node, "addition") and any(source in collapse.frontier for source in node.all_input_nodes)


def _carrier(coupling: Coupling, node: fx.Node, path: str) -> str | None:
    """Returns the bias that ends in a value which one layer alone reads, None if there is none."""
    if not all(_within(user, path) for user in node.users):
        return None
    return _bias_behind(coupling, node)


def _bias_behind(coupling: Coupling, node: fx.Node) -> str | None:
    """Returns a parameter, ``[channels]``, that a value has as a summand and nothing else has."""
    if node.op != "call_function":
        return None
    if is_kind(node, "addition"):
        a = bind(node)
        branches = [n for n in (a.other, a.self) if isinstance(n, fx.Node) and len(n.users) == 1]
        return next((found for n in branches if (found := _bias_behind(coupling, n)) is not None), None)
    weights = {c.weight for c in coupling.contractions if c.node is node}
    if weights:
        biases = [n for n in node.all_input_nodes if n not in weights and _is_alone(coupling, n)]
        return str(biases[0].target) if len(biases) == 1 else None
    rule = rule_of(node.target)
    same = conducts(node) or (rule is not None and rule.moves is not None and len(node.all_input_nodes) == 1)
    source = node.all_input_nodes[0] if same else None
    return _bias_behind(coupling, source) if source is not None and len(source.users) == 1 else None


def _is_alone(coupling: Coupling, node: fx.Node) -> bool:
    if node.op != "get_attr" or len(node.users) != 1 or len(coupling.captured.info[node].shape) != 1:
        return False
    return isinstance(fetch(coupling.captured.module, str(node.target)), nn.Parameter)


def _runs_without(coupling: Coupling, container: str, layers: Sequence[Layer]) -> bool:
    """Returns whether the class runs with a layer less in a list."""
    captured = coupling.captured
    model, call = copied(captured.model), example_call(captured)
    shorten(model, [layer.path for layer in layers if layer.container == container][-1:])
    try:
        with random_states_kept(), lent(model, call):
            model(*call[0], **call[1])
    except Exception:  # of any class, which may count its layers
        return False
    return True


def taken_out(home: nn.Module, pruned: nn.Module, layers: Sequence[Layer]) -> None:
    """Takes layers out of a restored model, whose other tensors are those of the graph.

    Args:
        home: the model; it is changed.
        pruned: the graph's module, which has the constants that the layers leave.
        layers: that are gone.
    """
    carrier_of = {layer.path: layer.carrier for layer in layers}
    for layer in layers:
        carrier = layer.carrier
        while carrier is not None and (inner := _around(carrier, carrier_of)) is not None:
            carrier = carrier_of[inner]
        for name in layer.constants if carrier is not None else ():
            with torch.no_grad():
                held = fetch(home, carrier or "")
                written(held, held + fetch(pruned, name))
    paths = [layer.path for layer in layers]
    number_anew(home, paths)
    shorten(home, paths)
    set_counts(home, paths)


def _around(name: str, paths: Iterable[str]) -> str | None:
    return next((path for path in paths if name.startswith(f"{path}.")), None)
