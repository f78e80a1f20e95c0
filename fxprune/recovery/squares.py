"""Products of a matrix' columns with each other, of which half would be computed twice."""

from __future__ import annotations

from torch import Tensor

#: Fewer columns than twice this are not worth cutting.
_SIDE = 256


def own_products(x: Tensor) -> Tensor:
    """Returns ``x^T x`` of ``x[..., samples, p]``, ``[..., p, p]``: what lies below the diagonal is taken from above it."""
    half = x.shape[-1] // 2
    if half < _SIDE:
        return x.mT @ x
    left, right = x[..., :half], x[..., half:]
    made, crossed = x.new_empty(*x.shape[:-2], x.shape[-1], x.shape[-1]), left.mT @ right
    made[..., :half, :half], made[..., half:, half:] = own_products(left), own_products(right)
    made[..., :half, half:], made[..., half:, :half] = crossed, crossed.mT
    return made
