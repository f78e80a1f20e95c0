"""The declaration of an op: every fact that a pass may need of it, in one place, checked when it is registered."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import fx

from fxprune._base.errors import RuleError
from fxprune.ops.modules import Layer, Noise

if TYPE_CHECKING:
    from fxprune.algebra.axes import Axes, Axis
    from fxprune.ops.constants import Constants
    from fxprune.ops.slicer import Edit, Slicer
    from fxprune.ops.tracer import Tracer
    from fxprune.ops.twin import Twin

#: From the axes of the operands to those of the result; a list of them for several; None where the rule does not apply.
Couple: TypeAlias = "Callable[[Tracer, fx.Node, SimpleNamespace], Axes | list[Axes | None] | list[Axes] | None]"

#: The arguments that change once channels are gone.
Slice: TypeAlias = "Callable[[Slicer, fx.Node, SimpleNamespace], Edit]"

#: The op on full-size values, as if the removed channels were not there.
TwinRule: TypeAlias = "Callable[[Twin, fx.Node, SimpleNamespace], Any]"

#: What the op's result over what stays is multiplied by.
Factor: TypeAlias = "Callable[[Slicer, fx.Node, SimpleNamespace], float]"

#: The parameters that take a factor instead, each with its own.
Gains: TypeAlias = "Callable[[Slicer, fx.Node, SimpleNamespace], Mapping[fx.Node, float]]"

#: Where the first operand has zeros in the place of what goes: (dim, axis) pairs.
Zeros: TypeAlias = "Callable[[Slicer, fx.Node, SimpleNamespace], Sequence[tuple[int, Axis]]]"

#: Where the channels of a value that is one constant for each channel lie in the result; None if it is none any more.
Where: TypeAlias = "Callable[[Constants, fx.Node, SimpleNamespace], int | None]"

#: What a contraction gives that has nothing left to sum: where its channels lie, and the operand that is added, if any.
Empty: TypeAlias = "Callable[[Constants, fx.Node, SimpleNamespace], tuple[int, fx.Node | None] | None]"

#: What a layer or op is to criteria and recovery, which ask for no op by its name.
Kind = Literal[
    "linear",
    "conv",
    "conv_transpose",
    "embedding",
    "attention",
    "batch_norm",
    "norm",
    "addition",
    "elementwise",
    "pool",
    "reshape",
    "recurrent",
    "quantise",
    "softmax",
]


@dataclass(frozen=True, slots=True)
class Rule:
    """What is known about one op; all functions are pure and get ``(context, node, arguments by schema name)``.

    Attributes:
        couple: relates the axes of the operands and returns those of the result.
        slice: returns the arguments that change when channels go.
        twin: runs the op on full-size values as if the removed channels were not there.
        factor: of a statistic that counts all coordinates, as a mean does: what the result over those that stay is
            multiplied by; ``twin`` counts it in.
        gains: likewise, but the factor goes into parameters that the op alone reads.
        zeros: of a statistic that counts all coordinates, and that no factor makes right: along which (dim, axis) pairs the
            first operand has zeros in the place of what goes; ``twin`` puts them there as well.
        literals: the arguments that hold sizes, counts or places along axes that may shrink; ``slice`` edits no others.
        statistic: ``couple`` may call ``t.statistic``: the op looks at an axis that may shrink as a whole.
        positions: the operands that may hold positions of an axis that shrinks.
        carries: the result is made of the first operand's values, as they are; positions among them stay positions.
        moves: of a first operand that is one constant for each channel, the result is the same constants, moved about,
            repeated or pooled: where the channels lie then.
        constant: likewise, but the constants change: the op, or its twin, is run on them.
        empty: what a contraction gives that has nothing left to sum.
        kind: what it is to criteria and recovery.
        module: the ``torch.nn`` module that a call of it stands for.
        in_place: the op with an underscore does the same in the first operand's memory.
        view: the result may share memory with the first operand though its schema does not say so.
        scales: the result is the product of its operands: where one is a parameter, the other is scaled by it.
        powers: to which power the result scales with each operand, by argument; or the name of the argument that says it.
        idle: it takes no time in an evaluation, or as much as a copy that can be avoided.
        conducts: in an evaluation the result is the first operand, unchanged: what is added to one is added to the other.
    """

    couple: Couple
    _: KW_ONLY
    slice: Slice | None = None
    twin: TwinRule | None = None
    factor: Factor | None = None
    gains: Gains | None = None
    zeros: Zeros | None = None
    literals: tuple[str, ...] = ()
    statistic: bool = False
    positions: tuple[str, ...] = ()
    carries: bool = False
    moves: Where | None = None
    constant: Where | None = None
    empty: Empty | None = None
    kind: Kind | None = None
    module: Layer | Noise | None = None
    in_place: bool = False
    view: bool = False
    scales: bool = False
    powers: Mapping[str, float | str] = field(default_factory=dict)
    idle: bool = False
    conducts: bool = False


def twice(couple: Couple) -> Couple:
    """Returns the rule of an op with two results that have the same axes."""

    def rule(t: Tracer, node: fx.Node, a: SimpleNamespace) -> list[Any]:
        axes = couple(t, node, a)
        return [axes, axes]

    return rule


def check_rule(name: str, rule: Any) -> None:
    """Makes sure that a declaration is complete in itself.

    Args:
        name: the op's, for the message.
        rule: what is to be registered.

    Raises:
        RuleError: it is no `Rule`, a function takes other arguments, or one fact lacks another that goes with it.
    """
    if not isinstance(rule, Rule):
        raise RuleError(f"{name}: expected a fxprune.Rule, got {type(rule).__name__}: write Rule(couple, ...)")
    for part in ("couple", "slice", "twin", "factor", "gains", "zeros", "moves", "constant", "empty"):
        function = getattr(rule, part)
        if function is not None or part == "couple":
            _check_signature(f"{name}: {part}", function)
    if rule.statistic and rule.twin is None:
        raise RuleError(f"{name}: statistic=True needs twin=, which runs the op over what stays of the axis")
    if (rule.factor or rule.gains or rule.zeros) and not rule.statistic:
        raise RuleError(f"{name}: factor=, gains= and zeros= need statistic=True: they say what it counts")
    if bool(rule.literals) != (rule.slice is not None):
        lacks = "slice=, which edits them" if rule.literals else "literals=, the names of the arguments that it edits"
        raise RuleError(f"{name}: {'literals' if rule.literals else 'slice'}= needs {lacks}")
    if rule.moves is not None and rule.constant is not None:
        raise RuleError(f"{name}: expected moves= or constant=, got both: are the constants the same or not?")


def _check_signature(what: str, function: Any) -> None:
    if not callable(function):
        raise RuleError(f"{what}: expected a function of (context, node, arguments), got {function!r:.80}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in callables do not tell
        return
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        raise RuleError(f"{what}: expected a function of (context, node, arguments), got {signature}") from error


def check_schema(name: str, target: Any, rule: Rule) -> None:
    """Makes sure that a declaration speaks of arguments that the op has.

    Raises:
        RuleError: the op has no argument of that name, or no form that works in place.
    """
    known = [argument.name for argument in target._schema.arguments]
    for part in ("literals", "positions", "powers"):
        if unknown := [argument for argument in getattr(rule, part) if argument not in known]:
            raise RuleError(f"{name}: {part}: expected arguments among {', '.join(known)}, got {unknown[0]!r}")
    if rule.in_place and in_place_form(target) is None:
        raise RuleError(f"{name}: in_place=True, but there is no {target._schema.name}_")


@functools.lru_cache(maxsize=256)
def in_place_form(target: Any) -> Any:
    """Returns the op that works in place, None if there is none of that name."""
    namespace, _, packet = target._schema.name.partition("::")
    found = getattr(getattr(torch.ops, namespace), f"{packet}_", None)
    return getattr(found, target._overloadname, None)
