"""Budgets: what the pruned model may cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

from fxprune._base.errors import BudgetError
from fxprune._base.given import LARGEST, is_whole
from fxprune.budget.cost import Cost
from fxprune.runtimes.registry import BackendName
from fxprune.runtimes.setting import Setting, check_setting


@dataclass(frozen=True, slots=True, eq=False)
class Budget:
    """Upper bounds on the pruned model; a float is a share of the original, an int is absolute.

    Attributes:
        params: parameters.
        macs: multiply-accumulates of one sample at the example's sizes.
        of: ``fnmatch`` patterns of layers, or modules that hold them, or tensors: ``params`` and ``macs`` count these alone, such as
            ``"model.layers*"`` for a language model without its embeddings.
        latency_ms: milliseconds of a call, as measured; an int or a float.
        latency: the share of the original's latency, instead of ``latency_ms``.
        device: where the latency is measured; by default where the model is.
        batch_size: samples of a call whose latency is measured.
        backend: the name of a runtime: ``"eager"``, ``"compiled"`` (`torch.compile`), ``"onnxruntime"``, ``"torch.export"``,
            ``"aotinductor"``, ``"openvino"``, ``"executorch"``, ``"ncnn"``, ``"litert"``, or one of your own (`fxprune.register_runtime`).
        threads: that an operator may use on the CPU; by default as many as torch uses.

    Raises:
        BudgetError: no bound is given, a share lies outside (0, 1], an absolute bound is not positive, or the
            circumstances of the latency are malformed, or there is no latency that they are about.
    """

    params: float | int | None = None
    macs: float | int | None = None
    of: str | Sequence[str] = ()
    latency_ms: float | int | None = None
    latency: float | None = None
    device: str | None = None
    batch_size: int = 1
    backend: BackendName | str = "eager"
    threads: int | None = None

    def __eq__(self, other: object) -> bool:
        """Whether the bounds are the same; one parameter (an int) is not all parameters (a float)."""
        return isinstance(other, Budget) and self._bounds() == other._bounds()

    def __hash__(self) -> int:
        return hash(self._bounds())

    def _bounds(self) -> tuple[tuple[Any, bool], ...]:
        shares = {"params": isinstance(self.params, float), "macs": isinstance(self.macs, float)}
        return tuple((getattr(self, entry.name), shares.get(entry.name, False)) for entry in fields(self))

    def __post_init__(self) -> None:
        """Checks the bounds."""
        if self.params is None and self.macs is None and not self.bounds_latency:
            raise BudgetError(
                "a budget bounds params, macs or both, or a latency; got neither. Try Budget(params=0.5)."
            )
        self._check_latency()
        self._check_scope()
        for name in ("params", "macs"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise BudgetError(f"{name} must be a float (share) or an int (absolute), got {value!r}")
            if isinstance(value, float) and not 0 < value <= 1:
                raise BudgetError(f"a share of {name} must lie in (0, 1], got {value}; an absolute bound is an int")
            if isinstance(value, int) and not is_whole(value, 1):
                raise BudgetError(f"an absolute bound on {name} must be positive, below 2**63, got {value!r:.80}")

    def _check_scope(self) -> None:
        if isinstance(self.of, str):
            object.__setattr__(self, "of", (self.of,))
        if not isinstance(self.of, (tuple, list)) or not all(isinstance(pattern, str) for pattern in self.of):
            raise BudgetError(f"of: expected a pattern of layers, or several in a tuple, got {self.of!r:.80}")
        object.__setattr__(self, "of", tuple(self.of))
        if self.of and self.params is None and self.macs is None:
            raise BudgetError("of= says what params and macs count, but neither is bounded: add params=0.5 or macs=0.5")

    def _check_latency(self) -> None:
        if self.latency is not None and self.latency_ms is not None:
            raise BudgetError("give either latency (a share) or latency_ms (milliseconds), not both")
        for name, value in (("latency", self.latency), ("latency_ms", self.latency_ms)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise BudgetError(f"{name} must be a number, got {value!r}")
            if not 0 < value <= (1 if name == "latency" else LARGEST):
                bounds = "in (0, 1]; milliseconds are latency_ms" if name == "latency" else "above 0, below 2**63"
                raise BudgetError(f"{name} must lie {bounds}, got {value!r:.80}")
        check_setting(self.device, self.batch_size, self.backend, self.threads)
        stated = (self.device, self.batch_size, self.backend, self.threads)
        if stated != (None, 1, "eager", None) and not self.bounds_latency:
            raise BudgetError(
                "device, batch_size, backend and threads say how a latency is measured, but none is bounded: add "
                "latency=0.5 or latency_ms=..."
            )

    @property
    def bounds_latency(self) -> bool:
        """Whether there is a bound on the latency."""
        return self.latency is not None or self.latency_ms is not None

    def setting(self, device: object) -> Setting:
        """Returns the circumstances of the latency, on that device if the budget names none.

        Raises:
            BudgetError: there is no such device here.
        """
        return Setting.of(self.device or str(device), self.batch_size, self.backend, self.threads)

    def limits(self, before: Cost) -> dict[int, int]:
        """Returns the bounds on parameters and MACs as absolute numbers, by index into `Cost`; ``before`` counts what they count."""
        bounds = {0: (self.params, before.params), 1: (self.macs, before.macs)}
        return {
            i: max(1, math.floor(Fraction(str(v)) * full)) if isinstance(v, float) else v
            for i, (v, full) in bounds.items()
            if v is not None
        }

    def absolute(self, before: Cost) -> Budget:
        """Returns the same bounds, those on parameters and MACs as absolute numbers."""
        limits = self.limits(before)
        return replace(self, params=limits.get(0), macs=limits.get(1))


def as_budget(budget: float | Budget) -> Budget:
    """Returns a budget; a bare float is a share of parameters.

    Raises:
        BudgetError: the value is neither a float in (0, 1] nor a Budget; an int might be a share or a number.
    """
    if isinstance(budget, Budget):
        return budget
    if isinstance(budget, bool) or not isinstance(budget, (int, float)):
        raise BudgetError(f"budget must be a share such as 0.5 or a fxprune.Budget, got {budget!r}")
    if isinstance(budget, int):
        share = "1.0 for all parameters" if budget == 1 else "a float in (0, 1] for a share of parameters"
        raise BudgetError(
            f"budget={budget} is an int: write {share}, or Budget(params={budget}) for so many parameters"
        )
    if not 0 < budget <= 1:
        raise BudgetError(
            f"budget must lie in (0, 1] as a share of parameters, got {budget}; for absolute numbers use Budget(params=...)"
        )
    return Budget(params=float(budget))
