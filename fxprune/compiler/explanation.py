"""What could be pruned of a model, and what holds the rest: groups, frozen parts and reasons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from fxprune._base.errors import FxpruneError
from fxprune._base.given import check_takes
from fxprune._base.moved import filled_in
from fxprune._base.names import layer_of
from fxprune._base.shown import html_summary, text_summary
from fxprune.budget.patterns import matches, nearest, spellings, taken
from fxprune.budget.solver import ratio_table
from fxprune.capturing.source import runnable, unwrapped
from fxprune.compiler.homecoming import check_has_class, in_step
from fxprune.compiler.islands import capture_or_parts, captured_islands
from fxprune.compiler.options import MODULE, Form, Options, check_form, several
from fxprune.coupling.blocks import with_blocks
from fxprune.coupling.coupling import Coupling, Frozen
from fxprune.coupling.interpreter import couple
from fxprune.coupling.units import Group
from fxprune.data.batches import Batches
from fxprune.data.checks import device_of
from fxprune.results.tables import few, frozen_table, table

__all__ = ["Explanation", "GroupInfo", "explain"]


@dataclass(frozen=True, slots=True)
class GroupInfo:
    """A group of units that compete with each other.

    Attributes:
        name: as reports have it.
        kind: ``channel``, ``head``, ``kv_group``, ``head_dim``, ...
        units: how many there are.
        makers: the layers that make them: they lose rows.
        readers: the layers that read them: they lose columns.
        tensors: every tensor axis that they lie on, as (name, axis, coordinates a unit).
    """

    name: str
    kind: str
    units: int
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    tensors: tuple[tuple[str, int, int], ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """All layers whose tensors lose coordinates with these units, each once."""
        return tuple(dict.fromkeys([*self.makers, *self.readers, *(layer_of(n) for n, _, _ in self.tensors)]))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Explanation:
    """What could be pruned, and what holds the rest; ``print()`` is text.

    Attributes:
        groups: what could go, together with what.
        frozen: tensor axes with coordinates that can never go, and why.
        unsupported: (op, module) of each op without a rule that froze something.
        islands: the parts that were captured, where the whole could not be; all else stays as it is.
        details: text about the layers that were asked for; empty if none were.
        patterns: (option, pattern, names of groups): what each pattern of ``ignore`` holds, and of ``ratios`` reaches.
        tied: (names of groups, units): of these groups so many units in all go at once, or none, so that the original's class can
            say how many are left; empty unless ``form="module"`` was asked about.
        held: (name of a group, units): so many of it stay, since the class cannot say how many there are.
    """

    groups: tuple[GroupInfo, ...]
    frozen: tuple[Frozen, ...]
    unsupported: tuple[tuple[str, str], ...] = ()
    islands: tuple[str, ...] = ()
    details: str = ""
    patterns: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    tied: tuple[tuple[tuple[str, ...], int], ...] = ()
    held: tuple[tuple[str, int], ...] = ()

    __setstate__ = filled_in

    def __repr__(self) -> str:
        """Returns how many groups there are, a line for each, and how much is held."""
        lines = [f"{g.name}: {g.units} {g.kind} units, made by {few(g.makers, 2) or '-'}" for g in self.groups]
        held = f"{len(self.frozen)} axes with frozen coordinates; print() shows why, and all the rest"
        return text_summary(f"fxprune.Explanation: {self._size()}", [*lines, held])

    def _repr_html_(self) -> str:
        rows = [(g.name, g.kind, g.units, few(g.makers, 3), few(g.readers, 3)) for g in self.groups]
        heads = ("group", "kind", "units", "made by", "read by")
        facts = [("axes with frozen coordinates", len(self.frozen))]
        return html_summary(f"fxprune.Explanation: {self._size()}", facts, heads, rows)

    def _size(self) -> str:
        return f"{len(self.groups)} groups, {sum(group.units for group in self.groups):,} units"

    def __str__(self) -> str:
        parts = [self.details] if self.details else self._tables()
        if self.patterns:
            taken_by = [(option, pattern, ", ".join(groups) or "-") for option, pattern, groups in self.patterns]
            parts.append(table("what each pattern takes", taken_by, ("option", "pattern", "groups"), width=80))
        return "\n\n".join(parts)

    def _tables(self) -> list[str]:
        rows = [(g.name, g.kind, g.units, few(g.makers) or "-", few(g.readers) or "-") for g in self.groups]
        heads = ("group", "kind", "units", "made by", "read by")
        parts = [
            table(self._size(), rows, heads, width=48) if rows else "no groups: nothing of this model can be pruned"
        ]
        if self.frozen:
            parts.append(frozen_table((f.reason, f"{f.tensor}[{f.dim}]", f.coordinates) for f in self.frozen))
        if self.unsupported:
            lines = [f"  {op} in {module or 'the model itself'}" for op, module in dict.fromkeys(self.unsupported)]
            parts.append("ops without a rule that applies, which froze what they touch\n" + "\n".join(lines))
        if self.tied:
            at_once = [(few(names), units) for names, units in self.tied]
            parts.append(table("in the original's class: what goes at once", at_once, ("groups", "units"), width=80))
        if self.held:
            parts.append(table("in the original's class: what stays", self.held, ("group", "units"), width=80))
        if self.islands:
            parts.append(f"islands: {', '.join(self.islands)}; all else stays as it is")
        return parts

    def to_dict(self) -> dict[str, Any]:
        """Returns everything as JSON data."""
        return {
            "groups": [
                {
                    "name": g.name,
                    "kind": g.kind,
                    "units": g.units,
                    "makers": list(g.makers),
                    "readers": list(g.readers),
                    "tensors": [{"name": n, "axis": axis, "per_unit": count} for n, axis, count in g.tensors],
                }
                for g in self.groups
            ],
            "frozen": [
                {"tensor": f.tensor, "axis": f.dim, "coordinates": f.coordinates, "size": f.size, "reason": f.reason}
                for f in self.frozen
            ],
            "unsupported": [{"op": op, "module": module} for op, module in self.unsupported],
            "islands": list(self.islands),
            "patterns": [
                {"option": option, "pattern": pattern, "groups": list(groups)}
                for option, pattern, groups in self.patterns
            ],
            "tied": [{"groups": list(names), "units": units} for names, units in self.tied],
            "held": [{"group": name, "units": units} for name, units in self.held],
            "details": self.details,
        }

    def to_dot(self) -> str:
        """Returns Graphviz's text: layers as boxes, groups as ellipses, arrows from makers to readers.

        Layers with frozen coordinates are grey, the reasons in their tooltips. ``dot -Tsvg`` draws it.
        """
        reasons: dict[str, dict[str, None]] = {}
        for frozen in self.frozen:
            reasons.setdefault(layer_of(frozen.tensor), {})[f"axis {frozen.dim}: {frozen.reason}"] = None
        layers = dict.fromkeys([*(layer for g in self.groups for layer in g.layers), *reasons])
        lines = ["digraph fxprune {", "  rankdir=LR;", '  node [fontname="sans-serif"];']
        for layer in layers:
            more = ""
            if layer in reasons:
                more = f', style=filled, fillcolor="gray90", tooltip={_quoted("; ".join(reasons[layer]))}'
            label = _quoted(layer or "the model itself")
            lines.append(f"  {_quoted(f'layer {layer}')} [shape=box, label={label}{more}];")
        for group in self.groups:
            name = _quoted(f"group {group.name}")
            lines.append(f"  {name} [label={_quoted(f'{group.name}: {group.units} x {group.kind}')}];")
            lines += [f"  {_quoted(f'layer {layer}')} -> {name};" for layer in group.makers]
            lines += [f"  {name} -> {_quoted(f'layer {layer}')};" for layer in group.readers]
            others = [layer for layer in group.layers if layer not in (*group.makers, *group.readers)]
            lines += [f"  {name} -> {_quoted(f'layer {layer}')} [dir=none];" for layer in others]
        return "\n".join([*lines, "}"]) + "\n"


def explain(
    model: nn.Module | ExportedProgram | Coupling,
    calib_data: Any = None,
    *,
    layers: str | Sequence[str] = (),
    units: str | Sequence[str] = (),
    ignore: str | Sequence[str] = (),
    ratios: float | Mapping[str, float] | None = None,
    form: Form = "graph",
    forward_args: Callable[[Any], Any] | None = None,
    dynamic_shapes: Any = None,
    strict: bool = False,
) -> Explanation:
    """Says what could be pruned of a model, what must go together, and what can never go and why.

    Nothing is scored, so that the values of weights and data do not matter; the model stays as it is.

    Args:
        model: the model, or the coupling that `fxprune.couple` found.
        calib_data: batches, as for `fxprune.compile`; not for a coupling.
        layers: names or ``fnmatch`` patterns: only what touches these layers, modules that hold layers, or tensors.
        units: with ``"block"`` among them, whole residual branches are units as well; other kinds, if any are given, are those that
            may go, as for `fxprune.compile`, for what goes in step.
        ignore: as for `fxprune.compile`; says which groups each pattern holds.
        ratios: as for `fxprune.compile`; says which groups each pattern reaches.
        form: ``"module"`` says as well what goes in step, and what stays, so that the original's class can come back.
        forward_args: as for `fxprune.compile`.
        dynamic_shapes: as for `fxprune.compile`.
        strict: raise at an op without a rule.

    Raises:
        CaptureError: the model cannot be captured, nor any part of it.
        CalibrationError: the data are unusable.
        FxpruneError: no layer has such a name; says which are close.
        UnsupportedOpError: under ``strict``, an op without a rule.
        BudgetError: ratios that are no shares.
        RestoreError: with ``form="module"``, a copy of the model does not run.
        TypeError, ValueError: another argument is malformed.
    """
    kinds, patterns, held = several("units", units), several("layers", layers), several("ignore", ignore)
    chosen = kinds if {*kinds} - {"block"} else (*several("units", Options().units), *kinds)
    options = Options(units=chosen, ignore=held, min_keep=1, form=form)
    constraints = options.constraints()
    check_form(options)
    reached = () if ratios is None else tuple(ratio_table(ratios))
    if strange := [pattern for pattern in patterns if not isinstance(pattern, str)]:
        raise ValueError(f"layers takes names or patterns of layers, got {strange[0]!r:.80}")
    if forward_args is not None:
        check_takes(TypeError, "forward_args", forward_args, "batch")
    islands: tuple[str, ...] = ()
    if isinstance(model, Coupling):
        coupling = model
    elif not isinstance(model, (nn.Module, ExportedProgram)):
        raise TypeError(f"model: expected a torch.nn.Module, an ExportedProgram or a Coupling, got {model!r:.80}")
    else:
        module = runnable(model)
        if form == MODULE:
            check_has_class(model)
        batches = Batches(calib_data, device=device_of(module), forward_args=forward_args)
        captured, islands = capture_or_parts(model, batches, dynamic_shapes, strict)
        coupling = couple(captured or captured_islands(unwrapped(module), islands, batches), strict=strict)
    if "block" in kinds:
        coupling = with_blocks(coupling)
    tied, kept = in_step(coupling, constraints) if form == MODULE else ((), ())
    groups = tuple(_about(coupling, group) for group in coupling.groups)
    frozen = tuple(coupling.frozen())
    details = ""
    if patterns:
        asked = _asked(patterns, coupling)
        details = "\n\n".join(map(coupling.explain, asked))
        groups = tuple(g for g in groups if any(name in asked for name, _, _ in g.tensors))
        frozen = tuple(f for f in frozen if f.tensor in asked)
        names = {group.name for group in groups}
        tied = tuple((several, units) for several, units in tied if names.intersection(several))
        kept = tuple((name, units) for name, units in kept if name in names)
    return Explanation(
        groups=groups,
        frozen=frozen,
        unsupported=coupling.unsupported,
        islands=islands,
        patterns=tuple(taken(coupling, held, reached)),
        details=details,
        tied=tied,
        held=kept,
    )


def _about(coupling: Coupling, group: Group) -> GroupInfo:
    tensors = tuple((coupling.axes[i].tensor, coupling.axes[i].dim, count) for i, count in group.axes)
    return GroupInfo(group.name, group.kind, len(group.units), group.producers, group.consumers, tensors)


def _asked(patterns: Iterable[str], coupling: Coupling) -> list[str]:
    """Returns the tensors that patterns name, in the graph's order.

    Raises:
        FxpruneError: one names none; says which names are close.
    """
    names = {axis.tensor: spellings(coupling, axis.tensor) for axis in coupling.axes}
    for pattern in patterns:
        if not any(matches(spelled, pattern) for spelled in names.values()):
            hint = nearest(pattern, set().union(*names.values()))
            raise FxpruneError(f"{pattern}: expected a layer or tensor with parameters in the graph{hint}")
    return [tensor for tensor, spelled in names.items() if any(matches(spelled, pattern) for pattern in patterns)]


def _quoted(text: str) -> str:
    """Returns a text in Graphviz's quotes."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
