"""Scores from masked forward passes: what the outputs lose when units are gone, one set of units after another."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx
from tqdm import tqdm

from fxprune._base.errors import ScorerError
from fxprune._base.names import fetch
from fxprune._base.ranks import own, rank, summed, world
from fxprune.algebra.channels import Ids
from fxprune.capturing.inputs import Flat
from fxprune.coupling.coupling import Coupling
from fxprune.scoring.engine.columns import flags_of
from fxprune.scoring.engine.gradients import batch_size, batched_inputs
from fxprune.scoring.engine.suffix import Suffix
from fxprune.scoring.scorer import Context

#: ``measure(dense outputs, masked outputs)``: a sum over the samples of a batch.
Measure: TypeAlias = Callable[[Any, Any], float]

#: For each group's name sets of its units (positions in ``group.units``) that are masked together.
UnitSets: TypeAlias = Mapping[str, Sequence[Ids]]

#: Samples that share a pass; on a CPU fewer, so that the widest value of a pass stays within so many bytes of cache.
_ROWS = 512
_CACHE = 4 << 20


@torch.no_grad()
def masked_scores(context: Context, sets: UnitSets, measure: Measure, name: str) -> dict[str, Tensor]:
    """Returns what masking each set does to the outputs, summed over all samples: for each group ``[sets]``.

    A set without which a statistic has nothing left to go over has infinity.

    Nothing of the model is computed twice for a batch but what lies behind the mask. Where ``context.cache_dir`` is
    given, every group's scores on every batch are on disk as soon as they are known, and are read back if model, sets,
    ``name`` and data are the same: an interrupted run goes on with the very same numbers.

    Args:
        context: coupling, data, limits.
        sets: what to mask.
        measure: compares the outputs, structured as the model's own.
        name: of the method and its options, for the file and the progress bar.
    """
    coupling = context.coupling
    suffix = Suffix(coupling)
    groups = {group.name: group for group in coupling.groups}
    ids = {n: [coupling.units[groups[n].units[s]] for s in parts] for n, parts in sets.items()}
    cones = {n: suffix.cone(np.concatenate(parts)) for n, parts in ids.items() if len(parts)}
    wanted = {node for cone in cones.values() for node in cone.frontier}
    suffix.rows = _rows(suffix, context.memory_limit)
    store = _Store.of(context, sets, name if world() == 1 else f"{name} {rank()} of {world()}")
    unflatten = coupling.captured.call.unflatten
    totals = {n: torch.zeros(len(parts), dtype=torch.float64) for n, parts in sets.items()}
    effort = {n: (cone.weight or 1) * len(ids[n]) for n, cone in cones.items()}
    with _bar(context, name, sum(effort.values())) as bar:
        for number, (flat, share) in enumerate(_chunks(context, suffix, wanted)):
            known = store.read(number, flat)
            samples = batch_size(coupling, flat)
            dense: dict[fx.Node, Any] = {}
            for group, cone in cones.items():
                if group not in known:
                    dense = dense or suffix.dense(flat, wanted)
                    whole = unflatten(dense[cone.nodes[-1]])
                    masks = [flags_of(coupling, part) for _, part in own(ids[group])]
                    possible = [suffix.possible(mask) for mask in masks]
                    outputs = suffix.masked(cone, list(compress(masks, possible)), dense, samples)
                    losses = (measure(whole, unflatten(output)) for output in outputs)
                    known[group] = [next(losses) if one else float("inf") for one in possible]
                    store.write(number, group, known[group])
                totals[group][rank() :: world()] += torch.tensor(known[group], dtype=torch.float64)
                bar.update(round(effort[group] * share))
    return dict(zip(totals, summed(*totals.values()), strict=True))


def spread(coupling: Coupling, sets: UnitSets, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a finite score for each unit, ``[units]``, from one for each set, ``[sets]``; a unit in no set has zero."""
    found = {}
    finite = [float(score[score.isfinite()].max()) for score in scores.values() if score.isfinite().any()]
    highest = max(finite, default=0.0) + 1.0
    for group in coupling.groups:
        values = torch.zeros(len(group.units), dtype=torch.float64)
        for part, value in zip(sets.get(group.name, ()), scores.get(group.name, ()), strict=True):
            values[torch.from_numpy(part)] = float(value) if value.isfinite() else highest
        found[group.name] = values
    return found


def _rows(suffix: Suffix, memory_limit: int) -> int:
    """Returns how many samples may share a pass behind the mask: four of the widest values in a quarter of the limit."""
    widest = max(1, *(suffix.bytes([node]) for node in suffix.graph.nodes))
    best = max(1, _CACHE // widest) if suffix.device.type == "cpu" else _ROWS
    return max(1, min(best, _ROWS, memory_limit // 16 // widest))


def _chunks(context: Context, suffix: Suffix, wanted: set[fx.Node]) -> Iterator[tuple[Flat, float]]:
    """Yields the batches, cut where the values kept of one would take more than half of the limit, and their share."""
    most = max(1, context.memory_limit // 2 // max(suffix.bytes(wanted), 1))
    most = min(most, suffix.rows) if suffix.device.type == "cpu" else most
    batched = batched_inputs(context.coupling)
    for flat in context.inputs:
        samples = batch_size(context.coupling, flat)
        if suffix.prime == 1 or samples <= most:
            yield flat, 1.0
            continue
        for start in range(0, samples, most):
            part = [x[start : start + most] if cut else x for x, cut in zip(flat, batched, strict=True)]
            yield part, min(most, samples - start) / samples


def _bar(context: Context, name: str, effort: int) -> Any:
    try:
        total: int | None = len(context.inputs) * effort
    except TypeError:
        total = None
    hidden = not context.progress or None  # None: only where there is no terminal
    return tqdm(total=total, desc=f"fxprune score {name}", leave=False, unit="MAC", unit_scale=True, disable=hidden)


class _Store:
    """Scores of groups on batches, a line each, written as they come; a line cut short is as if it were not there."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[tuple[int, str, str], list[float]] = {}
        self._digest = ""
        if path is not None and path.exists():
            self._read(path)

    @classmethod
    def of(cls, context: Context, sets: UnitSets, name: str) -> _Store:
        """Returns the store of this model, these sets and this method.

        Raises:
            ScorerError: the folder cannot be made.
        """
        if context.cache_dir is None:
            return cls(None)
        try:
            context.cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ScorerError(f"cache_dir: {context.cache_dir} cannot be made: {error}") from error
        return cls(context.cache_dir / f"{name.split('(')[0]}-{_fingerprint(context.coupling, sets, name)}.jsonl")

    def read(self, number: int, flat: Flat) -> dict[str, list[float]]:
        """Returns what is known about a batch; it is the current one from now on."""
        if self._path is None:
            return {}
        self._digest = _digest(flat)
        return {g: s for (n, d, g), s in self._known.items() if (n, d) == (number, self._digest)}

    def write(self, number: int, group: str, scores: Sequence[float]) -> None:
        """Keeps a group's scores on the current batch."""
        if self._path is None:
            return
        body = json.dumps([number, self._digest, group, [float(score).hex() for score in scores]])
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{_checksum(body)} {body}\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            check, _, body = line.partition(" ")
            if _checksum(body) == check:
                number, digest, group, scores = json.loads(body)
                self._known[number, digest, group] = [float.fromhex(score) for score in scores]
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")  # what was cut short stays apart from what comes


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(flat: Flat) -> str:
    found = hashlib.sha256()
    for leaf in flat:
        found.update(f"{leaf.dtype} {tuple(leaf.shape)}".encode())
        found.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _fingerprint(coupling: Coupling, sets: UnitSets, name: str) -> str:
    """Returns what tells models, weights, sets and methods apart."""
    found = hashlib.sha256(f"{name}\n{coupling}\n{coupling.captured.module.code}".encode())
    for node in coupling.captured.module.graph.nodes:
        if node.op == "get_attr" and isinstance(value := fetch(coupling.captured.module, str(node.target)), Tensor):
            found.update(_digest([value]).encode())
    for group, parts in sets.items():
        found.update(f"{group} {[part.tolist() for part in parts]}".encode())
    return found.hexdigest()[:16]
