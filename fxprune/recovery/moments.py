"""Means and (cross-)covariances of what layers read, streamed: centred in each batch, merged in float64.

Fewer samples than columns say all that they can themselves: then they are kept, and no square of the columns is formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune._base.ranks import gathered, summed, world
from fxprune.recovery.squares import own_products


class Moments:
    """The count, means and centred second moments of ``x[samples, groups, p]`` with ``t[samples, groups, q]``.

    Args:
        most: as many samples are kept as they are; ``xx`` and ``tx`` are formed of more, or when they are asked for.

    Attributes:
        held: those of samples that were held out, to judge by; None if none were.
        rows: the samples ``(x, t)`` that are kept, batch by batch; None once squares are formed.
    """

    def __init__(self, most: int = 0) -> None:
        self.held: Moments | None = None
        self.most, self.count = most, 0
        self.mean_x, self.mean_t = torch.zeros(2, 0, dtype=torch.float64)
        self._xx: Tensor = torch.zeros(0, dtype=torch.float64)
        self._tx: Tensor = torch.zeros(0, dtype=torch.float64)
        self.rows: list[tuple[Tensor, Tensor]] | None = []

    def add(self, x: Tensor, t: Tensor | None = None) -> None:
        """Takes in a batch ``x[samples, groups, p]`` (Chan et al. 1983, parallel update); ``t`` has the same samples."""
        n = len(x)
        if n == 0:
            return
        t = x[..., :0] if t is None else t
        if x.dtype.itemsize < 4:  # a sum of squares leaves the range of float16
            x, t = x.float(), t.float()
        mean_x, mean_t = (part.mean(dim=0).double() for part in (x, t))
        if self.rows is not None and self.count + n > self.most:
            self.square()
        if self.rows is not None:
            self.rows.append((x.clone(), t.clone()))  # values may be views of what is changed
        else:
            self._grow(n, mean_x, mean_t, *_squares(x, t, mean_x, mean_t))
        self._move(n, mean_x, mean_t)

    def take(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Takes in so many samples by their means ``[groups, p]`` and centred squares ``[groups, p, p]``, without targets."""
        self.square()
        nothing = mean[..., :0]
        self._grow(count, mean, nothing, squares, squares[:, :0])
        self._move(count, mean, nothing)

    def _grow(self, n: int, mean_x: Tensor, mean_t: Tensor, xx: Tensor, tx: Tensor) -> None:
        """Adds the centred squares ``[groups, p, p]``, ``[groups, q, p]`` of ``n`` samples with means of their own, ``[groups, ...]``."""
        if not self.count:
            self._xx, self._tx = xx.double(), tx.double()
            return
        step_x, step_t = mean_x - self.mean_x, mean_t - self.mean_t
        share = (self.count * n / (self.count + n) * step_x)[..., None, :]
        self._xx.add_(xx).baddbmm_(step_x[..., None], share)
        self._tx.add_(tx).baddbmm_(step_t[..., None], share)

    def _move(self, n: int, mean_x: Tensor, mean_t: Tensor) -> None:
        """Takes ``n`` samples' means, ``[groups, p]`` and ``[groups, q]``, into those of all."""
        share = n / (self.count + n)
        if not self.count:
            self.mean_x, self.mean_t = mean_x, mean_t
        else:
            self.mean_x = self.mean_x + (mean_x - self.mean_x) * share
            self.mean_t = self.mean_t + (mean_t - self.mean_t) * share
        self.count += n

    def square(self) -> None:
        """Forms the squares of samples that were kept, about the means as they stand."""
        rows, self.rows = self.rows, None
        for x, t in rows or ():
            xx, tx = _squares(x, t, self.mean_x, self.mean_t)
            self._xx, self._tx = (self._xx + xx, self._tx + tx) if self._xx.numel() else (xx.double(), tx.double())

    @property
    def xx(self) -> Tensor:
        """Of the columns with themselves, sums, ``[groups, p, p]``."""
        self.square()
        return self._xx

    @xx.setter
    def xx(self, value: Tensor) -> None:
        """Takes others, ``[groups, p, p]``."""
        self.square()
        self._xx = value

    @property
    def tx(self) -> Tensor:
        """Of the targets with the columns, sums, ``[groups, q, p]``."""
        self.square()
        return self._tx

    @tx.setter
    def tx(self, value: Tensor) -> None:
        """Takes others, ``[groups, q, p]``."""
        self.square()
        self._tx = value

    @property
    def seen(self) -> int:
        """How many samples there were, those held out among them."""
        return self.count + (0 if self.held is None else self.held.count)

    def whole(self) -> None:
        """Takes in what was held out."""
        if self.held is not None:
            self.merge(self.held)
            self.held = None

    def merge(self, other: Moments) -> None:
        """Takes in what another has seen, of the same layer."""
        if not other.count:
            return
        if self.rows is not None and other.rows is not None and self.count + other.count <= self.most:
            self.rows += other.rows
        else:
            self.square()
            # what the first one brings is added to later: it is not to be the other's own
            squares = (other.xx, other.tx) if self.count else (other.xx.clone(), other.tx.clone())
            self._grow(other.count, other.mean_x, other.mean_t, *squares)
        self._move(other.count, other.mean_x, other.mean_t)

    def about(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the second moments about another point, sums: ``[groups, p, p]``, ``[groups, q, p]``."""
        step_x, step_t = self.mean_x - x, self.mean_t - t
        return (
            self.xx + self.count * step_x[..., :, None] * step_x[..., None, :],
            self.tx + self.count * step_t[..., :, None] * step_x[..., None, :],
        )

    def aim(self, weight: Tensor, kept: Tensor, covariance: bool) -> None:
        """Makes what the removed columns give to the outputs the target; of ``tx`` the kept columns are filled in.

        Args:
            weight: ``[groups, outputs, p]``, float64.
            kept: which columns stay, ``[groups, p]``.
            covariance: False for the targets' means alone.
        """
        lost = weight.masked_fill(kept[:, None], 0.0)
        self.mean_t = (lost @ self.mean_x[..., None])[..., 0]
        if not covariance:
            return
        if self.rows is not None:
            self.rows = [(x, torch.einsum("ngp,gqp->ngq", x, lost.to(x.dtype))) for x, _ in self.rows]
            return
        self._tx = torch.zeros_like(weight)
        for g, stays in enumerate(kept):
            self._tx[g][:, stays] = weight[g][:, ~stays] @ self._xx[g][~stays][:, stays]

    def samples(self, g: int, kept: Tensor, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the samples that are kept of one group's columns, about a point: ``[samples, kept]``, ``[samples, q]``.

        Args:
            g: the group.
            kept: flags, ``[p]``.
            x: the point, ``[groups, p]``.
            t: of the targets, ``[groups, q]``.
        """
        rows = self.rows or ()
        own, target = torch.cat([a[:, g][:, kept] for a, _ in rows]), torch.cat([b[:, g] for _, b in rows])
        return own.double() - x[g][kept], target.double() - t[g]

    def share(self, covariance: bool) -> None:
        """Takes in what other processes have seen of the same layer, as they do; of means alone without ``covariance``."""
        if world() == 1:
            return
        mine = self.count, self.rows is None, self.held is not None, self.mean_x.shape, self.mean_t.shape
        every = gathered(mine)
        if any(held for *_, held, _, _ in every):
            self.held = self.held or Moments(self.most)
            self.held.share(covariance)
        seen = [(shape_x, shape_t) for count, *_, shape_x, shape_t in every if count]
        if not seen:
            return
        if not self.count:
            self.mean_x, self.mean_t = (torch.zeros(shape, dtype=torch.float64) for shape in seen[0])
        total = sum(count for count, *_ in every)
        sums = summed(self.count * self.mean_x, self.count * self.mean_t)
        mean_x, mean_t = (each / total for each in sums)
        if covariance and total <= self.most and not any(squared for _, squared, *_ in every):
            self.rows = [pair for rows in gathered(self.rows) for pair in rows or ()]
        elif covariance:
            self.square()
            if not self.count:
                (p, columns), (_, q) = mean_x.shape, mean_t.shape
                self._xx, self._tx = mean_x.new_zeros(p, columns, columns), mean_x.new_zeros(p, q, columns)
            self._xx, self._tx = summed(*self.about(mean_x, mean_t))
        self.count, self.mean_x, self.mean_t = total, mean_x, mean_t

    def add_mean(self, x: Tensor) -> None:
        """Takes in a batch ``x[samples, groups, p]``, for ``mean_x`` alone."""
        mean, total = x.mean(dim=0, dtype=torch.float64), self.count + len(x)
        self.mean_x = mean if not self.count else self.mean_x + (mean - self.mean_x) * (len(x) / total)
        self.count = total

    def raw(self) -> None:
        """Turns centred moments into moments about zero (for a layer whose shift has no home)."""
        if self.rows is None:
            self._xx += self.count * self.mean_x[..., :, None] * self.mean_x[..., None, :]
            self._tx += self.count * self.mean_t[..., :, None] * self.mean_x[..., None, :]
        self.mean_x, self.mean_t = torch.zeros_like(self.mean_x), torch.zeros_like(self.mean_t)


def _squares(x: Tensor, t: Tensor, mean_x: Tensor, mean_t: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the squares about some means, ``[groups, p, p]`` and ``[groups, q, p]``, in the samples' own precision."""
    centred = (x - mean_x.to(x.dtype)).transpose(0, 1)  # [groups, samples, p]
    crossed = (t - mean_t.to(t.dtype)).permute(1, 2, 0).to(x.dtype) @ centred
    return own_products(centred), crossed
