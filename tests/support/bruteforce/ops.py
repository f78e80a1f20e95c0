"""What each op demands of a cut, for `tests.support.bruteforce.claims`: told by its shapes, or tried on the numbers of the elements."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.ops.registry import bind
from tests.support.bruteforce.cuts import STAYS, Box, Demands, Variables


class UnknownOpError(Exception):
    """An op that this opinion is not about."""


@dataclass(frozen=True, slots=True)
class Call:
    """One op at work: its node, the values of a run, and the boxes of what it reads."""

    node: fx.Node
    demands: Demands
    values: Mapping[fx.Node, Any]
    boxes: Mapping[fx.Node, Any]
    given: set[fx.Node]

    @property
    def arguments(self) -> SimpleNamespace:
        """The arguments by schema name; sizes are numbers, tensors are nodes."""
        bound = vars(bind(self.node))
        return SimpleNamespace(
            **{
                key: fx.node.map_arg(value, lambda n: n if n in self.boxes else self.values[n])
                for key, value in bound.items()
            }
        )

    @property
    def results(self) -> list[Tensor]:
        """What the op gives on the example."""
        value = self.values[self.node]
        return list(value) if isinstance(value, (list, tuple)) else [value]

    def operands(self) -> list[fx.Node | None]:
        """Returns the tensors that the schema names one by one, None where one is left out."""
        found = vars(self.arguments)
        return [
            found[a.name] if isinstance(found[a.name], fx.Node) else None
            for a in self.node.target._schema.arguments  # type: ignore[union-attr]
            if "Tensor" in str(a.type)
        ]

    def answer(self, boxes: list[Box]) -> Any:
        """Returns the boxes as the op returns its results."""
        return boxes if isinstance(self.values[self.node], (list, tuple)) else boxes[0]


def demand(call: Call) -> Any:
    """Returns the box of an op's result, a list for several, and demands what the op demands.

    Raises:
        UnknownOpError: the op is in no table.
    """
    target = call.node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        raise UnknownOpError(str(target))
    name = target._schema.name.removeprefix("aten::")
    if name in MOVES:
        return call.answer(_move(call))
    if name in PATTERNS:
        return call.answer(_match(call, PATTERNS[name]))
    if name in SPECIAL:
        return call.answer(SPECIAL[name](call))
    if torch.Tag.pointwise in target.tags:
        return call.answer(_elementwise(call))
    raise UnknownOpError(name)


# -- what is only moved about: tried on the numbers of the elements --------------------------------------------------

MOVES = {
    "view",
    "reshape",
    "_unsafe_view",
    "permute",
    "transpose",
    "t",
    "numpy_T",
    "flatten",
    "unflatten",
    "squeeze",
    "unsqueeze",
    "movedim",
    "slice",
    "select",
    "split",
    "split_with_sizes",
    "chunk",
    "tensor_split",
    "unbind",
    "cat",
    "concat",
    "stack",
    "pad",
    "constant_pad_nd",
    "roll",
    "flip",
    "narrow",
    "view_as",
    "reshape_as",
}


def _move(call: Call) -> list[Box]:
    """Runs the op on element numbers: whoever holds a number goes exactly when its source does."""
    numbers: dict[fx.Node, Tensor] = {}
    start = 1  # number 0 is a filling
    for node in call.boxes:
        shape = call.values[node].shape
        numbers[node] = torch.arange(start, start + math.prod(shape), dtype=torch.float64).reshape(shape)
        start += math.prod(shape)
    args, kwargs = fx.node.map_arg(
        (call.node.args, call.node.kwargs), lambda n: numbers[n] if n in numbers else call.values[n]
    )
    moved = call.node.target(*args, **kwargs)  # type: ignore[operator]
    made = []
    for part in moved if isinstance(moved, (list, tuple)) else [moved]:
        box = tuple(map(call.demands.new, part.shape))
        held, first = part.reshape(-1).long().numpy(), 1
        for node, number in numbers.items():
            here = (held >= first) & (held < first + number.numel())
            if here.any():
                _go_together(call.demands, box, np.flatnonzero(here), call.boxes[node], held[here] - first)
            first += number.numel()
        made.append(box)
    return made


def _go_together(demands: Demands, a: Box, at: Variables, b: Box, source: Variables) -> None:
    """Demands that element ``at[i]`` of one box goes exactly when element ``source[i]`` of the other does."""
    one, other = _positions(a, at), _positions(b, source)
    _keep_what_needs_all(demands, a, one, b, other)
    _keep_what_needs_all(demands, b, other, a, one)
    names = [box[d][where] for box, places in ((a, one), (b, other)) for d, where in enumerate(places)]
    for row in np.unique(np.stack(names, axis=1), axis=0).tolist():
        demands.either(row[: len(a)], row[len(a) :])


def _positions(box: Box, elements: Variables) -> list[Variables]:
    """Returns the position of each element in each dimension."""
    return list(np.unravel_index(elements, tuple(map(len, box)))) if box else []


def _keep_what_needs_all(demands: Demands, box: Box, here: list[Variables], other: Box, there: list[Variables]) -> None:
    """Keeps the coordinates that could only go if nothing were left of the other box.

    Where what goes with a coordinate is a box in there, one dimension has to cover it: one of which it takes some
    coordinates, but not all.
    """
    for variables, places in zip(box, here, strict=True):
        for position, variable in enumerate(variables.tolist()):
            mine = places == position
            if variable == STAYS or not mine.any():
                continue
            spans = [np.unique(where[mine]) for where in there]
            elements = len(np.unique(np.stack([where[mine] for where in there]), axis=1).T) if there else 1
            covered = any(
                len(span) < len(np.unique(where)) and not any(demands.stays(v) for v in line[span].tolist())
                for span, where, line in zip(spans, there, other, strict=True)
            )
            if elements == math.prod(map(len, spans)) and not covered:
                demands.keep([variable])


# -- what is computed: dimensions with one name are cut alike --------------------------------------------------------

#: What each tensor operand's dimensions are, in the order of the schema, and those of the result. ``(g i)`` is a
#: dimension of two, outer and inner; ``...`` stands for any number of dimensions. Capital names and ``*``, any number of
#: dimensions, stay.
PATTERNS = {
    "linear": "... i, o i, o -> ... o",
    "mm": "m k, k n -> m n",
    "bmm": "b m k, b k n -> b m n",
    "mv": "m k, k -> m",
    "dot": "i, i ->",
    "outer": "i, j -> i j",
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), "b (g i) *, (g o) i *, (g o) -> b (g o) *"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d"), "b (g i) *, (g i) o *, (g o) -> b (g o) *"),
    **dict.fromkeys(("batch_norm", "instance_norm"), "b c ..., c, c, c, c -> b c ..."),
    "group_norm": "b (g c) ..., (g c), (g c) -> b (g c) ...",
    **dict.fromkeys(("layer_norm", "rms_norm", "_weight_norm"), "..., ..., ... -> ..."),
    "prelu": "b c ..., c -> b c ...",
    "embedding": "* c, ... -> ... c",
    "channel_shuffle": "b (g c) * -> b (c g) *",
    "pixel_shuffle": "b (c R S) * -> b c *",
    "pixel_unshuffle": "b c * -> b (c R S) *",
    "im2col": "b c * -> b (c K) *",
    **dict.fromkeys(
        (
            "max_pool1d",
            "max_pool2d",
            "avg_pool1d",
            "avg_pool2d",
            "adaptive_avg_pool1d",
            "adaptive_avg_pool2d",
            "adaptive_max_pool2d",
            "upsample_nearest2d",
            "upsample_bilinear2d",
        ),
        "b c * -> b c *",
    ),
    **dict.fromkeys(
        (
            "softmax",
            "log_softmax",
            "cumsum",
            "clone",
            "contiguous",
            "to",
            "_to_copy",
            "detach",
            "alias",
            "dropout",
            "feature_dropout",
            "tril",
            "triu",
        ),
        "... -> ...",
    ),
}
#: The arguments that tell sizes.
_SIZES = {
    "g": ("groups", "num_groups"),
    "R": ("upscale_factor", "downscale_factor"),
    "S": ("upscale_factor", "downscale_factor"),
}

Pattern = list[tuple[str, ...]]


def _match(call: Call, text: str, sizes: Mapping[str, int] | None = None) -> list[Box]:
    found = vars(call.arguments)
    known = {letter: found[key] for letter, keys in _SIZES.items() for key in keys if key in found} | dict(sizes or {})
    left, _, right = text.partition("->")
    operands = [
        (node, pattern) for node, pattern in zip(call.operands(), left.split(","), strict=False) if node is not None
    ]
    return _tie(call, [node for node, _ in operands], [pattern for _, pattern in operands], right, known)


def _tie(
    call: Call,
    nodes: Sequence[fx.Node],
    patterns: Sequence[str],
    result: str,
    sizes: Mapping[str, int],
    results: Sequence[Tensor] | None = None,
) -> list[Box]:
    """Cuts dimensions of one name alike, and returns the boxes of the results."""
    tie = _Names(call.demands, dict(sizes))
    shapes = [tuple(call.values[node].shape) for node in nodes]
    pairs = [
        (box, names)
        for node, shape, text in zip(nodes, shapes, patterns, strict=True)
        for box, names in zip(call.boxes[node], _dimensions(text, len(shape)), strict=True)
    ]
    for box, names in sorted(pairs, key=lambda pair: len(pair[1])):  # single names first: they tell the sizes
        tie.operand(box, names)
    return [
        tuple(tie.result(size, names) for size, names in zip(out.shape, _dimensions(result, out.dim()), strict=True))
        for out in (call.results if results is None else results)
    ]


def _dimensions(text: str, rank: int) -> Pattern:
    """Returns the names of each dimension; those of ``...`` are counted from its right end."""
    words = [tuple(word.strip("()").split()) for word in re.findall(r"\([^)]*\)|\S+", text)]
    count = rank - len(words) + 1
    found: Pattern = []
    for word in words:
        if word == ("...",):
            found += [(f"...{i}",) for i in range(count, 0, -1)]
        elif word == ("*",):
            found += [("*",)] * count
        else:
            found.append(word)
    return found


@dataclass(frozen=True, slots=True)
class _Names:
    """The variables of each name in one op's pattern."""

    demands: Demands
    sizes: dict[str, int]
    variables: dict[str, Variables] = field(default_factory=dict)

    def operand(self, box: Variables, names: tuple[str, ...]) -> None:
        """Ties a dimension of an operand to its names; one of size one is broadcast, and stays."""
        if names == ("*",):
            self.demands.keep(box)
        elif len(names) == 1:
            known = self.variables.get(names[0])
            if known is None or len(known) == 1:
                self.variables[names[0]] = box
                self.sizes[names[0]] = len(box)
            elif len(box) > 1:
                self.demands.equal(box, known)
        else:
            self._product(box, names)

    def result(self, size: int, names: tuple[str, ...]) -> Variables:
        """Returns the variables of a dimension of the result; one with a name of its own may lose anything."""
        if names == ("*",):
            return np.zeros(size, np.int64)
        if len(names) == 1:
            known = self.variables.get(names[0])
            return known if known is not None and len(known) == size else self.demands.new(size)
        box = self.demands.new(size)
        self._product(box, names)
        return box

    def _product(self, box: Variables, names: tuple[str, ...]) -> None:
        for name in names:
            others = math.prod(self.sizes.get(other, 1) for other in names if other != name)
            size = self.sizes.setdefault(name, len(box) // others)
            if name not in self.variables:
                self.variables[name] = np.zeros(size, np.int64) if name.isupper() else self.demands.new(size)
        positions = itertools.product(*(self.variables[name] for name in names))
        for variable, parts in zip(box.tolist(), positions, strict=True):
            self.demands.either([variable], map(int, parts))


def _create(call: Call) -> list[Box]:
    """A constant has the sizes that it is asked for."""
    return [tuple(map(call.demands.new, out.shape)) for out in call.results]


def _elementwise(call: Call) -> list[Box]:
    """Dimensions are aligned at the right."""
    nodes = list(call.boxes)
    return _tie(call, nodes, ["..."] * len(nodes), "...", {})


def _each(call: Call) -> list[str]:
    return [f"d{i}" for i in range(call.values[call.operands()[0]].dim())]  # type: ignore[index]


def _reduce(call: Call) -> list[Box]:
    """A statistic of what is there; the other dimensions pass."""
    names, dim = _each(call), getattr(call.arguments, "dim", None)
    dims = [dim] if isinstance(dim, int) else dim or range(len(names))
    over = {d % len(names) for d in dims}
    kept = [name for i, name in enumerate(names) if i not in over or getattr(call.arguments, "keepdim", False)]
    return _match(call, f"{' '.join(names)} -> {' '.join(kept)}")


def _along_stays(call: Call) -> list[Box]:
    """The positions along one dimension mean something: all of them stay."""
    names, dim = _each(call), call.arguments.dim
    names[dim] = "*"
    out = names if call.results[0].dim() == len(names) else [n for n in names if n != "*"]
    return _match(call, f"{' '.join(names)} -> {' '.join(out)}")


def _expand(call: Call) -> list[Box]:
    """A dimension that is made by repeating has a size of its own."""
    rank = call.values[call.node.args[0]].dim()  # type: ignore[index]
    out = call.results[0].dim()
    names = [f"d{i}" for i in range(out)]
    return _match(call, f"{' '.join(names[out - rank :])} -> {' '.join(names)}")


def _repeat_interleave(call: Call) -> list[Box]:
    names, dim = _each(call), call.arguments.dim
    made = [f"({name} r)" if i == dim % len(names) else name for i, name in enumerate(names)]
    return _match(call, f"{' '.join(names)} -> {' '.join(made)}", {"r": call.arguments.repeats})


def _repeat(call: Call) -> list[Box]:
    names, times = _each(call), list(call.arguments.repeats)
    names = [f"n{i}" for i in range(len(times) - len(names))] + names
    made = [f"(r{i} {name})" if count > 1 else name for i, (name, count) in enumerate(zip(names, times, strict=True))]
    sizes = {f"r{i}": count for i, count in enumerate(times)}
    fresh = {name: 1 for name in names if name.startswith("n")}
    own = [name for name in names if not name.startswith("n")]
    return _match(call, f"{' '.join(own)} -> {' '.join(made)}", sizes | fresh)


def _matmul(call: Call) -> list[Box]:
    left, right = (call.values[node].dim() for node in call.operands()[:2])  # type: ignore[index]
    first = "k" if left == 1 else "... m k"
    second = "k" if right == 1 else "... k n"
    out = f"{'...' if max(left, right) > 2 else ''} {'m' if left > 1 else ''} {'n' if right > 1 else ''}"
    return _match(call, f"{first}, {second} -> {out}")


def _attention(call: Call) -> list[Box]:
    """Scores over what is there; a key and its value are one. Fewer heads of keys are repeated, each in a row."""
    query, key = (call.values[node] for node in call.operands()[:2])  # type: ignore[index]
    if getattr(call.arguments, "enable_gqa", False) and query.shape[1] != key.shape[1]:
        return _match(call, "b (k r) l e, b k m e, b k m v, * -> b (k r) l v", {"r": query.shape[1] // key.shape[1]})
    return _match(call, "... l e, ... m e, ... m v, ... l m -> ... l v")


def _einsum(call: Call) -> list[Box]:
    left, _, right = call.arguments.equation.replace(" ", "").partition("->")
    nodes = call.arguments.tensors
    return _tie(call, nodes, [" ".join(part) for part in left.split(",")], " ".join(right), {})


def _glu(call: Call) -> list[Box]:
    """Both halves go alike."""
    names, dim = _each(call), call.arguments.dim
    halves = list(names)
    halves[dim] = f"(TWO {names[dim]})"
    return _match(call, f"{' '.join(halves)} -> {' '.join(names)}", {"TWO": 2})


def _index(call: Call) -> list[Box]:
    """What is indexed by what depends on nothing is moved; by anything else, it stays."""
    if not any(node in call.given for node in call.node.all_input_nodes[1:]):
        table = call.node.all_input_nodes[0]
        only = Call(call.node, call.demands, call.values, {table: call.boxes[table]}, call.given)
        return _move(only)
    source, indices = call.arguments.self, list(call.arguments.indices)
    dims = [d for d, index in enumerate(indices) if index is not None]
    if dims != list(range(dims[0], dims[-1] + 1)):
        raise UnknownOpError("index: apart")
    names = _each(call)
    count = call.results[0].dim() - len(names) + len(dims)
    left = ["*" if d in dims else name for d, name in enumerate(names)]
    right = [*names[: dims[0]], *(["*"] * count), *names[dims[-1] + 1 :]]
    return _literal(call, source, left, right)


def _literal(call: Call, node: fx.Node, left: list[str], right: list[str]) -> list[Box]:
    """As `_tie`, of one operand, where every word is one dimension."""
    tie = _Names(call.demands, {})
    for box, name in zip(call.boxes[node], left, strict=True):
        tie.operand(box, (name,))
    return [
        tuple(tie.result(size, (name,)) for size, name in zip(out.shape, right, strict=True)) for out in call.results
    ]


def _index_select(call: Call) -> list[Box]:
    if call.arguments.index in call.given:
        return _along_stays(call)
    table = call.arguments.self
    return _move(Call(call.node, call.demands, call.values, {table: call.boxes[table]}, call.given))


def _addmm(call: Call) -> list[Box]:
    added, left = (call.values[node].dim() for node in call.operands()[:2])  # type: ignore[index]
    names = ["b", "m", "n"][-left:]
    batch = "b " if left == 3 else ""
    return _match(call, f"{' '.join(names[left - added :])}, {batch}m k, {batch}k n -> {' '.join(names)}")


def _recurrent(call: Call) -> list[Box]:
    """Rows of the weights are (gates x hidden), a layer reads (directions x hidden) of the one before."""
    a = call.arguments
    states = a.hx if isinstance(a.hx, (list, tuple)) else [a.hx]
    hidden, directions = call.values[states[0]].shape[2], 2 if a.bidirectional else 1
    each = 4 if a.has_biases else 2
    if len(a.params) != each * directions * a.num_layers:
        raise UnknownOpError("a recurrent layer with a projection")
    lead = "b t" if a.batch_first else "t b"
    names = [f"{lead} i", *["S b h"] * len(states)]
    for number in range(len(a.params)):
        inner = "i" if number < each * directions else "(D h)"
        names.append((f"(G h) {inner}", "(G h) h", "(G h)", "(G h)")[number % each])
    sizes = {"G": call.values[a.params[0]].shape[0] // hidden, "D": directions, "h": hidden}
    nodes = [a.input, *states, *a.params]
    return [
        *_tie(call, nodes, names, f"{lead} (D h)", sizes, call.results[:1]),
        *_tie(call, nodes, names, "S b h", sizes, call.results[1:]),
    ]


SPECIAL: dict[str, Callable[[Call], list[Box]]] = {
    **dict.fromkeys(
        (
            "mean",
            "sum",
            "amax",
            "amin",
            "prod",
            "var",
            "std",
            "var_mean",
            "logsumexp",
            "any",
            "all",
            "norm",
            "linalg_vector_norm",
        ),
        _reduce,
    ),
    **dict.fromkeys(("sort", "topk", "argsort", "argmax", "argmin", "max", "min"), _along_stays),
    **dict.fromkeys(("addmm", "baddbmm"), _addmm),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"), _create),
    "expand": _expand,
    "expand_as": _expand,
    "repeat": _repeat,
    "repeat_interleave": _repeat_interleave,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    "glu": _glu,
    "index": _index,
    "index_select": _index_select,
}
