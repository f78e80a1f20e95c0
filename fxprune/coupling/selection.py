"""The selection: what goes of a coupled model, and the tensors that stand in for its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from fxprune._base.names import fetch
from fxprune.algebra.channels import Ids, Mask
from fxprune.coupling.branches import Collapse, collapse_of
from fxprune.coupling.coupling import Coupling
from fxprune.ops.registry import bind, rule_of
from fxprune.ops.slicer import Slicer


@dataclass(frozen=True, eq=False, repr=False)
class Selection:
    """What goes of a coupled model.

    Attributes:
        coupling: of the captured graph.
        removed: a flag for each channel id, ``[channels]``.
        tensors: full-size replacements of parameters and buffers, by name: what recovery gives. They come before `gains`.
    """

    coupling: Coupling
    removed: Mask
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def nothing(cls, coupling: Coupling, tensors: Mapping[str, Tensor] | None = None) -> Selection:
        """Returns the selection of no channel: the dense model, with some tensors (``[...]`` as its own) replaced."""
        return cls(coupling, np.zeros(len(coupling.channels), bool), {} if tensors is None else tensors)

    @cached_property
    def slicer(self) -> Slicer:
        """What slice and twin rules ask for the sizes that are left."""
        return self.coupling.slicer(self.removed)

    @cached_property
    def collapse(self) -> Collapse:
        """What becomes of branches that have lost every channel."""
        return collapse_of(self.coupling, self.slicer)

    @cached_property
    def gains(self) -> dict[str, Tensor]:
        """The weights, ``[...]`` by name, of norms whose statistic counts what goes as zeros: they take the factor."""
        root = self.coupling.captured.module
        return {name: fetch(root, name).detach() * factor for name, factor in self.factors.items()}

    @cached_property
    def factors(self) -> dict[str, float]:
        """What each of `gains` is multiplied by."""
        found: dict[str, float] = {}
        for node in self.coupling.statistics if self.removed.any() else ():
            rule = rule_of(node.target)
            if rule is not None and rule.gains is not None:
                for operand, factor in rule.gains(self.slicer, node, bind(node)).items():
                    found[str(operand.target)] = factor
        return found

    def standing(self, name: str) -> Tensor | None:
        """Returns what stands for a parameter or buffer, ``[...]``; None for itself."""
        return self.tensors[name] if name in self.tensors else self.gains.get(name)

    @property
    def units(self) -> Ids:
        """The numbers of the units that go, ``[gone]``."""
        return self.coupling.units_of(self.removed)

    def __repr__(self) -> str:
        return f"fxprune.Selection: {len(self.units)} of {len(self.coupling.units)} units, {len(self.tensors)} replaced tensors"

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Selection:
        """Returns the selection over other tensors (``[...]``), kept by reference: recovery changes them as it goes."""
        return replace(self, tensors=tensors)
