"""What is killed in `kills.py`: work of a second or a few, each with what lies there before it and what tells its result."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import fxprune

SEQUENCES, LENGTH, VOCABULARY = 8, 32, 200


@dataclass(frozen=True)
class Work:
    """One kind of work.

    Attributes:
        prepare: makes what is there before, in an empty folder.
        do: does it, ``do(folder, rank)``; called again it goes on or begins anew. Returns what tells its result.
        state: says in words what lies in the folder, with what tells it: of each thing that is whole. It raises where one is not.
        processes: that do it together.
        share: of the kills that are asked for: more where each takes little.
    """

    prepare: Callable[[Path], None]
    do: Callable[[Path, int], str]
    state: Callable[[Path], dict[str, str]]
    processes: int = 1
    share: float = 1.0


def told(tensors: Iterable[Tensor]) -> str:
    """Returns what tells tensors from others, to the bit."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def told_of(model: nn.Module) -> str:
    """Returns what tells a model's tensors from others'."""
    return told(model.state_dict().values())


def _nothing(folder: Path) -> None:
    """Leaves the folder empty."""


# -- from files to files ------------------------------------------------------------------------------------------


def _language(*, empty: bool) -> nn.Module:
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCABULARY
    )
    torch.manual_seed(0)
    with torch.device("meta" if empty else "cpu"):
        model: nn.Module = transformers.LlamaForCausalLM(config)
    return model.eval()


def _shards(folder: Path) -> None:
    _language(empty=False).save_pretrained(folder / "in", max_shard_size="200KB")  # type: ignore[operator]


def _streamed(folder: Path, rank: int) -> str:
    ids = torch.randint(VOCABULARY, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))
    data = [{"input_ids": part} for part in ids.split(2)]
    budget = fxprune.Budget(params=0.8, of="model.layers*")
    pruned = fxprune.compile(
        _language(empty=True), data, budget, weights=folder / "in" / "*.safetensors", out=folder / "out", progress=False
    )
    assert fxprune.report(pruned).verified
    return _artifacts(folder)["out"]


def _artifacts(folder: Path) -> dict[str, str]:
    """Returns what tells each artifact in the folder; `fxprune.load` checks them."""
    found = {
        name: folder / name
        for name in ("out",)
        if (folder / name).exists() or (folder / f".{name}.fxprune-previous").exists()
    }
    return {name: told_of(fxprune.load(path)) for name, path in found.items()}


# -- compiled, saved, exported ------------------------------------------------------------------------------------


def _network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 48, 3, padding=1),
        nn.BatchNorm2d(48),
        nn.ReLU(),
        nn.Conv2d(48, 96, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(96, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).eval()


def _images(count: int) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, 16, 16, generator=draw), torch.arange(8)) for _ in range(count)]


def _compiled(folder: Path, rank: int) -> str:
    pruned = fxprune.compile(
        _network(), _images(12), 0.6, method="taylor", recover="sequential", cache_dir=folder / "cache", progress=False
    )
    if rank == 0:
        fxprune.save(pruned, folder / "out")
    return told_of(pruned)


def _small(seed: int) -> fxprune.PrunedModule:
    return fxprune.compile(_network(seed), _images(1), 0.6, method="l2", recover=None, verify=False, progress=False)


def _saved_before(folder: Path) -> None:
    for seed, name in enumerate(("new", "out")):
        fxprune.save(_small(seed), folder / name)


def _saved(folder: Path, rank: int) -> str:
    pruned = fxprune.load(folder / "new")
    for _ in range(3):
        fxprune.save(pruned, folder / "out")
    return told_of(pruned)


def _exported_before(folder: Path) -> None:
    fxprune.save(_small(0), folder / "new")
    fxprune.export(_small(1), folder / "net.onnx")


def _exported(folder: Path, rank: int) -> str:
    fxprune.export(fxprune.load(folder / "new"), folder / "net.onnx")
    return _files(folder)["net.onnx"]


def _files(folder: Path) -> dict[str, str]:
    """Returns what tells the outputs of the exported file."""
    import onnxruntime

    if not (path := folder / "net.onnx").exists():
        return {}
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: _images(1)[0][0].numpy()})
    return {"net.onnx": told(map(torch.from_numpy, found))}


# -- trained ------------------------------------------------------------------------------------------------------


def _trained(folder: Path, rank: int) -> str:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 256), nn.LayerNorm(256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    x, y = torch.randn(400, 64), torch.randint(10, (400,))
    fxprune.finetune(
        model,
        list(zip(x.split(32), y.split(32), strict=True)),
        epochs=6,
        checkpoint_dir=folder / "kept",
        progress=False,
    )  # type: ignore[no-untyped-call]
    return told_of(model)


def _checkpoints(folder: Path) -> dict[str, str]:
    """Returns what tells the weights of the checkpoint."""
    from safetensors.torch import load_file

    path = folder / "kept" / "checkpoint.safetensors"
    return (
        {"kept": told(t for n, t in sorted(load_file(path).items()) if n.startswith("weights/"))}
        if path.exists()
        else {}
    )


WORKS: dict[str, Work] = {
    "streamed": Work(_shards, _streamed, _artifacts, share=0.6),
    "compiled, 2 processes": Work(_nothing, _compiled, _artifacts, 2, share=0.2),
    "trained": Work(_nothing, _trained, _checkpoints, share=2.0),
    "trained, 2 processes": Work(_nothing, _trained, _checkpoints, 2),
    "saved over": Work(_saved_before, _saved, _artifacts, share=0.5),
    "exported over": Work(_exported_before, _exported, _files, share=0.3),
}
