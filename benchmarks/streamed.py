"""Past memory: language models with random weights, from files to files; the memory and the time that it takes by size.

The largest needs about 30 GB of disk. ``python benchmarks/streamed.py [--quick] [--sizes ...] [--folder DIR] [--rows FILE]``
"""

from __future__ import annotations

import multiprocessing
import resource
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common.cli import begin, guarded, name_of, parser, resumable
from common.free import FREE
from common.kept import Kept
from common.results import record
from safetensors.torch import save_file

import fxprune

#: Sequences, and tokens of each.
SEQUENCES, LENGTH, BATCH = 8, 512, 2


@dataclass(frozen=True)
class Size:
    """What a LLaMA is made of.

    Attributes:
        hidden: width of the stream.
        inner: width of the MLPs.
        layers: decoder layers.
        heads: of queries.
        groups: of keys and values.
        vocabulary: tokens.
    """

    hidden: int
    inner: int
    layers: int
    heads: int
    groups: int
    vocabulary: int = 32000


SIZES = {
    "tiny": Size(128, 344, 3, 4, 2, 500),
    "1.1B": Size(2048, 5632, 22, 32, 4),
    "3B": Size(3200, 8640, 26, 32, 32),
    "7B": Size(4096, 11008, 32, 32, 32),
    "70B, 8 of 80 layers": Size(8192, 28672, 8, 64, 8),
}


def empty(size: Size) -> torch.nn.Module:
    """Returns the model without weights."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.groups,
        vocab_size=size.vocabulary,
    )
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def write(size: Size, folder: Path, seed: int) -> None:
    """Writes random weights in bfloat16, a file for each GiB."""
    draw = torch.Generator().manual_seed(seed)
    part: dict[str, torch.Tensor] = {}
    names = list(empty(size).state_dict().items())
    for place, (name, like) in enumerate(names):
        values = torch.ones(like.shape) if like.dim() == 1 else torch.randn(like.shape, generator=draw) * 0.02
        part[name] = values.to(torch.bfloat16)
        if sum(tensor.nbytes for tensor in part.values()) > 1 << 30 or place == len(names) - 1:
            save_file(part, folder / f"weights-{place:04}.safetensors", metadata={"format": "pt"})
            part = {}


def row(size: Size, way: str, folder: Path, seed: int, threads: int) -> dict[str, Any]:
    """Returns what one compilation takes, in a process that does nothing else."""
    torch.set_num_threads(threads)
    model = empty(size)
    ids = torch.randint(size.vocabulary, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(seed))
    data = [{"input_ids": part} for part in ids.split(BATCH)]
    options: dict[str, Any] = {
        "method": "variance",
        "recover": "covariance",
        "ignore": ("*embed_tokens*", "*self_attn*"),
        "progress": False,
        "seed": seed,
    }
    _ = fxprune.compile, fxprune.load
    weights = folder / "*.safetensors"
    gigabytes = round(sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e9, 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    if way == "streamed":
        pruned = fxprune.compile(model, data, 0.8, weights=weights, out=folder / "out", **options, **FREE)
    else:
        from safetensors.torch import load_file

        model.to_empty(device="cpu")
        model.load_state_dict({k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()})
        model.model.rotary_emb.__init__(model.config)
        pruned = fxprune.compile(model, data, 0.8, verify_dtype=torch.float32, **options, **FREE)
        fxprune.save(pruned, folder / "out")
    seconds = time.perf_counter() - start
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (1 << 20)
    report = pruned.report
    stages = {f"{stage} s": round(report.seconds[stage], 1) for stage in ("check", "score", "recover", "verify")}
    certificate = report.certificate
    return {
        "weights GB": gigabytes,
        "parameters": report.params[0],
        "kept": round(report.params[1] / report.params[0], 4),
        "peak GiB over imports": round(peak, 2),
        **stages,
        "all s": round(seconds, 1),
        "verified": None if certificate is None else certificate.verified,
        "error": None if certificate is None else float(f"{certificate.max_error:.2g}"),
        "blocks": sum("blocks" in line for line in report.skipped),
    }


def apart(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Returns a row that was made in a process of its own, whose memory is that of one compilation."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, Any] = pool.apply(row, arguments)
    shutil.rmtree(arguments[2] / "out")
    return found


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--sizes", nargs="+", default=["1.1B", "3B", "7B"], choices=SIZES)
    made.add_argument("--in-memory", nargs="*", default=["1.1B"], help="sizes that are compiled in memory as well")
    made.add_argument("--folder", type=Path, help="where the weights go; by default the temporary folder")
    options = begin(made)
    sizes = ["tiny"] if options.quick else options.sizes
    kept = Kept(options.rows)
    for name in sizes:
        size, ways = SIZES[name], ["streamed", *(["in memory"] if name in options.in_memory or options.quick else [])]
        with tempfile.TemporaryDirectory(dir=options.folder) as text:
            folder = Path(text)
            if not all(kept.has({"model": name, "way": way}) for way in ways):
                write(size, folder, options.seed)
            for way in ways:
                arguments = size, way, folder, options.seed, options.threads
                kept.add({"model": name, "way": way}, partial(apart, arguments))
    notes = [
        f"{SEQUENCES} sequences of {LENGTH} random tokens in batches of {BATCH}; variance, covariance, 0.8 of the parameters, MLPs alone; "
        "memory_limit as it is (2 GiB); weights random, bfloat16.",
        "peak: of resident memory, mapped files included, over what the imports take; verified in float32, at two sizes.",
        "blocks: layers whose columns did not fit, and were cut.",
        "; ".join(f"{name}: {asdict(SIZES[name])}" for name in sizes),
        *kept.notes,
    ]
    print(
        record(
            name_of("streamed", options),
            kept.rows,
            title="Past memory: from files to files",
            seed=options.seed,
            notes=notes,
        )
    )


if __name__ == "__main__":
    guarded(main)
