"""Rotation: which architectures give streams of channels in another basis and stay the same, and what stands in the way of the others.

Each model is built small and gets random calibrated weights (tests/support/weights.py), as in `zoo.py`.
``python benchmarks/rotation.py [--collections ...] [--models ...] [--limit S] [--rows FILE] [--quick]``
"""

from __future__ import annotations

import warnings
from functools import cache, partial
from typing import Any

from common.architectures import select
from common.cli import begin, guarded, name_of, parser, resumable
from common.kept import Kept
from common.results import record
from common.worker import Worker

import fxprune
from fxprune.rotation.rotating import EXACT, rotated
from tests.support.weights import randomise


@cache
def table() -> dict[str, Any]:
    """Returns the models by name."""
    return {entry.name: entry for entry in select()}


def turned(seed: int, name: str) -> dict[str, Any]:
    """Returns which streams of a model turn, how far it is from the same, and why others do not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            call = table()[name].build()
            randomise(call.model, seed, call.args, dict(call.kwargs))
            captured = fxprune.capture(call.model, call.args, call.kwargs)
            coupling = fxprune.couple(captured)
            names = [
                key for key, _ in (*call.model.named_parameters(remove_duplicate=False), *call.model.named_buffers())
            ]
            inputs = [captured.call.flatten(call.args, call.kwargs)]
            found = rotated(coupling, coupling.groups, inputs, names)
    except (fxprune.FxpruneError, ArithmeticError) as error:
        return {"why": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:200]}
    sizes = {group.name: len(group.units) for group in coupling.groups}
    return {
        "streams": len(found.streams),
        "channels": sum(sizes[stream] for stream in found.streams),
        "apart": found.error if found.streams else None,
        "untied": sum(key in captured.ties for key in found.tensors),
        "why": "; ".join(f"{key}: {reason}" for key, reason in list(found.refused.items())[:2] if not found.streams)[
            :200
        ],
    }


def main() -> None:
    """Prints and records the table; ends with 1 if a model is not the same in another basis."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--collections", nargs="+", help="torchvision, timm, transformers, written")
    made.add_argument("--models", nargs="+", help="names, such as timm:deit_tiny_patch16_224")
    made.add_argument("--limit", type=float, default=300.0, help="seconds a model may take")
    options = begin(made)
    if options.quick:
        options.models = options.models or ["transformers:llama"]
    worker, kept = Worker(partial(turned, options.seed), options.threads, options.limit), Kept(options.rows)
    for entry in select(options.collections, options.models):
        kept.add(
            {"collection": entry.collection, "model": entry.name.partition(":")[2]}, partial(row, worker, entry.name)
        )
    exact = sum(bool(each["streams"]) and each["apart"] <= EXACT for each in kept.rows)
    notes = [
        f"{exact} of {len(kept.rows)} models have streams that turn, all exact. Channels: of these streams. Apart: the outputs in "
        f"float64, as a share of the largest, limit {EXACT:g}. Untied: names of tied tensors that are read in two bases.",
        "Why: of models of which none turns, what stands in the way of the first two groups.",
        *kept.notes,
    ]
    title = "Rotation: streams in another basis, the model the same"
    print(record(name_of("rotation", options), kept.rows, title=title, seed=options.seed, notes=notes))
    raise SystemExit(any("ArithmeticError" in (each["why"] or "") for each in kept.rows))


def row(worker: Worker, name: str) -> dict[str, Any]:
    """Returns the values of a line."""
    found = worker(name)
    values = {key: found.get(key) for key in ("streams", "channels", "apart", "untied")}
    return {**values, "why": found.get("why") or found.get("error") or ""}


if __name__ == "__main__":
    guarded(main)
