"""How a model is called: from the user's arguments to the graph's inputs, and back from its flat outputs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.capturing.binding import Binding, Leaf, argument


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

    def flatten(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return the graph's inputs for a call in the original signature.

        Raises:
            TypeError: If the call does not fit the signature, or differs in structure or in a baked-in
                constant from the captured one.
        """
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple(self.binding().inputs(tuple(bound.arguments.values())))

    def unflatten(self, outputs: Sequence[Any]) -> Any:
        """Rebuild the model's output from the graph's flat outputs."""
        return pytree.tree_unflatten(list(outputs), self.out_spec)

    def binding(self) -> Binding:
        """Return what turns the values of all parameters into the graph's inputs."""
        leaves = [Leaf(n is not None, v) for n, v in zip(self.placeholders, self.literals, strict=True)]
        captured = pytree.tree_unflatten(leaves, self.in_spec)
        parameters: list[tuple[str, Any, Any]] = []
        for name, parameter in self.signature.parameters.items():
            how: Any = None
            default = parameter.default
            if parameter.kind is parameter.VAR_KEYWORD:
                how = {key: argument(key, value) for key, value in captured.get(name, {}).items()}
            elif name in captured:
                how = argument(name, captured[name])
            if parameter.kind is parameter.VAR_POSITIONAL:
                default = ()
            parameters.append((name, default, how))
        return Binding(parameters, None if self.out_spec.is_leaf() else self.out_spec)
