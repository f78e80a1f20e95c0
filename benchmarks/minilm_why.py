"""Why a mean shift loses on all-MiniLM-L6-v2: what each recovery does to the embeddings, and whose mean it takes.

Half of the MLP units are gone. Needs what minilm.py needs. ``python benchmarks/minilm_why.py [--quick]``
"""

from __future__ import annotations

from typing import Any

import torch
from common import minilm
from common.cli import begin, guarded, name_of, needs, parser
from common.free import FREE
from common.results import record
from torch import Tensor, nn

import fxprune

CLS, SEP = 101, 102
RATIOS = {"*intermediate.dense": 0.5, "default": 0.0}


def offset(dense: Tensor, pruned: Tensor) -> dict[str, float]:
    """Splits the change of the embeddings [n, hidden] into an offset common to all sentences and the rest.

    Returns the squared length of the mean change, and the mean squared length of what is left of the change. The
    cosine of two sentences feels the first as a vector added to both; a rank correlation feels the second.
    """
    change = pruned - dense
    common = change.mean(0)
    return {"common": float(common.square().sum()), "rest": float((change - common).square().sum(1).mean())}


@torch.no_grad()
def why(model: nn.Module, variants: dict[str, nn.Module], count: int | None) -> list[dict[str, Any]]:
    """Shows what each recovery does to the embeddings: the mean cosine of unrelated pairs, offset, and the rest.

    ``centred`` is Spearman's correlation once the mean embedding is subtracted: it tells whether a common offset
    is to blame for what a recovery loses.
    """
    from scipy.stats import spearmanr

    first, second, score = minilm.pairs("test", count)
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

    def run(self, how: str, constant: str, seed: int, count: int | None) -> dict[str, Any]:
        """Returns one line: which units go, and which tokens the mean that stands for them is taken over."""
        generator, hooks = torch.Generator().manual_seed(seed), []
        for layer, values in zip(self.layers, self.values, strict=True):
            weight = layer.weight.square().sum(0)
            worth = values.var(0) * weight if how == "variance" else torch.rand(len(weight), generator=generator)
            gone = worth.argsort()[: len(worth) // 2]
            rows = values[self.content] if constant == "content tokens" else values
            fill = rows[:, gone].mean(0) * (constant != "nothing")
            hooks.append(
                layer.register_forward_pre_hook(
                    lambda _, given, gone=gone, fill=fill: (
                        given[0].clone().index_copy_(-1, gone, fill.expand(*given[0].shape[:-1], -1)),
                    )
                )
            )
        line = {"criterion": how, "mean over": constant, "spearman": round(minilm.spearman(self.model, count=count), 4)}
        for hook in hooks:
            hook.remove()
        return line


def main() -> None:
    """Prints and records the two tables."""
    options = begin(parser(__doc__.splitlines()[0]))
    needs("scipy")
    model = minilm.encoder()
    few, pairs = (32, 32) if options.quick else (512, None)
    calibration = minilm.calibration(few)
    with torch.no_grad():
        masked = Masked(model, calibration)
        means = [
            masked.run(how, constant, options.seed, pairs)
            for how in ("variance", "random")
            for constant in ("nothing", "all tokens", "content tokens")
        ]
    notes = [
        "The units' inputs are replaced by a constant: nothing (zero), or their mean over all tokens, which is VBP's mean "
        "shift, or over the tokens that are neither [CLS] nor [SEP]. Those two are a fifth of all tokens; units that they "
        "alone excite have a mean that fits no other token."
    ]
    title = "Whose mean: MiniLM with half of the MLP units replaced by a constant"
    print(record(name_of("minilm-tokens", options), means, title=title, seed=options.seed, notes=notes))
    variants: dict[str, nn.Module] = {
        f"variance, {recover or 'none'}": fxprune.compile(
            model,
            minilm.calibration(2048 if recover == "covariance" and not options.quick else few),
            ratios=RATIOS,
            recover=recover,
            seed=options.seed,
            progress=False,
            **FREE,
        )
        for recover in (None, "mean_shift", "covariance")
    }
    title = "What the recoveries do to MiniLM's embeddings (variance, 50 % of the MLP units)"
    print(record(name_of("minilm-why", options), why(model, variants, pairs), title=title, seed=options.seed))


if __name__ == "__main__":
    guarded(main)
