"""Several processes: the same plan, how much faster, and the bytes that each of them sends.

Needs the shared data folder. ``python benchmarks/processes.py [--quick] [--worlds 1 2 4 8]``
"""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import cifar
from common.cli import begin, guarded, name_of, parser
from common.free import FREE
from common.resnet_cifar import resnet
from common.results import record
from torch import distributed as dist
from torch import multiprocessing

import fxprune

#: What is compiled: a criterion, a recovery, images, and the depth of the ResNet.
WORK: dict[str, tuple[str, str | None, int, int]] = {
    "covariance statistics": ("magnitude", "covariance", 2048, 56),
    "SPvR's ranking": ("spvr", None, 32, 56),
}
_QUICK: dict[str, tuple[str, str | None, int, int]] = {"covariance statistics": ("magnitude", "covariance", 256, 20)}


def compiled(name: str, quick: bool, seed: int) -> dict[str, Any]:
    """Returns the seconds of the two stages that are shared out, and what comes of them."""
    method, recover, count, depth = (_QUICK if quick else WORK)[name]
    batches = cifar.batches(*cifar.train_set(count), size=max(count // 16, 4))
    pruned = fxprune.compile(
        resnet(depth),
        batches,
        0.5,
        method=method,
        recover=recover,
        verify=False,
        seed=seed,
        progress=False,  # type: ignore[arg-type]
        **FREE,
    )
    assert pruned.plan is not None
    seconds = pruned.report.seconds
    weights = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    return {"score": seconds["score"], "recover": seconds["recover"], "plan": pruned.plan.keep, "weights": weights}


def process(rank: int, world: int, port: int, folder: str, name: str, quick: bool, seed: int) -> None:
    """Is one of the processes; leaves what it found, and what it gave to the others, in a file."""
    torch.set_num_threads(1)
    sent = [0]
    if world > 1:
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=world)
        reduce, gather = dist.all_reduce, dist.all_gather_object

        def all_reduce(tensor: torch.Tensor, **options: Any) -> Any:
            sent[0] += 2 * tensor.nbytes * (world - 1) // world  # a ring: reduced in parts, and the parts handed round
            return reduce(tensor, **options)

        def all_gather_object(found: list[Any], value: Any, **options: Any) -> Any:
            sent[0] += len(pickle.dumps(value)) * (world - 1)
            return gather(found, value, **options)

        dist.all_reduce, dist.all_gather_object = all_reduce, all_gather_object
    found = compiled(name, quick, seed)
    torch.save({**found, "sent": sent[0]}, Path(folder) / f"{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def row(
    name: str, world: int, quick: bool, seed: int, one: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the line of so many processes beside that of one, and what the first process found."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
        free.close()
        multiprocessing.spawn(process, (world, port, folder, name, quick, seed), nprocs=world)
        every = [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]
    first = every[0]
    alone = one or first
    spent = {stage: max(found[stage] for found in every) for stage in ("score", "recover")}
    apart = max(float((first["weights"][n].double() - t.double()).abs().max()) for n, t in alone["weights"].items())
    line = {
        "work": name,
        "processes": world,
        "score s": round(spent["score"], 2),
        "recover s": round(spent["recover"], 2),
        "times as fast": round((alone["score"] + alone["recover"]) / sum(spent.values()), 2),
        "MB sent by each": round(first["sent"] / 1e6, 2),
        "same plan": all(found["plan"] == alone["plan"] for found in every),
        "weights apart": float(f"{apart:.1e}"),
    }
    print(line, flush=True)
    return line, first


def main() -> None:
    """Prints and records the table."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--worlds", nargs="+", type=int, default=[1, 2, 4, 8], help="how many processes; the first is 1")
    options = begin(made)
    rows = []
    for name in _QUICK if options.quick else WORK:
        one = None
        for world in [1, 2] if options.quick else options.worlds:
            line, found = row(name, world, options.quick, options.seed, one)
            one = one or found
            rows.append(line)
    notes = [
        "Each process has one thread; of more processes than cores the times say nothing. Stages that are shared out alone: capture, coupling, "
        "solving and emission take each process as long as one.",
        "MB sent: of payloads, in an all-reduce 2 (n - 1) / n times their size, in an all-gather (n - 1) times.",
        "ResNet-56, CIFAR-10, half of the parameters: covariance from 2,048 images; SPvR on 32.",
    ]
    print(
        record(
            name_of("processes", options),
            rows,
            title="Several processes at one compilation",
            seed=options.seed,
            notes=notes,
        )
    )


if __name__ == "__main__":
    guarded(main)
