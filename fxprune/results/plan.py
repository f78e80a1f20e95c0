"""The plan: which coordinates of which tensors stay, as plain data with a stable JSON form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune._base.modes import untouched
from fxprune._base.moved import filled_in
from fxprune._base.shown import html_summary, text_summary
from fxprune.data.example import ExampleSpec

SCHEMA = 1

Kept = Mapping[str, Mapping[int, tuple[int, ...]]]
Shape = tuple[int, ...]

_COUNTS = ("params", "macs", "bytes")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Plan:
    """What a compilation decided. It applies to every instance of the same architecture.

    Attributes:
        keep: parameter or buffer name -> axis -> kept coordinates, ascending; only axes that lose some.
        shapes: the shape of every parameter and persistent buffer of the original graph: its fingerprint.
        collapsed: names of the layers that are gone.
        bridged: names of the groups on the only path that are gone, in the order in which they were bridged.
        islands: names of the parts that were captured, where the whole could not be (see `fxprune.compiler.islands`).
        remade: weights that a bridge has made anew -> their shape before anything is removed from them.
        before: ``params``, ``macs`` (of one sample) and ``bytes`` of the original.
        after: the same of the pruned model.
        budget: the bounds asked for, e.g. ``{"params": 0.5}``; None if layer-wise ratios were.
        method: the criterion's name.
        seed: the seed.
        example: the call that the model was captured with, without its values.
        versions: of fxprune, torch and python.
        schema: the version of this format.
        scaled: weights of norms -> what all of each is multiplied by, as its norm counts what goes as zeros.
        computed: weights that are computed from others in the original and are plain in the pruned model.
        basis: that the original was given in first (see `fxprune.rotate`); empty for none.
    """

    keep: Kept
    shapes: Mapping[str, Shape]
    collapsed: tuple[str, ...] = ()
    bridged: tuple[str, ...] = ()
    remade: Mapping[str, Shape] = field(default_factory=dict)
    islands: tuple[str, ...] = ()
    before: Mapping[str, int]
    after: Mapping[str, int]
    budget: Mapping[str, float | int] | None = None
    method: str
    seed: int
    example: ExampleSpec
    versions: Mapping[str, str] = field(default_factory=dict)
    schema: int = SCHEMA
    scaled: Mapping[str, float] = field(default_factory=dict)
    computed: tuple[str, ...] = ()
    basis: str = ""

    __setstate__ = filled_in

    def __repr__(self) -> str:
        """Returns what it keeps, a line for each tensor that shrinks."""
        return text_summary(self._title(), (f"{name}: {before} -> {after}" for name, before, after in self._changes()))

    def _repr_html_(self) -> str:
        return html_summary(self._title(), [*self.versions.items()], ("tensor", "shape", "kept"), self._changes())

    def _title(self) -> str:
        lists = {"collapsed": self.collapsed, "bridged": self.bridged}
        gone = "".join(f", {len(names)} {what}" for what, names in lists.items() if names)
        return f"fxprune.Plan: {self.method}, {self.before['params']:,} -> {self.after['params']:,} parameters{gone}"

    def _changes(self) -> Iterator[tuple[str, list[int], list[int]]]:
        for name, axes in self.keep.items():
            before = list(self.remade.get(name, self.shapes[name]))
            yield name, before, [len(axes[d]) if d in axes else size for d, size in enumerate(before)]

    def to_json(self) -> str:
        """Returns the plan as text, a line for each tensor and a checksum at the end; stable."""
        body = self._body()
        lines = [f"{_json(key)}: {_pretty(entry)}" for key, entry in body.items()] + [
            f'"sha256": {_json(_digest(body))}'
        ]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, what: str = "plan") -> Plan:
        """Returns the plan that ``to_json`` wrote; every value is checked, nothing in the text is executed.

        Args:
            text: the JSON.
            what: its name in messages.

        Raises:
            PlanError: the text is damaged, altered, or of a newer format; says where.
        """
        data = untrusted.decode(text, what)
        untrusted.check_schema(data.get("schema"), what, (SCHEMA,))
        present = {key: read for key, read in _OPTIONAL.items() if key in data}
        found = untrusted.fields_of(data, what, {**_READERS, **present, "sha256": untrusted.string})
        digest, shapes, remade = found.pop("sha256"), found["shapes"], found["remade"]
        if strange := [name for name in remade if name not in shapes]:
            raise PlanError(f"{what}: remade[{strange[0]!r:.80}]: no such tensor in shapes")
        plan = cls(**{**found, "keep": _kept(found["keep"], {**shapes, **remade}, f"{what}: keep")})
        if digest != _digest(plan._body()):
            raise PlanError(f"{what}: its checksum does not match: it was changed after it was written")
        return plan

    def _body(self) -> dict[str, Any]:
        """Returns everything but the checksum, as JSON data in a fixed order; what is optional where there is any."""
        beside = {"scaled": dict(sorted(self.scaled.items())), "computed": list(self.computed), "basis": self.basis}
        body: dict[str, Any] = {
            "schema": self.schema,
            "method": self.method,
            "seed": self.seed,
            "budget": None if self.budget is None else dict(sorted(self.budget.items())),
            "before": {key: int(self.before[key]) for key in _COUNTS if key in self.before},
            "after": {key: int(self.after[key]) for key in _COUNTS if key in self.after},
            "versions": dict(sorted(self.versions.items())),
            "example": self.example.to_dict(),
            "islands": list(self.islands),
            "collapsed": list(self.collapsed),
            "bridged": list(self.bridged),
            "remade": {name: [int(size) for size in shape] for name, shape in sorted(self.remade.items())},
            "shapes": {name: [int(size) for size in shape] for name, shape in sorted(self.shapes.items())},
            "keep": {
                name: {str(axis): [int(index) for index in axes[axis]] for axis in sorted(axes)}
                for name, axes in sorted(self.keep.items())
            },
        }
        return body | {key: value for key, value in beside.items() if value}


def check_fits(plan: Plan, model: nn.Module | Mapping[str, Sequence[int]]) -> None:
    """Makes sure that a plan was made for this architecture.

    Args:
        plan: the plan.
        model: the original model, which may have tensors that the graph never reaches; or the shapes of a
            captured graph's parameters and persistent buffers, which must be the plan's exactly.

    Raises:
        PlanError: a tensor is missing, too many, or of another shape; names the first ones.
    """
    found = {
        name: list(shape) for name, shape in (_shapes_of(model) if isinstance(model, nn.Module) else model).items()
    }
    faults = [
        f"{name}: expected {list(shape)}, "
        + (f"got {found[name]}" if name in found else "the model has no such tensor")
        for name, shape in plan.shapes.items()
        if not _alike(found.get(name), shape, plan.keep.get(name, {}))
    ]
    if not isinstance(model, nn.Module):
        faults += [f"{name}: unknown to the plan" for name in found if name not in plan.shapes]
    if faults:
        more = f"\n  and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise PlanError("the plan was made for another model:\n  " + "\n  ".join(faults[:5]) + more)


def _alike(found: Sequence[int] | None, shape: Shape, keep: Mapping[int, Sequence[int]]) -> bool:
    """Returns whether a plan can cut a tensor: what it leaves whole may have another size, as that of other classes has."""
    if found is None or len(found) != len(shape):
        return False
    return all(a == b or dim not in keep for dim, (a, b) in enumerate(zip(found, shape, strict=True)))


def _shapes_of(model: nn.Module) -> dict[str, Shape]:
    own = model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
    tensors: dict[str, Any] = {**model.state_dict(keep_vars=True), **dict(own[0]), **dict(own[1]), **_computed(model)}
    return {name: tuple(tensor.shape) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


@torch.no_grad()
def _computed(model: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors that parametrizations compute, whose plain forms are in the graph."""
    found: dict[str, Tensor] = {}
    with untouched(model, training=False):  # some step what they are made of in training, whenever they are looked at
        for path, module in model.named_modules():
            if is_parametrized(module):
                assert isinstance(module.parametrizations, nn.ModuleDict)
                found.update((f"{path}.{name}".lstrip("."), getattr(module, name)) for name in module.parametrizations)
    return found


def _kept(value: Any, shapes: Mapping[str, Shape], where: str) -> dict[str, dict[int, tuple[int, ...]]]:
    result: dict[str, dict[int, tuple[int, ...]]] = {}
    for name, axes in untrusted.mapping(value, where).items():
        here = f"{where}[{name!r:.80}]"
        if name not in shapes:
            raise PlanError(f"{here}: no such tensor in shapes")
        kept = {}
        sizes = {str(axis): size for axis, size in enumerate(shapes[name])}
        for key, indices in untrusted.mapping(axes, here).items():
            if key not in sizes:
                expected = f"an axis of a tensor of shape {list(shapes[name])}"
                raise PlanError(f"{here}: expected {expected}, got {key!r:.40}")
            kept[int(key)] = _indices(indices, sizes[key], f"{here}[{key}]")
        if not kept:
            raise PlanError(f"{here}: no axis")
        result[name] = kept
    return result


def _indices(value: Any, size: int, where: str) -> tuple[int, ...]:
    indices = tuple(untrusted.sequence(value, where))
    if any(type(index) is not int for index in indices) or (indices and indices[0] < 0):
        raise untrusted.refusal(value, where, "indices from 0")
    if any(first >= second for first, second in pairwise(indices)):
        raise PlanError(f"{where}: expected ascending indices, each once")
    if indices and indices[-1] >= size:
        raise PlanError(f"{where}: index {indices[-1]} is out of range for {size} coordinates")
    if len(indices) == size:
        raise PlanError(f"{where}: nothing is removed; expected only axes that lose coordinates")
    return indices


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(_json(body).encode()).hexdigest()


def _pretty(value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return _json(value)
    return "{\n" + ",\n".join(f"  {_json(key)}: {_json(entry)}" for key, entry in value.items()) + "\n}"


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


_counts = partial(untrusted.fields_of, readers=dict.fromkeys(_COUNTS, untrusted.integer))
_shapes = partial(untrusted.mapping_of, read=untrusted.integers)

#: In the order in which they are written.
_READERS: dict[str, untrusted.Reader[Any]] = {
    "schema": untrusted.integer,
    "method": untrusted.string,
    "seed": untrusted.signed,
    "budget": untrusted.maybe(partial(untrusted.mapping_of, read=untrusted.number)),
    "before": _counts,
    "after": _counts,
    "versions": partial(untrusted.mapping_of, read=untrusted.string),
    "example": ExampleSpec.from_dict,
    "islands": untrusted.texts,
    "collapsed": untrusted.texts,
    "bridged": untrusted.texts,
    "remade": _shapes,
    "shapes": _shapes,
    "keep": untrusted.mapping,
}
_OPTIONAL: dict[str, untrusted.Reader[Any]] = {
    "scaled": partial(untrusted.mapping_of, read=untrusted.number),
    "computed": untrusted.texts,
    "basis": untrusted.string,
}
