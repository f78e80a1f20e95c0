"""How a model is called: from the user's arguments to the graph's inputs, and back from its flat outputs.

A `Binding` runs at every call of an emitted module, and `torch.compile` traces it: plain loops over plain data, and one
`isinstance` per argument in the usual case of tensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune._base.errors import CallError
from fxprune._base.moved import filled_in
from fxprune.capturing.limits import Limits
from fxprune.data.batch import TARGET_KEYS


@dataclass(frozen=True, slots=True)
class CallSpec:
    """The calling convention of a captured model.

    Attributes:
        signature: The original forward signature, with its defaults and without ``self``.
        in_spec: Tree structure of the captured arguments: a dict from parameter name to value.
        out_spec: Tree structure of what the model returns.
        placeholders: For every leaf of the arguments the name of its placeholder, or None for a literal.
        literals: For every leaf the constant that was baked into the graph, or None for a placeholder.
        limits: The sizes that the graph stands for; None in what an earlier version made.
        assumed: Arguments that capture gave of itself, which a call may leave out; None in what an earlier version made.
    """

    signature: inspect.Signature
    in_spec: pytree.TreeSpec
    out_spec: pytree.TreeSpec
    placeholders: tuple[str | None, ...]
    literals: tuple[Any, ...]
    limits: Limits | None = None
    assumed: tuple[str, ...] | None = None

    __setstate__ = filled_in

    def flatten(self, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return the graph's inputs for a call in the original signature, ``[...]`` each as it was given.

        Raises:
            TypeError: If the call does not fit the signature.
            CallError: If it differs in structure or in a constant from the captured one, or in the kind of a dtype.
            ShapeError: If a tensor has a size that the graph does not stand for.
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
            how: Any = self._argument(name, captured[name]) if name in captured else None
            if parameter.kind is parameter.VAR_KEYWORD:
                how = {key: self._argument(key, value) for key, value in captured.get(name, {}).items()}
            parameters.append((name, () if parameter.kind is parameter.VAR_POSITIONAL else parameter.default, how))
        return Binding(parameters, None if self.out_spec.is_leaf() else self.out_spec, self.limits)

    def _argument(self, name: str, value: Any) -> Argument:
        leaves, spec = pytree.tree_flatten(value)
        fixed = not any(leaf.is_input for leaf in leaves)
        spare = fixed and (self.assumed is None or name in self.assumed)
        return Argument(name, None if spec.is_leaf() else spec, tuple(leaves), spare)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf of the captured call: an input of the graph, or a literal that the graph was made for."""

    is_input: bool
    literal: Any


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of the captured call.

    Attributes:
        name: as the user knows it.
        spec: its structure, or None for a single leaf.
        leaves: its leaves, in order.
        is_spare: whether a call may leave it out, whatever its default.
    """

    name: str
    spec: pytree.TreeSpec | None
    leaves: tuple[Leaf, ...]
    is_spare: bool

    def constants(self) -> list[Any]:
        """Returns the constants that the graph was made for."""
        return [leaf.literal for leaf in self.leaves if not leaf.is_input]


class Binding:
    """Turns what ``forward`` was given into the inputs of the graph.

    Args:
        parameters: for every parameter of the signature its name, its default, and how it was captured: an argument,
            a dict of them for ``**kwargs``, or None if the captured call left it out.
        out_spec: the structure of the outputs, or None for a single leaf.
        limits: what the sizes of the inputs are held to.
    """

    def __init__(
        self,
        parameters: Sequence[tuple[str, Any, Argument | dict[str, Argument] | None]],
        out_spec: Any,
        limits: Limits | None = None,
    ) -> None:
        self._parameters = tuple(parameters)
        self._out_spec = out_spec
        self._limits = limits

    def inputs(self, given: Sequence[Any]) -> list[Tensor]:
        """Returns the graph's inputs, ``[...]`` each, for the values of all parameters in the order of the signature.

        Raises:
            CallError: if a tensor that the model was captured with is missing, or another argument is not what it was.
            ShapeError: if a tensor has a size that the graph does not stand for.
        """
        found: list[Tensor] = []
        for (name, default, how), value in zip(self._parameters, given, strict=True):
            if isinstance(how, dict):
                _take_keywords(how, value, found)
            elif how is None:
                if not same(value, default):
                    raise CallError(_left_out(name, value, default))
            elif not (how.is_spare and same(value, default)):
                _take(how, value, found)
        if self._limits is not None:
            self._limits.check(found)
        return found

    def constants(self) -> list[Any]:
        """Returns the values, other than tensors, that arguments may have."""
        found: list[Any] = []
        for _, default, how in self._parameters:
            arguments = how.values() if isinstance(how, dict) else () if how is None else (how,)
            found += [value for argument in arguments for value in argument.constants()]
            found += [default] if how is None or (isinstance(how, Argument) and how.is_spare) else []
        return found

    def outputs(self, flat: Sequence[Any]) -> Any:
        """Returns the flat outputs in the original's structure."""
        return flat[0] if self._out_spec is None else pytree.tree_unflatten(list(flat), self._out_spec)


def _take_keywords(captured: dict[str, Argument], given: dict[str, Any], found: list[Tensor]) -> None:
    for key in given:
        if key not in captured:
            raise CallError(_left_out(key, given[key], inspect.Parameter.empty))
    for key, argument in captured.items():
        if key in given:
            _take(argument, given[key], found)
        elif not argument.is_spare:
            what = ", ".join(map(repr, argument.constants())) or "a tensor like the example's"
            raise CallError(
                f"forward() was captured with {key!r} and needs it: pass {what}, or compile again with an example that leaves it out"
            )


def _take(argument: Argument, value: Any, found: list[Tensor]) -> None:
    """Appends the tensors of one argument, after a look at its literals."""
    leaves = [value]
    if argument.spec is not None:
        try:
            leaves = argument.spec.flatten_up_to(value)
        except ValueError as error:
            raise CallError(
                f"argument {argument.name!r} of forward() differs in structure from what was captured: {error}"
            ) from error
    for leaf, known in zip(leaves, argument.leaves, strict=True):
        if not known.is_input:
            if not same(leaf, known.literal):
                raise CallError(
                    f"argument {argument.name!r} of forward() was captured with {known.literal!r} and the graph is made "
                    f"for that value, got {_shown(leaf)} (given, or the default): pass {known.literal!r}, or compile again with an "
                    "example (forward_args=) of the other value"
                )
        elif isinstance(leaf, Tensor):
            found.append(leaf)
        else:
            raise CallError(
                f"argument {argument.name!r} of forward() was captured with a tensor and must be one, "
                f"got {_shown(leaf)}"
            )


def same(a: Any, b: Any) -> bool:
    """Returns whether two arguments are the same for a graph: ``1`` is 1.0 and not True, and NaN is itself.

    Tensors are the same only if they are one object, and so is what has no equality.
    """
    if a is b:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor) or not (type(a) is type(b) or (_is_number(a) and _is_number(b))):
        return False
    try:
        return bool(a == b) or bool(a != a and b != b)
    except (TypeError, ValueError):  # an array compares to an array
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _left_out(name: str, value: Any, default: Any) -> str:
    allowed = "leave it out" if default is inspect.Parameter.empty else f"leave it at {default!r}"
    if name in TARGET_KEYS:
        allowed += (
            f" ({name!r} of a dict batch are targets; a model that computes with them: forward_args=lambda b: ((), b))"
        )
    return (
        f"argument {name!r} of forward() was not given when the model was captured, got {_shown(value)}: "
        f"{allowed}, or compile again with an example that has it"
    )


def _shown(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
