"""Pruned models of three kinds, and what their files must give."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from tests.models.libraries import transformer, vit
from tests.models.small import Residual
from tests.support.weights import randomise

Call = tuple[tuple[Any, ...], dict[str, Tensor]]
MODELS = ("cnn", "vit", "bert")


def images(batch: int, size: int = 8) -> Call:
    return (torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(batch)),), {}


def texts(batch: int, length: int = 10) -> Call:
    generator = torch.Generator().manual_seed(batch)
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, length // 2 :] = 0
    return (), {"input_ids": torch.randint(0, 40, (batch, length), generator=generator), "attention_mask": mask}


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "cnn":
        return Residual()
    if name == "vit":
        return vit(num_layers=1)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    return transformer("BertForSequenceClassification", num_hidden_layers=1, **sizes)


def call_of(name: str, batch: int, length: int = 10) -> Call:
    return texts(batch, length) if name == "bert" else images(batch, 16 if name == "vit" else 8)


@functools.cache
def pruned_of(name: str) -> nn.Module:
    """Returns a model without a third of its parameters, compiled once."""
    args, kwargs = call_of(name, 4)
    model = randomise(model_of(name), 0, args, kwargs).eval()
    pruned = fxprune.compile(model, [kwargs or args[0]], 0.67, method="l2", recover=None, progress=False)
    assert fxprune.report(pruned).verified
    return pruned


def outputs_of(model: Any, call: Call) -> list[Tensor]:
    with torch.no_grad():
        return pytree.tree_leaves(model(*call[0], **call[1]))


def assert_equal(model: Any, file: Any, call: Call) -> None:
    expected, got = outputs_of(model, call), outputs_of(file, call)
    assert len(expected) == len(got) == 1
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=1e-4 * float(expected[0].abs().max()))


def session_of(path: Path) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*args: Tensor, **kwargs: Tensor) -> list[Tensor]:
        names = [entry.name for entry in session.get_inputs()]
        given = kwargs or dict(zip(names, args, strict=True))
        arrays = session.run(None, {name: given[name].numpy() for name in names})
        return [torch.from_numpy(array) for array in arrays]

    return run
