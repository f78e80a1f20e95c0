"""Sharded models: tensors of which several processes hold a part each (FSDP2's ``fully_shard``, tensor parallelism), and plain copies with all of them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Tensor, fx, nn

from fxprune._base.copies import copied

#: What begins the attributes, and the modules of the classes and hooks, with which torch shards a module.
_ATTRIBUTES, _MODULES = (
    "__composable_api",
    tuple(f"torch.distributed.{part}" for part in ("fsdp", "tensor", "_composable")),
)


def is_sharded(tensor: Tensor) -> bool:
    """Returns whether a tensor, ``[...]``, is a `DTensor`."""
    return hasattr(tensor, "full_tensor")


def holds_shards(model: nn.Module) -> bool:
    """Returns whether any of a model's tensors is a `DTensor`, or is at times: after a forward pass some stay whole for the next."""
    return any(map(is_sharded, chain(model.parameters(), model.buffers()))) or any(map(_is_sharding, model.modules()))


def whole(tensor: Tensor) -> Tensor:
    """Returns all of a tensor, ``[...]``, without history; of a `DTensor` every process must ask."""
    found: Any = tensor.detach()
    gathered: Tensor = found.full_tensor() if is_sharded(tensor) else found
    return gathered


def gathered(model: nn.Module) -> nn.Module:
    """Returns a model that is sharded as a plain copy: of its own classes, with whole tensors, gathered one after another; any other as it is.

    Every process must ask, and each gets all of it, where its part lies; the model stays as it is.
    """
    if not holds_shards(model):
        return model
    made: dict[int, Any] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        if is_sharded(tensor) and id(tensor) not in made:
            made[id(tensor)] = _like(tensor, whole(tensor).clone())
    sharding = [module for module in model.modules() if _is_sharding(module)]
    for module in sharding:
        made[id(module)] = _bare(module)
    found, attributes = copied((model, [_own(vars(module)) for module in sharding]), made)
    for module, own in zip(sharding, attributes, strict=True):
        vars(made[id(module)]).update(own)
    for module in found.modules():  # a layer within what is sharded has hooks of it as well
        vars(module).update(_own(vars(module)))
    graphs = any(isinstance(module, fx.GraphModule) for module in sharding)
    return copied(found) if graphs else found  # a graph's class is its own


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _is_sharding(module: nn.Module) -> bool:
    """Returns whether a module's class is one that torch made of the model's own; such a module refuses to be copied."""
    bases = type(module).__bases__
    return len(bases) == 2 and bases[0].__module__.startswith(_MODULES)


def _bare(module: nn.Module) -> nn.Module:
    """Returns an object of the class that a module had before, without attributes."""
    bare: nn.Module = object.__new__(type(module).__bases__[1])
    return bare


def _own(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a module's attributes without what shards it."""
    own = {name: value for name, value in attributes.items() if not name.startswith(_ATTRIBUTES)}
    for name, hooks in attributes.items():
        if name.endswith("_hooks") and isinstance(hooks, dict) and any(map(_is_torchs, hooks.values())):
            own[name] = type(hooks)((key, hook) for key, hook in hooks.items() if not _is_torchs(hook))
    return own


def _is_torchs(hook: Any) -> bool:
    function = getattr(hook, "hook", getattr(hook, "func", hook))
    return str(getattr(function, "__module__", "")).startswith(_MODULES)
