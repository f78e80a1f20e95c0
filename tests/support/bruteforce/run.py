"""A cut carried out, for `tests.support.bruteforce.claims`: the ops of a graph on what is left of their operands, one by one.

Each op runs twice: on the operands that are left, its sizes rewritten from theirs, and as it was, on full-size operands
with zeros where something is missing. Both must give the same, but for ops that take a statistic.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from fxprune.ops.registry import bind
from tests.support.bruteforce.claims import Claims, Network
from tests.support.bruteforce.cuts import Box, Variables
from tests.support.bruteforce.ops import Call

#: Ops whose result depends on how many coordinates there are, or on more than a zero can hide.
STATISTICS = {
    "layer_norm", "rms_norm", "group_norm", "_weight_norm", "softmax", "log_softmax", "mean", "var", "std", "var_mean", "amax",
    "amin", "max", "min", "prod", "logsumexp", "any", "all", "norm", "linalg_vector_norm", "cumsum", "lstm", "gru", "sort",
    "scaled_dot_product_attention", "argmax",
}  # fmt: skip


class BrokenError(Exception):
    """A cut that is called legal does not run, or computes something else."""


def carry_out_all(network: Network, said: Claims) -> int:
    """Runs what is left after each channel's cut and after a small cut of each coordinate; returns how many there were.

    Raises:
        BrokenError: one of them does not run, or computes something else.
    """
    demands, variable_of = network.demands, network.coordinates()
    cuts = {demands.cut([v], []) for v in variable_of.values() if not demands.stays(v)}
    for footprint in said.footprints.values():
        left = (v for c, v in variable_of.items() if c not in footprint)
        cuts.add(demands.cut([variable_of[c] for c in footprint], left))
    for cut in cuts - {None}:
        carry_out(network, cut or frozenset())
    return len(cuts - {None})


def carry_out(network: Network, gone: frozenset[int]) -> int:
    """Runs what a cut leaves, and returns how many ops gave the same numbers as before.

    Raises:
        BrokenError: an op fails, or gives another shape or other numbers.
    """
    left: dict[fx.Node, Any] = {}
    same = 0
    for call, box in network.calls:
        node = call.node
        operands = {s: _left(s, left, call, gone) for s in call.boxes}
        try:
            made = _again(call, box, operands, gone)
        except Exception as error:
            raise BrokenError(f"{node.format_node()}: {error}") from error
        full = {s: _whole(call.values[s], value, call.boxes[s], gone) for s, value in operands.items()}
        wanted = _part(_plain(call, full), box, gone)
        for out, want in zip(_list(made), _list(wanted), strict=True):
            if out.shape != want.shape:
                raise BrokenError(f"{node.format_node()}: {tuple(out.shape)} instead of {tuple(want.shape)}")
            if _name(node) not in STATISTICS:
                if not torch.allclose(out, want, rtol=1e-9, atol=1e-9, equal_nan=True):
                    raise BrokenError(f"{node.format_node()}: other numbers")
                same += 1
        left[node] = made
    return same


def _left(node: fx.Node, left: dict[fx.Node, Any], call: Call, gone: frozenset[int]) -> Any:
    """Returns what is left of an operand; of one that depends on no parameter, a part of it."""
    if node.target is operator.getitem and node.args[0] in left:
        return left[node.args[0]][node.args[1]]  # type: ignore[index]
    return left[node] if node in left else _part(call.values[node], call.boxes[node], gone)


def _name(node: fx.Node) -> str:
    return str(node.target._schema.name.removeprefix("aten::"))  # type: ignore[union-attr]


def _list(value: Any) -> list[Tensor]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _kept(line: Variables, gone: frozenset[int]) -> list[int]:
    """Returns the positions of a line that are left."""
    return [i for i, variable in enumerate(line) if int(variable) not in gone]


def _part(value: Any, box: Any, gone: frozenset[int]) -> Any:
    """Returns what is left of a full-size value."""
    if isinstance(value, (list, tuple)):
        return [_part(v, b, gone) for v, b in zip(value, box, strict=True)]
    for dim, line in enumerate(box):
        value = value.index_select(dim, torch.tensor(_kept(line, gone)))
    return value


def _whole(value: Any, part: Any, box: Any, gone: frozenset[int]) -> Any:
    """Returns a part at full size again, with zeros where something is missing."""
    if isinstance(value, (list, tuple)):
        return [_whole(*each, gone) for each in zip(value, part, box, strict=True)]
    made = torch.zeros(value.shape, dtype=part.dtype)
    made[torch.meshgrid(*(torch.tensor(_kept(line, gone)) for line in box), indexing="ij")] = part
    return made


def _plain(call: Call, operands: dict[fx.Node, Any]) -> Any:
    """Runs an op as it was on other operands."""
    args, kwargs = fx.node.map_arg(
        (call.node.args, call.node.kwargs), lambda n: operands[n] if n in operands else call.values[n]
    )
    return call.node.target(*args, **kwargs)  # type: ignore[operator]


def _again(call: Call, box: Any, operands: dict[fx.Node, Any], gone: frozenset[int]) -> Any:
    """Runs an op on what is left of its operands, with sizes to match."""
    target = call.node.target
    given = {
        key: fx.node.map_arg(value, lambda n: operands[n] if n in operands else call.values[n])
        for key, value in vars(bind(call.node)).items()
    }
    given |= _sizes(call, box, operands, gone, given)
    if _name(call.node) == "slice" and given["step"] != 1:
        line = _kept(box[given["dim"]], gone)
        source = _kept(_first(call)[given["dim"]], gone)
        start = given["start"] or 0
        index = torch.tensor([source.index(start + given["step"] * i) for i in line])
        return given["self"].index_select(given["dim"], index)
    named = {a.name: given[a.name] for a in target._schema.arguments}  # type: ignore[union-attr]
    return target(**named)  # type: ignore[operator]


def _first(call: Call) -> Box:
    box = next(iter(call.boxes.values()))
    return () if isinstance(box, list) else box


def _sizes(
    call: Call, box: Any, operands: dict[fx.Node, Any], gone: frozenset[int], given: dict[str, Any]
) -> dict[str, Any]:
    """Returns the arguments that change with the sizes."""
    name, source = _name(call.node), _first(call)
    now = [] if isinstance(box, list) else [len(_kept(line, gone)) for line in box]
    old = [len(_kept(line, gone)) for line in source]

    def before(line: Variables, end: int) -> int:
        return len(_kept(line[:end], gone))

    def alive(line: Variables, groups: int) -> int:
        return sum(bool(_kept(part, gone)) for part in np.split(np.asarray(line), groups))

    if name in ("view", "reshape", "_unsafe_view", "expand", "new_zeros", "new_ones"):
        return {key: now for key in ("size", "shape") if key in given}
    if name == "split_with_sizes":
        return {"split_sizes": [len(_kept(part[given["dim"]], gone)) for part in box]}
    if name == "slice" and given["step"] == 1:
        start, end, _ = slice(given["start"], given["end"]).indices(len(source[given["dim"]]))
        return {"start": before(source[given["dim"]], start), "end": before(source[given["dim"]], end)}
    if name == "select":
        line = source[given["dim"]]
        return {"index": before(line, given["index"] % len(line))}
    if name.startswith("conv"):
        across = now if "transpose" in name else old
        return {"groups": across[1] // given["weight"].shape[1]}
    if name in ("group_norm", "channel_shuffle"):
        key = "num_groups" if name == "group_norm" else "groups"
        return {key: alive(source[1], given[key])}
    if name in ("layer_norm", "rms_norm"):
        return {"normalized_shape": old[-len(given["normalized_shape"]) :]}
    if name in ("pad", "constant_pad_nd"):
        pads = []
        for i, (first, last) in enumerate(zip(given["pad"][::2], given["pad"][1::2], strict=True)):
            line = box[len(box) - 1 - i]
            pads += [before(line, first), len(_kept(line[len(line) - last :], gone))]
        return {"pad": pads}
    if name == "repeat":
        old = [1] * (len(now) - len(old)) + old
        return {"repeats": [a // b for a, b in zip(now, old, strict=True)]}
    if name == "repeat_interleave":
        return {"repeats": now[given["dim"]] // old[given["dim"]]}
    if name == "roll" and given["dims"]:
        return {"shifts": [before(box[d], s) for d, s in zip(given["dims"], given["shifts"], strict=True)]}
    if name == "index_select":
        line = _kept(source[given["dim"]], gone)
        chosen = [int(given["index"][i]) for i in _kept(box[given["dim"]], gone)]
        return {"index": torch.tensor([line.index(i) for i in chosen])}
    if name == "index":
        return {"indices": _renumbered(given["indices"], source, box, gone)}
    return {}


def _renumbered(indices: Sequence[Tensor | None], source: Box, box: Box, gone: frozenset[int]) -> list[Tensor | None]:
    """Returns indices into what is left of one indexed dimension."""
    (dim,) = [d for d, index in enumerate(indices) if index is not None]
    index = indices[dim]
    assert index is not None
    line = torch.tensor([0 if int(v) in gone else 1 for v in source[dim]]).cumsum(0) - 1
    return [line[_part(index, box[dim : dim + index.dim()], gone)] if d == dim else None for d in range(len(indices))]
