"""What a node of a stored graph may call: operators of `fxprune.ops.checked` by name, and a short list of functions."""

from __future__ import annotations

import builtins
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload, OpOverloadPacket

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune.capturing.extremes import FLOATING, extreme, is_extreme
from fxprune.capturing.regions import enter_autocast, exit_autocast, is_autocast
from fxprune.ops.checked import NAMESPACES, is_admitted
from fxprune.storage.graph.values import Unstorable

_OPERATOR = re.compile(rf"({'|'.join(NAMESPACES)})::([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)

_NAMES = {
    operator: "add and_ eq floordiv ge getitem gt invert le lshift lt mod mul ne neg not_ or_ pos pow rshift sub truediv xor",
    math: "ceil floor sqrt trunc",
    builtins: "abs getattr max min round",
    torch: "sym_float sym_int sym_ite sym_max sym_min sym_not sym_sum",
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module, names in _NAMES.items()
    for name in names.split()
    if hasattr(module, name)
}
_FUNCTIONS |= {
    "fxprune.enter_autocast": enter_autocast,
    "fxprune.exit_autocast": exit_autocast,
    "fxprune.extreme": extreme,
}
_FUNCTION_NAMES = {id(function): name for name, function in _FUNCTIONS.items()}

#: What may be asked of a tensor by ``getattr``.
_ATTRIBUTES = ("device", "dtype")


def name_of(target: Any) -> str:
    """Returns the name of what a node calls: ``aten::linear.default``, ``operator.mul``.

    Raises:
        Unstorable: a file may not name it.
    """
    if isinstance(target, OpOverload):
        name = f"{target._schema.name}.{target._overloadname}"
        if is_admitted(target):
            return name
    elif id(target) in _FUNCTION_NAMES:
        return _FUNCTION_NAMES[id(target)]
    raise Unstorable(f"the graph calls {target}, which a file may not name")


def find(name: str, where: str) -> Callable[..., Any]:
    """Returns what a node calls, by its name; nothing is imported.

    Raises:
        PlanError: a file may not name it, or it is an operator that this process does not have.
    """
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    match = _OPERATOR.fullmatch(name)
    if match is None:
        raise PlanError(f"{where}: expected an operator such as aten::linear.default, got {name!r:.80}")
    namespace, operator_name, overload = match.groups()
    packet = getattr(getattr(torch.ops, namespace), operator_name, None)
    if not isinstance(packet, OpOverloadPacket) or overload not in packet.overloads():
        home = "this torch has no such operator" if namespace == "aten" else f"import {namespace} first"
        raise PlanError(f"{where}: {name!r:.80} is not registered: {home}")
    found = getattr(packet, overload)
    if not isinstance(found, OpOverload) or not is_admitted(found):
        raise PlanError(
            f"{where}: {name!r:.80} may not be called from a file: give an instance of the original architecture, "
            "fxprune.load(directory, model)"
        )
    return found


def check_call(target: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], where: str) -> None:
    """Makes sure that the arguments can be written as a call: names that the operator has, and no odd ``getattr``.

    Raises:
        PlanError: they cannot.
    """
    if isinstance(target, OpOverload):
        known = [argument.name for argument in target._schema.arguments]
        if len(args) > len(known) or not kwargs.keys() <= set(known):
            raise PlanError(f"{where}: the arguments are not those of {target._schema.name}")
    elif kwargs or not args:
        raise PlanError(f"{where}: expected arguments without names")
    elif target is enter_autocast and not is_autocast(args):
        raise untrusted.refusal(args, where, "a device type, a floating dtype, and two flags")
    elif target is exit_autocast and not (
        len(args) == 1 and isinstance(args[0], fx.Node) and args[0].target is enter_autocast
    ):
        raise untrusted.refusal(args, where, "an autocast that was entered")
    elif target is extreme and not (
        len(args) == 2 and isinstance(args[0], fx.Node) and any(is_extreme(args[1], dtype) for dtype in FLOATING)
    ):
        raise untrusted.refusal(args, where, "a tensor and the least or largest number of a dtype")
    elif target is getattr and (len(args) != 2 or not isinstance(args[0], fx.Node) or args[1] not in _ATTRIBUTES):
        raise untrusted.refusal(args[1:], where, f"one of {', '.join(_ATTRIBUTES)} of a tensor")
