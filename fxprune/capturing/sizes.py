"""Symbolic sizes as integers: every symbol of a program is a prime, so that shape algebra is on plain numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from fxprune.capturing.flatten import Flat

if TYPE_CHECKING:
    import sympy

_BATCH = 10007
_PRIMES = (1009, 1013, 1019, 1021, 1031, 1033, 1039, 1049, 1051, 1061, 1063, 1069, 1087, 1091, 1093, 1097)


@dataclass(slots=True, eq=False)
class Sizes:
    """Maps symbolic sizes to integers.

    Attributes:
        primes: The value of each symbol: distinct primes, none of which is a size of the model.
    """

    primes: dict[sympy.Symbol, int]
    _cache: dict[Any, int] = field(default_factory=dict)

    def of(self, size: int | torch.SymInt) -> int:
        """Return the value of one size."""
        if isinstance(size, int):
            return size
        return self.value(size.node.expr)

    def shape(self, shape: Sequence[int | torch.SymInt]) -> tuple[int, ...]:
        """Return the values of a whole shape."""
        return tuple(self.of(size) for size in shape)

    def value(self, expr: Any) -> int:
        """Return the value of a sympy expression; unseen symbols (data-dependent sizes) get fresh primes."""
        if expr not in self._cache:
            import sympy

            for symbol in sorted(expr.free_symbols - self.primes.keys(), key=str):
                self.primes[symbol] = next(p for p in _candidates() if p not in self.primes.values())
            self._cache[expr] = int(expr.xreplace({s: sympy.Integer(p) for s, p in self.primes.items()}))
        return self._cache[expr]


def static(size: Any) -> int | None:
    """Return a size as an int if it is one, else None."""
    if isinstance(size, int):
        return size
    expr = size.node.expr
    return int(expr) if expr.is_Integer else None


def read_sizes(program: ExportedProgram, flat: Flat, batched: Sequence[bool]) -> Sizes:
    """Give every symbol of the inputs' shapes a prime; those of batch dimensions share one.

    Args:
        program: The exported program, for the bounds of the symbols.
        flat: Its flat graph.
        batched: For each placeholder, whether its dimension 0 is the batch.
    """
    batch: dict[Any, None] = {}
    others: dict[Any, None] = {}
    for node, flag in zip(flat.graph.find_nodes(op="placeholder"), batched, strict=True):
        for dim, size in enumerate(node.meta["val"].shape):
            if static(size) is None:
                found = sorted(size.node.expr.free_symbols, key=str)
                (batch if dim == 0 and flag else others).update(dict.fromkeys(found))
    bounds = {symbol: int(r.upper) for symbol, r in program.range_constraints.items() if r.upper.is_Integer}
    tensors = [*flat.tensors.values(), *(v for n in flat.graph.nodes if isinstance(v := n.meta.get("val"), Tensor))]
    taken = {size for tensor in tensors for size in map(static, tensor.shape) if size is not None}
    return assign([*batch], [symbol for symbol in others if symbol not in batch], bounds, taken)


def assign(batch: list[sympy.Symbol], others: list[sympy.Symbol], upper: Mapping[Any, int], taken: set[int]) -> Sizes:
    """Give every symbol a prime within its upper bound, the batch symbols all the same one.

    Args:
        batch: Symbols of batch dimensions.
        others: All other symbols of the inputs.
        upper: The largest value that export found allowed, for symbols that have one.
        taken: Sizes that occur in the model, so that no prime is mistaken for one.
    """
    primes: dict[sympy.Symbol, int] = {}
    if batch:
        limit = min(upper.get(symbol, _BATCH) for symbol in batch)
        prime = _BATCH if limit >= _BATCH else _prime_below(limit, taken)
        primes.update(dict.fromkeys(batch, prime))
    for symbol in others:
        used = taken | set(primes.values())
        limit = upper.get(symbol, _PRIMES[-1])
        free = (p for p in _candidates() if p <= limit and p not in used)
        primes[symbol] = next(free, None) or _prime_below(limit, used)
    return Sizes(primes)


def _candidates() -> Iterator[int]:
    import sympy

    yield from _PRIMES
    yield from sympy.primerange(_PRIMES[-1] + 1, 10 * _BATCH)


def _prime_below(limit: int, taken: set[int]) -> int:
    """Return the largest free prime up to ``limit``, or ``limit`` itself if there is none."""
    import sympy

    return next((n for n in range(limit, 1, -1) if n not in taken and sympy.isprime(n)), limit)
