"""Torch-Pruning on the same networks: DepGraph magnitude pruning to a share of the parameters.

It gets everything its own examples give it: the classifier is left alone, ViT's width is a multiple of its heads,
attention projections are declared with their numbers of heads, and sizes that a model keeps as plain attributes are
corrected by hand afterwards. None of that is told to fxprune. Each run is a process of its own with a time limit,
for its graph building may never end.

Run as ``python -m benchmarks.common.torch_pruning NAME...`` for a table by itself.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from . import ROOT, zoo


@dataclass(slots=True)
class PeerResult:
    """What came of one model; the seconds are those of the last, accepted, attempt."""

    name: str
    runs: bool = False  # pruned, and the forward pass at batch 1 and 3 works
    share: float | None = None  # parameters kept, of those the dense evaluation graph holds
    ratio: float | None = None  # the channel ratio that had to be searched for
    build_seconds: float | None = None  # dependency graph
    prune_seconds: float | None = None  # scores and slicing
    error: str = ""


def prune(
    name: str, share: float = 0.5, *, limit: float = 120.0, attempts: int = 6, threads: int = 2
) -> PeerResult:
    """Prunes one network of the zoo to at most ``share`` of its parameters, in a process with ``limit`` seconds."""
    command = [sys.executable, "-m", f"{__package__}.torch_pruning", "--worker", name]
    command += ["--share", str(share), "--attempts", str(attempts), "--threads", str(threads)]
    where = ROOT if __package__.startswith("benchmarks") else ROOT / "benchmarks"
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return PeerResult(name, error=f"no end within {limit:.0f} s")
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return PeerResult(**json.loads(line))
    last = (done.stderr.strip().splitlines() or ["no output"])[-1]
    return PeerResult(name, error=f"process ended with {done.returncode}: {last}"[:200])


def search(name: str, share: float, attempts: int) -> PeerResult:
    """Bisects the channel ratio until the parameters kept are at most ``share``, as close below it as tried."""
    dense = _build(name)
    base = sum(p.numel() for p in dense.parameters())
    best, low, high, ratio = PeerResult(name), 0.0, 1.0, 0.3
    for _ in range(attempts):
        attempt, kept = PeerResult(name, ratio=round(ratio, 4)), 1.0
        try:
            model = _attempt(copy.deepcopy(dense), zoo.ZOO[name], ratio, attempt)
            kept = sum(p.numel() for p in model.parameters()) / base
            attempt.share = round(kept, 4)
            _check(model, zoo.ZOO[name])
            attempt.runs = True
        except Exception as error:  # the peer fails in many ways, and each is a result
            attempt.error = f"{type(error).__name__}: {error}".replace("\n", " ")[:200]
            if attempt.share is None:
                return attempt
        if kept <= share:
            high = ratio
            best = attempt
        else:
            low = ratio
            best = best if best.share is not None and best.share <= share else attempt
        if share - 0.01 < kept <= share:
            break
        ratio = (low + high) / 2
    return best


def _build(name: str) -> nn.Module:
    model = zoo.ZOO[name].build()
    for head in ("aux1", "aux2", "AuxLogits", "aux_classifier"):  # not part of the evaluation graph
        if isinstance(getattr(model, head, None), nn.Module):
            setattr(model, head, None)
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
    if hasattr(model, "config"):
        model.config.use_cache = False
    return model


def _attempt(model: nn.Module, entry: zoo.Entry, ratio: float, result: PeerResult) -> nn.Module:
    import torch_pruning as tp

    example = entry.batch(1)
    heads, options = _declare(model)
    start = time.perf_counter()
    pruner = tp.pruner.MetaPruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=_classifiers(model),
        num_heads=heads,
        output_transform=lambda out: sum(leaf.sum() for leaf in zoo.tensors(out)),
        **options,
    )
    result.build_seconds = round(time.perf_counter() - start, 3)
    start = time.perf_counter()
    pruner.step()
    result.prune_seconds = round(time.perf_counter() - start, 3)
    _repair(model, pruner)
    return model


def _declare(model: nn.Module) -> tuple[dict[nn.Module, int], dict[str, Any]]:
    """Returns the numbers of heads that the user must declare, and options of the peer's own examples."""
    heads: dict[nn.Module, int] = {}
    config = getattr(model, "config", None)
    for module in model.modules():
        for part in ("query", "key", "value", "q_proj", "k_proj", "v_proj"):
            projection = getattr(module, part, None)
            if config is not None and isinstance(projection, nn.Linear):
                grouped = part in ("k_proj", "v_proj") and hasattr(config, "num_key_value_heads")
                heads[projection] = config.num_key_value_heads if grouped else config.num_attention_heads
        if isinstance(getattr(module, "to_qkv", None), nn.Linear):  # torchvision's MaxViT
            heads[module.to_qkv] = module.n_heads
    if hasattr(config, "num_key_value_heads"):  # its LLM example: heads go, head dimensions (rotary) stay
        return heads, {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
    if type(model).__name__ == "VisionTransformer":
        return heads, {"round_to": model.encoder.layers[0].num_heads}
    return heads, {}


def _classifiers(model: nn.Module) -> list[nn.Module]:
    outputs = (1000, 400, 200, 21, 10)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in outputs]
    layers += [
        m
        for m in model.modules()
        if isinstance(m, nn.Conv2d) and m.out_channels in outputs[:1] + outputs[3:4]
    ]
    return layers + ([model.pooler] if isinstance(getattr(model, "pooler", None), nn.Module) else [])


def _repair(model: nn.Module, pruner: Any) -> None:
    """Corrects, as the peer's examples do, the sizes that models keep as plain attributes."""
    if type(model).__name__ == "VisionTransformer":
        model.hidden_dim = model.conv_proj.out_channels
    for module in model.modules():
        if isinstance(getattr(module, "query", None), nn.Linear) and hasattr(module, "attention_head_size"):
            module.attention_head_size = module.query.out_features // module.num_attention_heads
            module.all_head_size = module.query.out_features
        q, k = getattr(module, "q_proj", None), getattr(module, "k_proj", None)
        if isinstance(q, nn.Linear) and isinstance(k, nn.Linear):
            if getattr(module, "num_key_value_groups", None) is None:
                module.head_dim = q.out_features // pruner.num_heads.get(q, 1)
            else:
                module.num_key_value_groups = q.out_features // max(1, k.out_features)


def _check(model: nn.Module, entry: zoo.Entry) -> None:
    with torch.no_grad():
        for count in (1, 3):
            out = zoo.tensors(zoo.call(model, entry.batch(count)))
            if not out or out[0].shape[0] != count:
                raise RuntimeError("the output has lost its shape")


def main() -> None:
    """Runs the worker for one model, or prints a table for several."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--worker")
    parser.add_argument("--share", type=float, default=0.5)
    parser.add_argument("--attempts", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit", type=float, default=120.0)
    options = parser.parse_args()
    if options.worker:
        warnings.simplefilter("ignore")
        torch.set_num_threads(options.threads)
        torch.manual_seed(0)
        print(json.dumps(asdict(search(options.worker, options.share, options.attempts))))
        return
    from .results import table

    rows = []
    for entry in zoo.select(options.models):
        rows.append(asdict(prune(entry.name, options.share, limit=options.limit)))
        print(rows[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
