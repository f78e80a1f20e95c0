"""Normalisation: bring a flat exported graph into the few forms that the later stages understand.

Every pass is a function of the graph and of the integer values of its symbolic sizes. A pass changes how a
value is computed, never the value.
"""

from __future__ import annotations

from collections.abc import Set

from torch import fx

from fxprune._base.errors import FxpruneWarning
from fxprune.capturing.normalize.devices import take_device_from_input
from fxprune.capturing.normalize.inplace import functionalise
from fxprune.capturing.normalize.literals import fold_sizes, pin_attention_scale
from fxprune.capturing.normalize.noop import drop_noops
from fxprune.capturing.normalize.out import without_out
from fxprune.capturing.normalize.select import push_down_selects
from fxprune.capturing.normalize.stops import drop_idle_stops, stop_gradients
from fxprune.capturing.normalize.views import unify_reshapes, unify_splits
from fxprune.capturing.sizes import Sizes


def normalise(graph: fx.Graph, sizes: Sizes, parameters: Set[str] = frozenset()) -> list[str | FxpruneWarning]:
    """Normalise a flat graph in place; nodes must carry export's fake tensors in ``meta["val"]``.

    Args:
        graph: The graph.
        sizes: The integer values of its symbolic sizes.
        parameters: The names of its parameters.

    Returns:
        Notes for the user, and what to warn of: what the captured graph does not keep.
    """
    without_out(graph)
    notes = [*functionalise(graph, sizes, parameters), *stop_gradients(graph, parameters)]
    drop_idle_stops(graph, parameters)
    take_device_from_input(graph)
    fold_sizes(graph)
    drop_noops(graph)
    unify_reshapes(graph)
    unify_splits(graph)
    drop_dead(graph)
    pin_attention_scale(graph)
    push_down_selects(graph, sizes)
    drop_dead(graph)
    return notes


def drop_dead(graph: fx.Graph) -> None:
    """Erase nodes without users, unless they write to a tensor that is used."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output") and not node.is_impure():
            graph.erase_node(node)
