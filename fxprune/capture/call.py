"""How a model is called: from the user's arguments to the graph's inputs, and back from its flat outputs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

__all__ = ["CallSpec"]


@dataclass(frozen=True, slots=True)
class CallSpec:
    """The calling convention of a captured model.

    Attributes:
        signature: The original forward signature, with its defaults and without ``self``.
        in_spec: Tree structure of the captured arguments: a dict from parameter name to value.
        out_spec: Tree structure of what the model returns.
        placeholders: For every leaf of the arguments the name of its placeholder, or None for a literal.
        literals: For every leaf the constant that was baked into the graph, or None for a placeholder.
    """

    signature: inspect.Signature
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    placeholders: tuple[str | None, ...]
    literals: tuple[Any, ...]

    @property
    def captured(self) -> tuple[str, ...]:
        """Names of the parameters that the captured call gave."""
        return tuple(self.in_spec.context)

    def flatten(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return the graph's inputs for a call in the original signature.

        Raises:
            TypeError: If the call does not fit the signature, or differs in structure or in a baked-in
                constant from the captured one.
        """
        given = dict(self.signature.bind(*args, **kwargs).arguments)
        leaves, spec = pytree.tree_flatten(self._align(given))
        if spec != self.in_spec:
            raise TypeError(f"the model was captured for arguments {self.in_spec}, got {spec}")
        for leaf, name, literal in zip(leaves, self.placeholders, self.literals, strict=True):
            if name is None and not same(leaf, literal):
                raise TypeError(f"the value {literal!r} was fixed when the model was captured, got {leaf!r}")
            if name is not None and not isinstance(leaf, Tensor):
                raise TypeError(f"input {name!r} must be a tensor, got {type(leaf).__name__}")
        return tuple(leaf for leaf, name in zip(leaves, self.placeholders, strict=True) if name is not None)

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """Rebuild the model's output from the graph's flat outputs."""
        return pytree.tree_unflatten(list(outputs), self.out_spec)

    def _align(self, given: dict[str, Any]) -> dict[str, Any]:
        """Bring a call to the captured arguments: defaults filled in, spelled-out defaults dropped."""
        captured = pytree.tree_unflatten(
            [_Captured(n, v) for n, v in zip(self.placeholders, self.literals, strict=True)], self.in_spec
        )
        parameters = self.signature.parameters
        aligned = {}
        for name in self.captured:
            aligned[name] = given[name] if name in given else _default(parameters[name], captured[name])
        for name in given.keys() - set(self.captured):
            if not same(given[name], parameters[name].default) and given[name] not in ((), {}):
                raise TypeError(
                    f"the model was captured without {name!r}; pass an example for it to capture()"
                )
        return aligned


@dataclass(frozen=True, slots=True)
class _Captured:
    """A leaf of the captured call."""

    placeholder: str | None
    literal: Any


def _default(parameter: inspect.Parameter, captured: Any) -> Any:
    """Return what a parameter left out stands for: its default, or the constants it was captured with."""
    if parameter.default is not parameter.empty:
        default = parameter.default
        literal = isinstance(captured, _Captured) and captured.placeholder is None
        return captured.literal if literal else default
    return pytree.tree_map(_literal_of, captured)


def _literal_of(leaf: _Captured) -> Any:
    if leaf.placeholder is not None:
        raise TypeError(f"missing a required argument: {leaf.placeholder!r}")
    return leaf.literal


def same(a: Any, b: Any) -> bool:
    """Say whether two arguments are the same for a graph; tensors only if they are one object, ``1`` is not True."""
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return type(a) is type(b) and bool(a == b)
