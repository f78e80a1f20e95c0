"""Torch-Pruning on the same networks: DepGraph magnitude pruning to a share of the parameters.

It gets everything its own examples give it: the classifier is left alone, ViT's width is a multiple of its heads,
attention projections are declared with their numbers of heads, and sizes that a model keeps as plain attributes are
corrected by hand afterwards. None of that is told to fxprune. Each run is a process of its own with a time limit,
for its graph building may never end.

In the folder of the benchmarks, run ``python -m common.torch_pruning NAME...`` for a table by itself; names are those of the
benchmark tables, or, with a colon, those of the coverage table (``timm:resnet18``).
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
from .resized import runs_at_other_sizes


@dataclass(slots=True)
class PeerResult:
    """What came of one model; the seconds are those of the last, accepted, attempt."""

    name: str
    runs: bool = False  # pruned, and the forward pass at batch 1 and 3 works
    share: float | None = None  # parameters kept, of those the dense evaluation graph holds
    ratio: float | None = None  # the channel ratio that had to be searched for
    build_seconds: float | None = None  # dependency graph
    prune_seconds: float | None = None  # scores and slicing
    sizes: str = ""  # at how many of two other sizes it runs
    trains: str = ""  # yes; why not; or that the original does not
    error: str = ""


def prune(name: str, share: float = 0.5, *, limit: float = 120.0, attempts: int = 6, threads: int = 2) -> PeerResult:
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
    dense = _dense(name)
    base = sum(p.numel() for p in dense.model.parameters())
    best, low, high, ratio = PeerResult(name), 0.0, 1.0, 0.3
    for _ in range(attempts):
        attempt, kept = PeerResult(name, ratio=round(ratio, 4)), 1.0
        try:
            model = _attempt(copy.deepcopy(dense.model), dense, ratio, attempt)
            kept = sum(p.numel() for p in model.parameters()) / base
            attempt.share = round(kept, 4)
            if [dense.shapes(model, call) for call in dense.calls] != dense.wanted:
                raise RuntimeError("the output has lost its shape")  # noqa: TRY301 - a failure like the others
            attempt.runs, attempt.sizes = True, runs_at_other_sizes(dense.model, model, dense.calls[0])
            attempt.trains = _trains(dense.model, model, dense.calls[0])
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


def theirs(share: float, name: str) -> dict[str, Any]:
    """Returns what Torch-Pruning makes of a model in a few attempts, as a worker gives it back."""
    torch.manual_seed(0)
    try:
        return asdict(search(name, share, attempts=4))
    except Exception as error:  # the peer fails in many ways, and each is a result
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def line(found: dict[str, Any], share: float) -> dict[str, Any]:
    """Returns its part of a line."""
    spent = [found[key] for key in ("build_seconds", "prune_seconds") if found.get(key) is not None]
    kept, runs = found.get("share"), found.get("runs", False)
    reached = runs and kept is not None and kept <= share
    return {
        "Torch-Pruning": "runs" if reached else "misses the budget" if runs else "fails",
        "its kept": kept,
        "its s": round(sum(spent), 2) if spent else None,
        "its sizes": found.get("sizes"),
        "it trains": found.get("trains"),
        "its error": found.get("error", ""),
    }


def _trains(model: nn.Module, pruned: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> str:
    """Returns whether a pruned model trains for a step where the original does; outputs alone are asked for."""

    def step(net: nn.Module) -> str:
        net = copy.deepcopy(net).train()
        try:
            outputs = zoo.tensors(net(*call[0], **call[1]))
            torch.stack([out.float().sum() for out in outputs if out.requires_grad]).sum().backward()
        except Exception as error:  # of any library
            return f"{type(error).__name__}: {error}".replace("\n", " ")[:100]
        return "yes"

    return f"original: {own}" if (own := step(model)) != "yes" else step(pruned)


@dataclass(frozen=True)
class _Dense:
    """A network before pruning.

    Attributes:
        model: the network.
        calls: (args, kwargs) that the pruned one must take; the first is the example that it is traced with.
        outputs: the layers that make the results: their channels stay.
    """

    model: nn.Module
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    outputs: list[nn.Module]
    wanted: list[list[tuple[int, ...]]]

    @staticmethod
    def shapes(model: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> list[tuple[int, ...]]:
        """Returns the shapes of all results of a call."""
        with torch.no_grad():
            return [tuple(out.shape) for out in zoo.tensors(model(*call[0], **call[1]))]


def _dense(name: str) -> _Dense:
    if ":" in name:
        from .architectures import select  # which takes a while

        found = select(names=[name])[0].build()
        model, calls = found.model, [(found.args, dict(found.kwargs))]
    else:
        entry = zoo.select([name])[0]
        model = entry.build()
        batches = [entry.batch(count) for count in (1, 3)]
        calls = [((), batch) if isinstance(batch, dict) else ((batch,), {}) for batch in batches]
    for head in ("aux1", "aux2", "AuxLogits", "aux_classifier"):  # not part of the evaluation graph
        if isinstance(getattr(model, head, None), nn.Module):
            setattr(model, head, None)
    if hasattr(model, "aux_logits"):
        model.aux_logits = False
    if hasattr(model, "config"):
        model.config.use_cache = False
    return _Dense(model, calls, _last_layers(model, *calls[0]), [_Dense.shapes(model, call) for call in calls])


def _last_layers(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[nn.Module]:
    """Returns the layers whose output is a result of the model as it stands."""
    made: dict[int, nn.Module] = {}

    def note(layer: nn.Module, _: Any, output: torch.Tensor) -> None:
        made[output.data_ptr()] = layer

    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        results = zoo.tensors(model(*args, **kwargs))
    for hook in hooks:
        hook.remove()
    return [made[out.data_ptr()] for out in results if out.data_ptr() in made]


def _attempt(model: nn.Module, dense: _Dense, ratio: float, result: PeerResult) -> nn.Module:
    import torch_pruning as tp

    args, kwargs = dense.calls[0]
    names = dict(dense.model.named_modules())
    last = [model.get_submodule(name) for name, module in names.items() if any(module is m for m in dense.outputs)]
    heads, options = _declare(model)
    start = time.perf_counter()
    pruner = tp.pruner.MetaPruner(
        model,
        kwargs or (args[0] if len(args) == 1 else args),
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[*_classifiers(model), *last],
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
        if isinstance(getattr(module, "to_qkv", None), nn.Linear) and hasattr(
            module, "n_heads"
        ):  # torchvision's MaxViT
            heads[module.to_qkv] = module.n_heads
        if isinstance(getattr(module, "qkv", None), nn.Linear) and isinstance(getattr(module, "num_heads", None), int):
            heads[module.qkv] = module.num_heads  # timm
    if hasattr(config, "num_key_value_heads"):  # its LLM example: heads go, head dimensions (rotary) stay
        return heads, {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": 0.5}
    if type(model).__name__ == "VisionTransformer" and hasattr(model, "encoder"):  # torchvision's
        return heads, {"round_to": model.encoder.layers[0].num_heads}
    return heads, {}


def _classifiers(model: nn.Module) -> list[nn.Module]:
    outputs = (1000, 400, 200, 21, 10)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in outputs]
    layers += [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels in outputs[:1] + outputs[3:4]]
    return layers + ([model.pooler] if isinstance(getattr(model, "pooler", None), nn.Module) else [])


def _repair(model: nn.Module, pruner: Any) -> None:
    """Corrects, as the peer's examples do, the sizes that models keep as plain attributes."""
    if type(model).__name__ == "VisionTransformer" and hasattr(model, "encoder"):  # torchvision's
        model.hidden_dim = model.conv_proj.out_channels
    for module in model.modules():
        if isinstance(getattr(module, "query", None), nn.Linear) and hasattr(module, "attention_head_size"):
            module.attention_head_size = module.query.out_features // module.num_attention_heads
            module.all_head_size = module.query.out_features
        if isinstance(getattr(module, "qkv", None), nn.Linear) and module.qkv in pruner.num_heads:
            module.num_heads = pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
        q, k = getattr(module, "q_proj", None), getattr(module, "k_proj", None)
        if isinstance(q, nn.Linear) and isinstance(k, nn.Linear):
            if getattr(module, "num_key_value_groups", None) is None:
                module.head_dim = q.out_features // pruner.num_heads.get(q, 1)
            else:
                module.num_key_value_groups = q.out_features // max(1, k.out_features)


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
    for name in options.models or list(zoo.ZOO):
        rows.append(asdict(prune(name, options.share, limit=options.limit)))
        print(rows[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
