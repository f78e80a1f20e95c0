"""What each of several processes does that train together; run by `tests.support.processes.spawned`."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import fxprune
from fxprune.training import Recipe
from tests.support.processes import Told

SGD = Recipe(epochs=3, lr=0.1, optimizer="sgd", weight_decay=1e-3, clip_norm=0.5)
ADAMW = Recipe(epochs=2, lr=0.01, warmup=0.5, label_smoothing=0.1)


class Network(nn.Module):
    """A classifier with a frozen layer, and a head that nothing reaches."""

    def __init__(self, *, normed: bool = False) -> None:
        super().__init__()
        self.body, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16) if normed else nn.LayerNorm(16)
        self.frozen, self.head, self.unused = nn.Linear(16, 16), nn.Linear(16, 3), nn.Linear(16, 2)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.frozen(F.relu(self.norm(self.body(x)))))
        return y


def network(seed: int = 0, **kinds: Any) -> Network:
    torch.manual_seed(seed)
    return Network(**kinds)


def language() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 8), nn.Tanh(), nn.Linear(8, 9))


def drawn(sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Returns batches of one set of 24 samples."""
    draw = torch.Generator().manual_seed(1)
    x, y = torch.randn(24, 6, generator=draw), torch.randint(3, (24,), generator=draw)
    return list(zip(x.split(sizes), y.split(sizes), strict=True))  # type: ignore[no-untyped-call]


def texts(sizes: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
    """Returns tokens, many of which do not count; of the first sequences none does."""
    ids = torch.randint(9, (24, 5), generator=torch.Generator().manual_seed(2))
    labels = torch.where(torch.arange(24)[:, None] % 5 > torch.arange(5), ids, -100)
    labels[:6] = -100
    return list(zip(ids.split(sizes), labels.split(sizes), strict=True))  # type: ignore[no-untyped-call]


#: The batches of two processes, the last round of which has but one, and those of one process that sees each round at once.
SIZES = {1: (10, 8, 6), 2: (6, 4, 5, 3, 6)}

WAYS = ("sgd", "adamw", "distilled", "tokens", "values", "own loss", "retrain", "dataset", "bf16")


def trained(way: str, processes: int) -> dict[str, Any]:
    """Returns what comes of a way to train: losses, metrics, weights."""
    sizes, model, train = SIZES[processes], network(), fxprune.finetune
    data: Any = drawn(sizes)
    options: dict[str, Any] = {"recipe": SGD, "validation": drawn((7, 17))}
    if way in ("adamw", "distilled"):
        options["recipe"] = ADAMW
    if way == "distilled":
        options |= {"teacher": network(1), "distill_weight": 0.3}
    elif way == "tokens":
        model, data, options["validation"] = language(), texts(sizes), None
    elif way == "values":
        data, options["validation"] = [(x, x[:, :3]) for x, _ in data], None
    elif way == "own loss":
        options["loss"] = _own
    elif way == "retrain":
        train = fxprune.retrain
    elif way == "dataset":
        whole = drawn((24,))[0]
        data, options["batch_size"] = TensorDataset(*whole), 8 // processes
    elif way == "bf16":
        options["mixed_precision"] = "bf16"
    history = train(model, data, progress=False, **options)
    return {
        "loss": [epoch.loss for epoch in history.epochs],
        "lr": [epoch.lr for epoch in history.epochs],
        "metrics": [dict(history.before), *(dict(epoch.metrics) for epoch in history.epochs)],
        "weights": {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        "gradients": any(parameter.grad is not None for parameter in model.parameters()),
    }


def _own(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.multi_margin_loss(outputs, targets)


def together(rank: int) -> dict[str, Any]:
    """Returns what each way gives; and of a model with batch norm, what it holds, wrapped and not."""
    found: dict[str, Any] = {way: trained(way, 2) for way in WAYS}
    for way in ("norm", "wrapped"):
        model = network(normed=True)
        wrapped = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True) if way == "wrapped" else model
        fxprune.finetune(wrapped, drawn(SIZES[2]), recipe=SGD, progress=False)
        found[way] = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return found


def failing(rank: int) -> dict[str, Any]:
    """Returns what each process is told, and after how long, where one of them fails or is not like the other."""
    told = Told()

    def attempt(name: str, model: nn.Module, data: Any, **options: Any) -> None:
        told.attempt(name, lambda: fxprune.finetune(model, data, **{"recipe": SGD, "progress": False, **options}))

    def fails(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if rank == 1 and len(calls) == 3:
            raise RuntimeError("out of luck")
        return F.cross_entropy(outputs, targets)

    calls: list[int] = []
    model = network()
    attempt("one fails", model, drawn(SIZES[2]), loss=fails)
    told.found["after it"] = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    attempt("other data", network(), [(x + rank, y) for x, y in drawn(SIZES[2])])
    attempt("other length", network(), drawn((12, 12))[: 1 + rank])
    attempt("other weights", network(rank), drawn(SIZES[2]))
    attempt("other teacher", network(), drawn(SIZES[2]), teacher=network(rank + 1))
    attempt("other recipe", network(), drawn(SIZES[2]), lr=0.1 * (rank + 1))
    samples = TensorDataset(*drawn((24,))[0])
    attempt("shared out before", network(), DataLoader(samples, 4, sampler=DistributedSampler(samples)))
    return told.found


def sharded(rank: int) -> str:
    """Returns what is told of a model that is sharded."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = network().requires_grad_(True)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    try:
        fxprune.finetune(model, drawn(SIZES[2]), recipe=SGD, progress=False)
    except fxprune.FxpruneError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


class Killed:
    """Trains with checkpoints; one of the processes is killed in the second epoch, unless there is a file that says that it was."""

    def __init__(self, folder: Path, *, kill: bool) -> None:
        self.folder, self.kill = folder, kill

    def __call__(self, rank: int) -> dict[str, Any]:
        model, calls = network(), []

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            calls.append(1)
            if (
                self.kill and rank == 1 and len(calls) == 1 + 2 + 2
            ):  # a first look, an epoch of two rounds, and one of the second
                os.kill(os.getpid(), signal.SIGKILL)
            return F.cross_entropy(outputs, targets)

        history = fxprune.finetune(
            model,
            drawn(SIZES[2]),
            recipe=ADAMW,
            label_smoothing=0.0,
            epochs=4,
            loss=loss,
            checkpoint_dir=self.folder,
            progress=False,
        )
        weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        return {"loss": [epoch.loss for epoch in history.epochs], "resumed": history.resumed_at, "weights": weights}
