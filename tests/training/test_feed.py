"""Data in any form, metrics of the user's own, other precisions, and the table of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.training import History, feed, finetune
from fxprune.training.feed import feed_of
from fxprune.training.together import whole_rounds
from tests.support.training import ADAMW, SGD, net, pairs


@pytest.mark.slow
def test_distillation_alone_needs_no_targets() -> None:
    student, teacher = net(1), net(2)
    inputs = [x for x, _ in pairs(32)]
    history = finetune(student, inputs, teacher=teacher, recipe=SGD, epochs=8, validation=inputs, progress=False)
    assert history.epochs[-1].metrics["loss"] < 0.5 * history.before["loss"]
    assert set(history.before) == {"loss"}


@pytest.mark.slow
def test_metrics_are_the_users_and_stay_as_they_are() -> None:
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

    given = {"top2": MulticlassAccuracy(3, top_k=2, average="micro"), "f1": MulticlassF1Score(3)}
    model = net()
    history = finetune(model, pairs(), recipe=SGD, epochs=1, validation=pairs(), metrics=given, progress=False)
    model.eval().requires_grad_(False)
    logits, classes = (torch.cat(parts) for parts in zip(*[(model(x), y) for x, y in pairs()], strict=True))
    expected = (logits.topk(2).indices == classes[:, None]).any(1).float().mean()
    assert history.epochs[0].metrics["top2"] == pytest.approx(float(expected))
    assert history.epochs[0].metrics["loss"] == pytest.approx(float(F.cross_entropy(logits, classes)), rel=1e-5)
    assert set(history.before) == {"loss", "top2", "f1"}
    assert given["top2"].update_count == 0
    with pytest.raises(ValueError, match=r"metric 'MulticlassAccuracy': expected one number, got \[3\]"):
        finetune(
            net(), pairs(), recipe=SGD, validation=pairs(), metrics=MulticlassAccuracy(3, average=None), progress=False
        )


def test_other_forms_of_data() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(7, 5), nn.Linear(5, 7)

        def forward(self, ids: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"logits": self.head(self.table(ids) * scale[:, None, None])}

    labels = torch.tensor([[1, 2, -100], [3, 4, 5]])
    batch = {"ids": torch.tensor([[0, 1, 2], [2, 3, 4]]), "scale": torch.ones(2), "labels": labels}
    model = Tokens()
    history = finetune(model, [batch] * 4, recipe=ADAMW, lr=0.1, epochs=8, validation=[batch], progress=False)
    assert history.epochs[-1].metrics["accuracy"] == 1.0  # of the five labels that count

    class Endless:  # no len(): the rate moves once an epoch
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            yield from [batch] * 3

    history = finetune(Tokens(), Endless(), recipe=SGD, progress=False)
    assert [epoch.lr for epoch in history.epochs] == pytest.approx([0.05, 0.0375, 0.0125])

    draw = torch.randn(20, 3)
    pairs = [(draw, draw[:, :2])]
    values = finetune(nn.Linear(3, 2), pairs, recipe=ADAMW, lr=0.1, epochs=60, validation=pairs, progress=False)
    assert values.epochs[-1].metrics["loss"] < 0.02 * values.before["loss"]


def test_bf16_trains_float32_weights_nearly_alike() -> None:
    plain, model = net(), net()
    expected = finetune(plain, pairs(), recipe=SGD, progress=False)
    found = finetune(model, pairs(), recipe=SGD, mixed_precision="bf16", progress=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert "forward" not in vars(model)
    losses = [[epoch.loss for epoch in history.epochs] for history in (found, expected)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[0] != losses[1]


def test_history_is_a_table() -> None:
    history = finetune(net(), pairs(), recipe=SGD, epochs=2, validation=pairs(), progress=False)
    lines = str(history).splitlines()
    assert " ".join(lines[0].split()) == "epoch training loss validation loss validation accuracy lr seconds"
    assert [line.split()[0] for line in lines[2:]] == ["before", "1", "2"]
    assert History.from_dict(history.to_dict(), "here").epochs == history.epochs


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8])
def test_metrics_of_a_causal_model_have_the_tokens_that_its_loss_has(dtype: torch.dtype) -> None:
    """The perplexity is the exponential of the loss; tokens may be bytes."""
    from torchmetrics.text import Perplexity

    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
    ids = torch.randint(9, (4, 9))
    data, perplexity = [(ids, ids.to(dtype))], Perplexity(ignore_index=-100)
    found = finetune(model, data, recipe=SGD, epochs=1, validation=data, metrics={"p": perplexity}, progress=False)
    expected = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
    assert found.epochs[-1].metrics == pytest.approx({"loss": expected, "p": math.exp(expected)}, rel=1e-5)


def test_synchronised_batch_norm_leaves_out_a_round_that_is_not_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    found = feed_of([torch.ones(2, 3)] * 5, device=torch.device("cpu"), batch_size=1, shuffle=False)
    assert not whole_rounds(nn.BatchNorm1d(3)) and whole_rounds(nn.Sequential(nn.SyncBatchNorm(3)))
    monkeypatch.setattr(feed, "world", lambda: 2)
    assert found.steps == len(list(found.rounds())) == 3
    assert replace(found, whole=True).steps == len(list(replace(found, whole=True).rounds())) == 2
