"""Parts of a forward pass that run in a mode of their own: autocast on or off, no gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import has_side_effect

#: Keys of a node's ``meta``: whether gradients are recorded, and the autocasts that it runs under, one a device type.
GRAD = "grad"
AUTOCAST = "autocast"


@has_side_effect
def enter_autocast(device_type: str, dtype: torch.dtype | None, enabled: bool, cache_enabled: bool | None) -> Any:
    """Enter an autocast before the nodes of a graph that run under it; return what leaves it."""
    if torch.compiler.is_dynamo_compiling():
        return torch.amp.autocast_mode._enter_autocast(device_type, dtype, enabled, cache_enabled)
    mode = torch.autocast(device_type, dtype, enabled, cache_enabled)
    mode.__enter__()
    return mode


@has_side_effect
def exit_autocast(mode: Any) -> None:
    """Leave an autocast after the nodes of a graph that run under it."""
    if torch.compiler.is_dynamo_compiling():
        torch.amp.autocast_mode._exit_autocast(mode)
    else:
        mode.__exit__(None, None, None)


@dataclass(frozen=True, slots=True)
class Autocast:
    """The arguments of a ``torch.autocast``.

    Attributes:
        device_type: Of the tensors that it is for, such as ``"cuda"``.
        dtype: What it casts to.
        enabled: Whether it casts, or keeps an autocast around it from casting.
        cache_enabled: Whether it casts a weight once for all of its readers.
    """

    device_type: str
    dtype: torch.dtype | None
    enabled: bool
    cache_enabled: bool | None


def within(outer: Mapping[str, Any], inner: Mapping[str, Any]) -> dict[str, Any]:
    """Return the modes of a region inside another one."""
    modes = {**outer, **inner}
    if AUTOCAST in outer and AUTOCAST in inner:
        own = {autocast.device_type for autocast in inner[AUTOCAST]}
        modes[AUTOCAST] = (*(a for a in outer[AUTOCAST] if a.device_type not in own), *inner[AUTOCAST])
    return modes


def mode_of(node: fx.Node, dtype: torch.dtype | None = None) -> AbstractContextManager[Any]:
    """Return the context to run a node in; in a precision of the caller's own, ``dtype``, nothing is cast."""
    autocasts: tuple[Autocast, ...] = node.meta.get(AUTOCAST, ())
    if not autocasts:
        return nullcontext()
    stack = ExitStack()
    for a in autocasts:
        stack.enter_context(torch.autocast(a.device_type, a.dtype, a.enabled and dtype is None, a.cache_enabled))
    return stack


class Autocasts:
    """Writes a graph's autocasts around its nodes, as they are needed.

    Args:
        graph: Is written node by node.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._open: tuple[Autocast, ...] = ()
        self._entered: list[fx.Node] = []

    def switch(self, node: fx.Node) -> None:
        """Let what is written next run under the autocasts of ``node``."""
        wanted: tuple[Autocast, ...] = node.meta.get(AUTOCAST, ())
        if wanted == self._open:
            return
        while self._entered:
            self._graph.call_function(exit_autocast, (self._entered.pop(),))
        self._entered = [self._graph.call_function(enter_autocast, astuple(autocast)) for autocast in wanted]
        self._open = wanted


def without_autocast(graph: fx.Graph) -> None:
    """Have all autocasts of a written graph keep from casting."""
    for node in graph.nodes:
        if node.target is enter_autocast:
            node.update_arg(2, False)


def is_autocast(args: Sequence[Any]) -> bool:
    """Say whether these are the arguments of a `torch.autocast` (see `Autocast`)."""
    if len(args) != 4 or not isinstance(args[0], str) or not isinstance(args[2], bool):
        return False
    known = args[0].isidentifier() and torch.amp.is_autocast_available(args[0])
    casts_to = args[1] is None or (isinstance(args[1], torch.dtype) and args[1].is_floating_point)
    return known and casts_to and isinstance(args[3], (bool, type(None)))


def are_closed(graph: fx.Graph) -> bool:
    """Say whether every autocast that a written graph enters is left once, the last one first, and serves nothing else."""
    entered: list[fx.Node] = []
    for node in graph.nodes:
        if node.target is enter_autocast:
            entered.append(node)
        elif node.target is exit_autocast:
            if not entered or node.args[0] is not entered.pop():
                return False
        elif any(source.target in (enter_autocast, exit_autocast) for source in node.all_input_nodes):
            return False
    return not entered


def guarded(device_types: Sequence[str], forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``forward`` so that an error inside it leaves no autocast behind."""

    @functools.wraps(forward)
    def restoring(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return forward(*args, **kwargs)
        before = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in device_types]
        depth, cached = _depth(), torch.is_autocast_cache_enabled()
        try:
            return forward(*args, **kwargs)
        except BaseException:
            for kind, enabled, dtype in before:
                torch.set_autocast_enabled(kind, enabled)
                torch.set_autocast_dtype(kind, dtype)
            torch.set_autocast_cache_enabled(cached)
            while _depth() > depth:
                torch.autocast_decrement_nesting()
            if not depth:
                torch.clear_autocast_cache()
            raise

    return restoring


def _depth() -> int:
    """Return how many autocasts are entered."""
    torch.autocast_increment_nesting()
    return int(torch.autocast_decrement_nesting())
