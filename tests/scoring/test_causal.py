"""A causal language model is told each token from those before: its own loss, or the data, say so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxprune
from fxprune.data.batches import Batches
from fxprune.scoring.causal import causal_loss, is_causal, next_tokens
from fxprune.scoring.loss import IGNORED, default_loss

CLASSES = 7
TOKENS = torch.randint(0, CLASSES, (4, 6), generator=torch.Generator().manual_seed(0))


class Successor(nn.Module):
    """Knows that each token is followed by the next number; of labels it makes its own loss."""

    def __init__(self, shifts: bool, factor: float = 1.0) -> None:
        super().__init__()
        self.table = nn.Embedding(CLASSES, 8)
        self.head = nn.Linear(8, CLASSES)
        self.shifts, self.factor = shifts, factor

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.head(self.table(input_ids).relu())
        if labels is None:
            return {"logits": logits}
        if self.shifts:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        else:
            loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": self.factor * loss, "logits": logits}


class Silent(Successor):
    """Takes no labels."""

    def forward(self, input_ids: Tensor) -> Any:  # type: ignore[override]
        return super().forward(input_ids)


def batch(targets: Tensor, model: nn.Module | None = None) -> Any:
    return Batches([{"input_ids": TOKENS, "labels": targets}], device="cpu").first()


def test_targets_stand_where_the_scores_for_them_are() -> None:
    logits = torch.randn(4, 6, CLASSES)
    assert torch.equal(next_tokens(TOKENS)[:, :-1], TOKENS[:, 1:]) and (next_tokens(TOKENS)[:, -1] == IGNORED).all()
    want = functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
    torch.testing.assert_close(causal_loss({"logits": logits}, TOKENS), want)


def test_tokens_may_be_bytes() -> None:
    found = next_tokens(TOKENS.to(torch.uint8))
    assert found.dtype == torch.int64 and torch.equal(found, next_tokens(TOKENS))


def test_classes_lie_last_where_there_are_as_many_as_tokens() -> None:
    """A square of positions and classes is torch's [batch, classes, positions], unless it is of tokens or called ``logits``."""
    logits, targets = torch.randn(4, 6, 6), TOKENS % 6
    last = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(default_loss(logits, targets), functional.cross_entropy(logits, targets))
    torch.testing.assert_close(default_loss({"logits": logits}, targets), last)
    torch.testing.assert_close(default_loss(SimpleNamespace(logits=logits), targets), last)
    ahead = functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
    torch.testing.assert_close(causal_loss(logits, targets), ahead)
    maps = torch.randn(2, 4, 4, 4)  # of images the second, whatever they are called
    found = default_loss({"logits": maps}, torch.zeros(2, 4, 4, dtype=torch.long))
    torch.testing.assert_close(found, functional.cross_entropy(maps, torch.zeros(2, 4, 4, dtype=torch.long)))


@pytest.mark.parametrize("shifts", [True, False])
def test_the_models_own_loss_tells(shifts: bool) -> None:
    torch.manual_seed(0)
    model = Successor(shifts).eval()
    assert is_causal(model, batch(TOKENS)) is shifts
    assert is_causal(model, batch(torch.randint(0, CLASSES, (4, 6)))) is shifts


def test_without_a_loss_targets_that_are_the_inputs_tell() -> None:
    model, padded = Silent(True).eval(), TOKENS.clone()
    padded[0, 3:] = IGNORED
    assert is_causal(model, batch(TOKENS)) and is_causal(model, batch(padded))
    assert not is_causal(model, batch((TOKENS + 1) % CLASSES))
    assert not is_causal(model, batch(torch.full_like(TOKENS, IGNORED)))
    assert not is_causal(model, batch(TOKENS[:, 0]))  # a class for each text
    assert not is_causal(model, batch(TOKENS.float()))


def test_a_loss_of_another_kind_is_told() -> None:
    with pytest.warns(fxprune.FxpruneWarning, match=r"the model's own loss of these targets is .*pass loss="):
        assert is_causal(Successor(True, 3.0).eval(), batch(TOKENS))


def test_nothing_of_the_model_is_changed() -> None:
    model = Successor(True).train()
    model.calls = 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    is_causal(model, batch(TOKENS))
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_compile_differentiates_the_loss_of_the_next_token() -> None:
    """Scores of a gradient criterion are those of the shifted loss, given by hand."""
    torch.manual_seed(0)
    model, data = Successor(True).eval(), [{"input_ids": TOKENS, "labels": TOKENS}]
    chosen: dict[str, Any] = {"method": "taylor", "recover": None, "progress": False}
    found = fxprune.compile(model, data, 0.7, **chosen).plan
    assert found.keep == fxprune.compile(model, data, 0.7, loss=causal_loss, **chosen).plan.keep

    seen: list[Tensor] = []

    class Watching:
        name, needs, per_cost, defaults = "watching", ("gradients",), True, SimpleNamespace

        def score(self, context: Any) -> Any:
            logits = torch.randn(4, 6, CLASSES)
            seen.append(context.loss({"logits": logits}, TOKENS) - causal_loss(logits, TOKENS))
            seen.append(context.loss({"logits": logits}, TOKENS) - default_loss(logits, TOKENS))
            return {group.name: torch.rand(len(group.units)) for group in context.coupling.groups}

    Watching.defaults = {}  # type: ignore[assignment]
    fxprune.compile(model, data, 0.7, method=Watching(), recover=None, progress=False)
    assert seen[0] == 0 != seen[1]


def test_training_minimises_the_loss_of_the_next_token() -> None:
    """Sequences that count up: after training the next number is the best, not the number itself."""
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    ids = (torch.arange(6) + torch.arange(CLASSES)[:, None]) % CLASSES
    data = [{"input_ids": ids, "labels": ids}] * 40
    recipe = fxprune.Recipe(epochs=3, lr=0.05, optimizer="adamw")
    model = fxprune.compile(Silent(True).eval(), data[:1], 0.9, method="l2", recover=None, progress=False)
    found = fxprune.finetune(model, data, recipe=recipe, validation=data[:1], progress=False)
    assert model(ids)["logits"].argmax(-1).equal((ids + 1) % CLASSES)
    assert found.epochs[-1].metrics["accuracy"] == 1.0


LIBRARY = {
    "LlamaForCausalLM": True,
    "GPT2LMHeadModel": True,
    "BertForMaskedLM": False,
    "BertForTokenClassification": False,
}


@pytest.mark.parametrize("name", LIBRARY)
def test_models_of_transformers_say_it_themselves(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    kind = getattr(transformers, name)
    model = kind(kind.config_class(**sizes, num_labels=CLASSES, tie_word_embeddings=False)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    assert is_causal(model, batch(TOKENS)) is LIBRARY[name]
