"""The report: what a compilation did, how much smaller the model is, and the certificate that it is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fxprune._base import untrusted
from fxprune._base.errors import PlanError
from fxprune._base.moved import filled_in
from fxprune.results.certificate import Certificate
from fxprune.results.fidelity import Fidelity, read_odd, writable
from fxprune.results.latency import Latency
from fxprune.results.plan import Plan
from fxprune.results.scores import ScoreSummary, read_pair
from fxprune.results.text import as_html, as_text, in_brief

Change = tuple[int, int]

_SCHEMA = 6


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group of units: how many there were and how many are left.

    Attributes:
        name: the group's name.
        kind: ``channel``, ``expert``, ``head``, ``kv_group``, ``head_dim`` or ``block``.
        layers: the layers whose parameters it touches.
        before: units of the original.
        after: units that are kept.
        makers: how many of the layers, the first ones, make the units; the others read them. None if that is not
            known.
    """

    name: str
    kind: str
    layers: tuple[str, ...]
    before: int
    after: int
    makers: int | None = None

    @property
    def producers(self) -> tuple[str, ...]:
        """The layers that make the units; all of them where it is not known which read them."""
        return self.layers[: self.makers]

    @property
    def consumers(self) -> tuple[str, ...]:
        """The layers that read the units."""
        return () if self.makers is None else self.layers[self.makers :]


@dataclass(frozen=True, slots=True)
class LayerRow:
    """What one layer costs.

    Attributes:
        name: the module that owns the parameters, or in which the products take place.
        params: its parameters (before, after).
        macs: its multiply-accumulates for one sample at the example's sizes (before, after).
    """

    name: str
    params: Change
    macs: Change


@dataclass(frozen=True, slots=True)
class FrozenRow:
    """Coordinates of one axis that could not be removed.

    Attributes:
        tensor: the parameter's name.
        axis: which of its axes.
        coordinates: how many coordinates of that axis.
        reason: what holds them.
    """

    tensor: str
    axis: int
    coordinates: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report:
    """What a compilation did. ``print(report)`` is a table, ``to_dict()`` the same as JSON data.

    Attributes:
        params: parameters (before, after), counted over the captured graph.
        macs: multiply-accumulates of one sample at the example's sizes (before, after).
        bytes: bytes of the parameters and persistent buffers (before, after).
        method: the criterion's name.
        groups: the groups of units, before and after.
        units_removed: the number of units that are gone.
        verified: True if the pruned model equals its masked twin; False if it does not; None if that could
            not be told, or was not asked for.
        max_error: the largest relative error of the comparison.
        tolerance: what it had to stay below.
        dtype: the precision of the comparison, e.g. ``"float64"``.
        frozen: what could not be removed, and why.
        collapsed: names of the layers that are gone.
        dropped: parameters of the original that its forward never reaches: gone, and not in ``params``.
        skipped: corrections that were not made, e.g. a shift without a bias to hold it, each with its reason.
        seconds: stage -> seconds.
        notes: anything else worth knowing.
        layers: parameters and MACs by layer, front to back; they add up to ``params`` and ``macs``.
        scores: how the units rank and where the cut fell, if they were scored at once.
        latency: predicted and measured, if the budget bounds it.
        plan: the plan, if there is one.
        doubt: why it is not verified; empty if it is, or was not compared.
        compared: the outputs that were compared, with what is doubtful about each.
        recover: the recovery's name; empty if there was none, or if the report is too old to tell.
        form: ``"graph"``, or ``"module"`` for a copy of the original in its own class.
        shifts: whether the original's own loss compares labels with the scores before them, as a causal language model's; None if it
            makes no such loss, or was not asked.
        fidelity: how close the outputs are to the dense model's; None if the report is too old to tell, or no model was compared.
    """

    params: Change
    macs: Change
    bytes: Change
    method: str
    groups: tuple[GroupRow, ...] = ()
    units_removed: int = 0
    verified: bool | None = None
    max_error: float | None = None
    tolerance: float | None = None
    dtype: str = ""
    frozen: tuple[FrozenRow, ...] = ()
    collapsed: tuple[str, ...] = ()
    dropped: int = 0
    skipped: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    scores: ScoreSummary | None = None
    latency: Latency | None = None
    plan: Plan | None = None
    doubt: str = ""
    compared: tuple[str, ...] = ()
    recover: str = ""
    form: str = "graph"
    shifts: bool | None = None
    fidelity: Fidelity | None = None

    __setstate__ = filled_in

    @property
    def certificate(self) -> Certificate | None:
        """What the comparison with the masked twin found; None if there was none."""
        if not self.dtype or self.max_error is None or self.tolerance is None:
            return None
        return Certificate(
            self.verified, self.max_error, self.tolerance, f"torch.{self.dtype}", self.doubt, self.compared
        )

    @property
    def islands(self) -> tuple[str, ...]:
        """The parts that were captured, where the whole could not be; the figures are about them."""
        return () if self.plan is None else self.plan.islands

    def __str__(self) -> str:
        """Returns the tables: groups, totals, what is frozen and why, the certificate and the fidelity."""
        return as_text(self)

    def __repr__(self) -> str:
        """Returns the totals, the certificate and the fidelity, a line each."""
        return in_brief(self)

    def _repr_html_(self) -> str:
        return as_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Returns everything but the plan as JSON data; a number that is not finite becomes text."""
        return {
            "schema": _SCHEMA,
            **{key: list(getattr(self, key)) for key in ("params", "macs", "bytes")},
            "method": self.method,
            "units_removed": self.units_removed,
            "verified": self.verified,
            **{key: writable(getattr(self, key)) for key in ("max_error", "tolerance")},
            "dtype": self.dtype,
            "groups": [[g.name, g.kind, list(g.layers), g.before, g.after, g.makers] for g in self.groups],
            "frozen": [[row.tensor, row.axis, row.coordinates, row.reason] for row in self.frozen],
            "collapsed": list(self.collapsed),
            "dropped": self.dropped,
            "skipped": list(self.skipped),
            "seconds": {stage: float(value) for stage, value in self.seconds.items()},
            "notes": list(self.notes),
            "layers": [[row.name, *row.params, *row.macs] for row in self.layers],
            "scores": None if self.scores is None else self.scores.to_dict(),
            "latency": None if self.latency is None else self.latency.to_dict(),
            "doubt": self.doubt,
            "compared": list(self.compared),
            "recover": self.recover,
            "form": self.form,
            "shifts": self.shifts,
            "fidelity": None if self.fidelity is None else self.fidelity.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Any, *, plan: Plan | None = None, what: str = "report") -> Report:
        """Returns the report that ``to_dict`` gave.

        Args:
            data: the JSON data.
            plan: the plan to go with it.
            what: its name in messages.

        Raises:
            PlanError: the data are damaged, or of a newer format; says where.
        """
        schema = untrusted.mapping(data, what).get("schema", _SCHEMA)
        untrusted.check_schema(schema, what, range(1, _SCHEMA + 1))
        known = {key: read for key, read in _READERS.items() if _SINCE.get(key, 1) <= schema}
        values = untrusted.fields_of(data, what, known)
        del values["schema"]
        return cls(**values, plan=plan)


def _read_group(value: Any, where: str) -> GroupRow:
    readers = (untrusted.string, untrusted.string, untrusted.texts, untrusted.integer, untrusted.integer)
    # format 1 does not tell who makes and who reads
    old = isinstance(value, list) and len(value) == len(readers)
    found = GroupRow(*untrusted.row_of(value, where, *readers, *(() if old else (untrusted.maybe(untrusted.integer),))))
    if found.makers is not None and found.makers > len(found.layers):
        raise PlanError(f"{where}: {found.makers} of {len(found.layers)} layers make its units")
    return found


def _read_layer(value: Any, where: str) -> LayerRow:
    name, *counts = untrusted.row_of(value, where, untrusted.string, *[untrusted.integer] * 4)
    return LayerRow(name, (counts[0], counts[1]), (counts[2], counts[3]))


def _read_frozen(value: Any, where: str) -> FrozenRow:
    readers = (untrusted.string, untrusted.integer, untrusted.integer, untrusted.string)
    return FrozenRow(*untrusted.row_of(value, where, *readers))


_READERS: dict[str, untrusted.Reader[Any]] = {
    **dict.fromkeys(("schema", "units_removed", "dropped"), untrusted.integer),
    **dict.fromkeys(("params", "macs", "bytes"), read_pair),
    **dict.fromkeys(("method", "dtype", "doubt", "recover"), untrusted.string),
    **dict.fromkeys(("collapsed", "skipped", "notes", "compared"), untrusted.texts),
    **dict.fromkeys(("max_error", "tolerance"), untrusted.maybe(read_odd)),
    "form": partial(untrusted.one_of, ("graph", "module")),
    **dict.fromkeys(("verified", "shifts"), untrusted.maybe(untrusted.boolean)),
    "groups": partial(untrusted.sequence_of, read=_read_group),
    "frozen": partial(untrusted.sequence_of, read=_read_frozen),
    "seconds": partial(untrusted.mapping_of, read=untrusted.number),
    "layers": partial(untrusted.sequence_of, read=_read_layer),
    "scores": untrusted.maybe(ScoreSummary.from_dict),
    "latency": untrusted.maybe(Latency.from_dict),
    "fidelity": untrusted.maybe(Fidelity.from_dict),
}

#: The format in which an entry came, if not in the first.
_SINCE = {
    **dict.fromkeys(("layers", "scores", "latency"), 2),
    **dict.fromkeys(("doubt", "compared"), 3),
    "recover": 4,
    **dict.fromkeys(("form", "shifts"), 5),
    "fidelity": 6,
}
