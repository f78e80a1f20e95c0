"""The model's own `torch.autograd.Function`s: export runs their forward and forgets their backward.

One that takes a single tensor and works on each of its values apart, forward and backward, stands in the graph as one
opaque operator, whose gradient is the Function's own. Of any other, autograd's gradient is all that the graph has.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import Function
from torch.fx.experimental.proxy_tensor import make_fx

from fxprune.capturing.blame import Watch
from fxprune.capturing.checkpoints import plain_checkpoints

torch.library.define("fxprune::function", "(Tensor x, str key) -> Tensor")

_KEEPS_PLACES = frozenset(
    [
        "detach",
        "alias",
        "clone",
        "_to_copy",
        "to",
        "view",
        "view_as",
        "_unsafe_view",
        "reshape",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
    ]
)


@dataclass(frozen=True, slots=True)
class Applied:
    """A call of a Function.

    Attributes:
        function: Its class.
        args: What it was called with, None for its tensor.
        place: Which of the arguments is the tensor; None if there are several, or none.
        path: The module that called it.
        shape: Of the tensor.
        dtype: Of the tensor.
    """

    function: type[Function]
    args: tuple[Any, ...]
    place: int | None
    path: str
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32

    def __call__(self, x: Tensor) -> Any:
        """Return what the Function gives for a tensor, ``[...]``."""
        return self.function.apply(*(x if i == self.place else value for i, value in enumerate(self.args)))


#: The calls that opaque operators stand for, by their keys; no key is given twice.
_CALLS: dict[str, Applied] = {}
_NUMBERS = itertools.count()
_RUNNING: list[str] = []


def call_of(key: str) -> Applied:
    """Return the call that an opaque operator stands for."""
    return _CALLS[key]


def _apply(x: Tensor, key: str) -> Tensor:
    _RUNNING.append(key)
    try:
        result: Tensor = _CALLS[key](x)
        return result
    finally:
        _RUNNING.pop()


def _apply_below(x: Tensor, key: str) -> Tensor:
    with torch.no_grad():
        result = _apply(x, key)
        return result.clone() if result is x or result._is_view() else result


torch.library.impl("fxprune::function", "CompositeExplicitAutograd", _apply_below)
torch.library.impl("fxprune::function", "Autograd", _apply)

FUNCTION = torch.ops.fxprune.function.default


@dataclass(slots=True)
class Functions:
    """What is known of the Functions that a model calls.

    Attributes:
        seen: The calls, in their order.
        opaque: Those among them that stay one operator.
    """

    seen: list[Applied] = field(default_factory=list)
    opaque: list[Applied] = field(default_factory=list)

    @property
    def traced(self) -> list[Applied]:
        """The calls that have lost their backward."""
        return [call for call in self.seen if call not in self.opaque]

    def notes(self) -> list[str]:
        """Return a sentence for each Function that has lost its backward."""
        named = dict.fromkeys((call.function.__qualname__, call.path) for call in self.traced)
        return [
            f"module {path!r} calls {name}, a torch.autograd.Function with a backward of its own: the result keeps its "
            "forward, and has the gradient that autograd finds for that, which may be another one"
            for name, path in named
        ]

    def keep_opaque(self) -> bool:
        """Find out which calls can stay one operator; say whether there are any."""
        self.opaque = [call for call in dict.fromkeys(self.seen) if _works_on_each_value(call)]
        return bool(self.opaque)


@contextmanager
def observed(functions: Functions | None, watch: Watch) -> Iterator[None]:
    """Note every Function that runs meanwhile, and let an operator stand for those that stay opaque."""
    functions = Functions() if functions is None else functions
    classes = list(dict.fromkeys(_subclasses(Function)))
    own = {cls: vars(cls).get("forward") for cls in classes}
    functions.seen = []
    try:
        for cls in classes:
            setattr(cls, "forward", staticmethod(_observing(cls, cls.forward, functions, watch)))  # noqa: B010
        with plain_checkpoints():
            yield
    finally:
        for cls, forward in own.items():
            if forward is None:
                delattr(cls, "forward")
            else:
                setattr(cls, "forward", forward)  # noqa: B010


def _subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    """Yield all classes below one that are not torch's own."""
    subclasses: list[type[Any]] = cls.__subclasses__()
    for below in subclasses:
        if not below.__module__.startswith(("torch.", "functorch.")):
            yield below
        yield from _subclasses(below)


def _observing(cls: type[Any], forward: Callable[..., Any], functions: Functions, watch: Watch) -> Callable[..., Any]:
    """Return the forward of a class, so that it is noted, or an operator stands for it."""
    skip = int(cls.setup_context is Function.setup_context)  # the context comes first where there is one

    @functools.wraps(forward)
    def observing(*args: Any, **kwargs: Any) -> Any:
        if _RUNNING or kwargs:
            return forward(*args, **kwargs)
        call = _described(cls, args[skip:], watch)
        functions.seen.append(call)
        if call not in functions.opaque:
            return forward(*args)
        key = str(next(_NUMBERS))
        _CALLS[key] = call
        assert call.place is not None
        return FUNCTION(args[skip + call.place], key)

    return observing


def _described(cls: type[Any], args: Sequence[Any], watch: Watch) -> Applied:
    tensors = [i for i, value in enumerate(args) if isinstance(value, Tensor)]
    path = watch.running[-1] if watch.running else ""
    plain = all(value is None or isinstance(value, (bool, int, float, str, Tensor)) for value in args)
    if len(tensors) != 1 or not plain:
        return Applied(cls, (), None, path)
    x = args[tensors[0]]
    shape = tuple(size if isinstance(size, int) else 2 for size in x.shape)
    return Applied(cls, tuple(None if isinstance(v, Tensor) else v for v in args), tensors[0], path, shape, x.dtype)


def _works_on_each_value(call: Applied) -> bool:
    """Say whether a Function, and its backward, make each value of the one before at the same place."""
    if call.place is None or not call.dtype.is_floating_point:
        return False
    shape = torch.Size(call.shape)

    def joint(x: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x = x.detach().requires_grad_()
        y = call(x)
        return y, torch.autograd.grad(y, x, gradient.to(y.dtype))[0]

    try:
        with torch.enable_grad():
            traced = make_fx(joint, tracing_mode="fake")(*(torch.empty(shape, dtype=call.dtype) for _ in range(2)))
    except Exception:  # whatever a Function raises that is no such one
        return False
    outputs: Any = traced.graph.output_node().args[0]
    return all(isinstance(value, fx.Node) and value.meta["val"].shape == shape for value in outputs) and all(
        _keeps_places(node, shape) for node in traced.graph.nodes if node.op in ("call_function", "get_attr")
    )


def _keeps_places(node: fx.Node, shape: torch.Size) -> bool:
    value = node.meta.get("val")
    if node.op == "get_attr" or not isinstance(value, Tensor):
        return False
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    name = getattr(node.target, "_schema", None)
    keeps = pointwise or (name is not None and name.name.removeprefix("aten::") in _KEEPS_PLACES)
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return keeps and not random and value.shape in (shape, torch.Size())
