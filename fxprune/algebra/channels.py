"""Channels: the smallest things that can be removed, as a vectorised union-find with refinement.

A *channel* is a class of ids that must go together. A *label* is a row of ids padded with zeros: the coordinate that
carries it disappears if and only if any of its channels is removed (a boolean OR). Id 0 is "never", so ``(a, 0)`` is
``(a)`` and the empty label is fixed for good. An id may be *refined* to a label: it then stands for that OR.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: Kinds of channel, weakest first; a class has the strongest kind of its members. Which heads are kv_groups, the parameters tell.
KINDS = ("channel", "head_dim", "head", "kv_group", "expert", "block")
NEVER_ROOT = 0


class Channels:
    """A growing store of channel ids: unite, refine, freeze and relate them; queries resolve lazily."""

    def __init__(self) -> None:
        self._n = 1
        self._parent = np.zeros(1024, np.int64)
        self._why = np.full(1024, -1, np.int32)  # reason that froze a root, -1 while it is live
        self._refined = np.full(1024, -1, np.int64)  # row of the pool that a root stands for
        self._kind = np.zeros(1024, np.int8)
        self._pool: Ids = np.zeros((0, 2), np.int64)
        self._reasons: list[str] = ["fixed"]
        self._reason_index: dict[str, int] = {"fixed": 0}
        self._why[0] = 0

    def __len__(self) -> int:
        """Returns the number of ids handed out, id 0 included."""
        return self._n

    def fresh(self, count: int, kind: str = "channel") -> Ids:
        """Returns ``count`` new live ids, ``[count]``."""
        start, end = self._n, self._n + count
        while end > len(self._parent):
            self._grow()
        ids = np.arange(start, end, dtype=np.int64)
        self._parent[start:end] = ids
        self._kind[start:end] = KINDS.index(kind)
        self._n = end
        return ids

    def _grow(self) -> None:
        extra = len(self._parent)
        self._parent = np.concatenate([self._parent, np.zeros(extra, np.int64)])
        self._why = np.concatenate([self._why, np.full(extra, -1, np.int32)])
        self._refined = np.concatenate([self._refined, np.full(extra, -1, np.int64)])
        self._kind = np.concatenate([self._kind, np.zeros(extra, np.int8)])

    # -- queries ------------------------------------------------------------------------------------------------

    def find(self, ids: Ids) -> Ids:
        """Returns the root of each id, ``[...]`` as given, compressing the paths it walked."""
        roots: Ids = self._parent[ids]
        while True:
            above = self._parent[roots]
            if np.array_equal(above, roots):
                break
            roots = above
        self._parent[ids] = roots
        return roots

    def resolve(self, labels: Ids) -> Ids:
        """Returns labels ``[n, k']`` of live root ids: refinements expanded, frozen ids and repeats set to 0.

        Columns keep their meaning (a column is never shifted within a row); columns of zeros are dropped.
        """
        rows = self.find(labels)
        while True:
            cells = self._refined[rows]
            if (cells < 0).all():
                break
            widths = [self._pool.shape[1] if (cells[:, j] >= 0).any() else 1 for j in range(rows.shape[1])]
            wide = np.zeros((len(rows), sum(widths)), np.int64)
            at = 0
            for j, width in enumerate(widths):
                wide[:, at] = rows[:, j]
                if width > 1:
                    hit = cells[:, j] >= 0
                    wide[hit, at : at + width] = self._pool[cells[hit, j]]
                at += width
            rows = self.find(wide)
            rows = rows[:, rows.any(axis=0)]
        rows = np.where(self._why[rows] >= 0, NEVER_ROOT, rows)
        for j in range(1, rows.shape[1]):
            repeated = (rows[:, :j] == rows[:, j : j + 1]).any(axis=1)
            rows[repeated, j] = NEVER_ROOT
        kept: Ids = rows[:, rows.any(axis=0)]
        return kept

    def leaves(self, ids: Ids) -> Ids:
        """Returns the distinct roots, ``[roots]``, that ``ids`` ``[...]`` stand for, frozen ones included."""
        rows = np.unique(self.find(ids.reshape(-1)))
        while (cells := self._refined[rows]).max(initial=-1) >= 0:
            expanded = self._pool[cells[cells >= 0]].reshape(-1)
            rows = np.unique(np.concatenate([rows[cells < 0], self.find(expanded)]))
        return rows

    def reason(self, ids: Ids) -> str | None:
        """Returns why the first frozen id among ``ids``, ``[...]``, is frozen, or None if all of them are live."""
        why = self._why[self.leaves(ids[ids > 0])] if ids.size and ids.any() else self._why[:1]
        why = why[why >= 0]
        return self._reasons[int(why[0])] if why.size else None

    def kinds(self) -> npt.NDArray[np.int8]:
        """Returns for each id that is a root the index in KINDS of the strongest member of its class, ``[ids]``."""
        kinds = np.zeros(self._n, np.int8)
        np.maximum.at(kinds, self.find(np.arange(self._n, dtype=np.int64)), self._kind[: self._n])
        return kinds

    # -- changes ------------------------------------------------------------------------------------------------

    def mark(self, labels: Ids, kind: str) -> None:
        """Raises the kind of every live channel in ``labels``, ``[n, k]``, to ``kind``."""
        ids = np.unique(self.resolve(labels))
        ids = ids[ids > 0]
        self._kind[ids] = np.maximum(self._kind[ids], KINDS.index(kind))

    def freeze(self, labels: Ids, reason: str) -> None:
        """Makes every channel in ``labels``, ``[n, k]``, permanent."""
        ids = np.unique(self.resolve(labels))
        self._why[ids[ids > 0]] = self._reason(reason)

    def _reason(self, text: str) -> int:
        if text not in self._reason_index:
            self._reason_index[text] = len(self._reasons)
            self._reasons.append(text)
        return self._reason_index[text]

    def _freeze_rows(self, rows: Ids, source: Ids, reason: str) -> None:
        """Freezes the live ids in each row, for the reason that froze ``source``'s row or, if none, for ``reason``."""
        why = np.full(len(rows), self._reason(reason), np.int32)
        if source.shape[1]:
            inherited = self._why[self.find(source)].max(axis=1)
            why = np.where(inherited > 0, inherited, why)
        ids = rows.reshape(-1)
        live = ids > 0
        self._why[ids[live]] = np.repeat(why, rows.shape[1])[live]

    def unite(self, a: Ids, b: Ids) -> None:
        """Makes each pair of live leaf ids, ``[n]`` each, one channel; the smaller root stays."""
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            low, high = np.minimum(a, b), np.maximum(a, b)
            order = np.argsort(-low, kind="stable")  # of several partners the smallest is written last
            self._parent[high[order]] = low[order]
            self._kind[low] = np.maximum(self._kind[low], self._kind[high])

    def _refine(self, ids: Ids, labels: Ids) -> None:
        width = max(self._pool.shape[1], labels.shape[1])
        rows = [np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in (self._pool, labels)]
        self._refined[ids] = len(self._pool) + np.arange(len(ids))
        self._pool = np.concatenate(rows)

    def join(self, ids: Ids, others: Ids) -> None:
        """Makes each live leaf id (``[n]``) stand for a new one of its kind or its other: it goes alone or with that."""
        new = self.fresh(len(ids))
        self._kind[new] = self.kinds()[ids]
        self._refine(ids, np.stack([new, others], axis=1))

    def relate(self, a: Ids, b: Ids, reason: str) -> None:
        """Makes label row ``a[i]`` mean the same as ``b[i]`` for every i.

        Shared ids cancel; then nothing against ids freezes them, one id against one unites, one id against several
        refines it (only where it is not itself among them, which cancelling rules out), equally many unite in order,
        and any other pair of labels unites all its ids: coarse, but never wrong.

        Args:
            a: label rows ``[n, ka]``.
            b: label rows ``[n, kb]``.
            reason: why the ids of ``a`` freeze where the label of ``b`` is empty, or the other way round.
        """
        while len(a):
            left, right = _cancel(self.resolve(a), self.resolve(b))
            n_left, n_right = (left > 0).sum(axis=1), (right > 0).sum(axis=1)
            empty = (n_left == 0) | (n_right == 0)
            if empty.any():
                for rows, source in ((left, b), (right, a)):
                    self._freeze_rows(rows[empty], source[empty], reason)
                a, b = a[~empty], b[~empty]
                continue
            single = (n_left == 1) & (n_right == 1)
            if single.any():
                self.unite(left[single, 0], right[single, 0])
                a, b = a[~single], b[~single]
                continue
            refining = (n_left == 1) | (n_right == 1)
            if refining.any():
                done = self._refine_some(left, right, n_left, refining)
                a, b = np.delete(a, done, axis=0), np.delete(b, done, axis=0)
                continue
            equal = n_left == n_right
            width = min(left.shape[1], right.shape[1])
            for j in range(width):
                live = equal & (left[:, j] > 0) & (right[:, j] > 0)
                self.unite(left[live, j], right[live, j])
            every = np.concatenate([left[~equal], right[~equal]], axis=1)
            first = np.repeat(every[:, :1], every.shape[1], axis=1)
            self.unite(first[every > 0], every[every > 0])
            return

    def _refine_some(self, left: Ids, right: Ids, n_left: Ids, refining: Mask) -> Ids:
        """Refines as many single ids as is safe at once; returns the rows that are done (at least one)."""
        rows = np.flatnonzero(refining)
        from_left = n_left[rows] == 1
        width = max(left.shape[1], right.shape[1])
        pad_left, pad_right = (np.pad(m, ((0, 0), (0, width - m.shape[1])))[rows] for m in (left, right))
        ids = np.where(from_left, pad_left[:, 0], pad_right[:, 0])
        targets = np.where(from_left[:, None], pad_right, pad_left)
        _, first = np.unique(ids, return_index=True)  # an id may be refined once only; its other rows come again
        safe = first[~np.isin(ids[first], targets)]  # and no id may be refined while another's target holds it
        chosen = safe if len(safe) else np.zeros(1, np.int64)
        self._refine(ids[chosen], targets[chosen])
        done: Ids = rows[chosen]
        return done


def _cancel(left: Ids, right: Ids) -> tuple[Ids, Ids]:
    """Drops from both rows the ids they share, and moves what is left to the front."""
    if left.shape[1] and right.shape[1]:
        shared = left[:, :, None] == right[:, None, :]
        left = np.where(shared.any(axis=2), NEVER_ROOT, left)
        right = np.where(shared.any(axis=1), NEVER_ROOT, right)
    return _to_front(left), _to_front(right)


def _to_front(rows: Ids) -> Ids:
    if rows.shape[1] < 2:
        return rows
    front: Ids = np.take_along_axis(rows, np.argsort(rows == NEVER_ROOT, axis=1, kind="stable"), axis=1)
    return front
