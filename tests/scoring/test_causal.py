"""A causal language model is told each token from those before: its own loss, or the data, say so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import fxprune
from fxprune.data.batch import Batch
from fxprune.data.batches import Batches
from fxprune.scoring.causal import causal_loss, is_causal, next_tokens, own_shift, telling, told_tokens
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


class Looking(Silent):
    """Each output depends on all tokens, as in an encoder; takes no labels."""

    def forward(self, input_ids: Tensor) -> Any:  # type: ignore[override]
        hidden = self.table(input_ids)
        return {"logits": self.head((hidden + hidden.mean(1, keepdim=True)).relu())}


class Returning(nn.Module):
    """Returns logits and its own loss in a form of its own, as models written by hand do."""

    def __init__(self, within: Successor, form: str) -> None:
        super().__init__()
        self.within, self.form = within, form

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        found = self.within(input_ids, labels)
        forms = {"loss first": ("loss", "logits"), "loss last": ("logits", "loss"), "loss alone": ("loss",)}
        if labels is None:
            return found["logits"]
        values = tuple(found[key] for key in forms[self.form])
        return values if len(values) > 1 else values[0]


def batch(targets: Tensor, model: nn.Module | None = None) -> Any:
    return Batches([{"input_ids": TOKENS, "labels": targets}], device="cpu").first()


def asked(model: nn.Module, one: Batch) -> bool:
    return is_causal(model, one, own_shift(model, one))


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
    assert asked(model, batch(TOKENS)) is shifts
    assert asked(model, batch(torch.randint(0, CLASSES, (4, 6)))) is shifts


@pytest.mark.parametrize("shifts", [True, False])
@pytest.mark.parametrize("form", ["loss first", "loss last", "loss alone"])
def test_a_loss_is_read_in_whatever_form_it_is_returned(form: str, shifts: bool) -> None:
    torch.manual_seed(0)
    model = Returning(Successor(shifts), form).eval()
    assert asked(model, batch(TOKENS)) is asked(model, batch((3 * TOKENS + 1) % CLASSES)) is shifts


@pytest.mark.parametrize("shifts", [True, False])
def test_labels_in_the_call_are_no_input_that_they_repeat(shifts: bool) -> None:
    """Their loss is read as the call gives it, be they there by name or by place."""
    torch.manual_seed(0)
    model, other = Successor(shifts).eval(), (3 * TOKENS + 1) % CLASSES
    for labels in (TOKENS, other):
        data: Any = [{"input_ids": TOKENS, "labels": labels}]
        named = Batches(data, device="cpu", forward_args=lambda b: ((), b)).first()
        placed = Batches(data, device="cpu", forward_args=lambda b: ((b["input_ids"], b["labels"]), {})).first()
        assert asked(model, named) is asked(model, placed) is shifts
    assert not is_causal(model, Batches([{"input_ids": other, "labels": TOKENS}], device="cpu").first(), None)


def test_a_model_is_asked_where_there_are_no_targets() -> None:
    unlabelled = Batches([{"input_ids": TOKENS}], device="cpu").first()
    assert [own_shift(Successor(shifts).eval(), unlabelled) for shifts in (True, False)] == [True, False]
    assert own_shift(Silent(True), unlabelled) is None
    assert own_shift(Successor(True, 3.0).eval(), unlabelled) is None  # without a warning: nothing was to be compared


def test_the_first_batch_whose_targets_count_tells() -> None:
    ignored = torch.full_like(TOKENS, IGNORED)
    prompt = ignored.clone()
    prompt[:, 0] = TOKENS[:, 0]  # no next token counts
    data = [{"input_ids": TOKENS, "labels": labels} for labels in (ignored, prompt, TOKENS)]
    for among, place in ((data, 2), (data[:2], 0), (data[::-1], 0)):
        batches = Batches(among, device="cpu")
        assert torch.equal(telling(batches, batches.first()).targets, among[place]["labels"])
    values = Batches([(TOKENS.float(), torch.ones(4))] * 2, device="cpu")
    first = values.first()
    assert telling(values, first) is first


def test_without_a_loss_outputs_that_depend_on_later_tokens_tell() -> None:
    """An autoencoder has its targets in their own places, whatever of its inputs they equal."""
    model, before = Looking(True).train(), torch.get_rng_state()
    assert not asked(model, batch(TOKENS)) and not asked(model, batch(TOKENS.to(torch.uint8)))
    assert model.training and torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("model", [Successor(True), Silent(True), Looking(True)])
def test_half_precision_of_hardly_trained_weights_is_enough(model: Successor) -> None:
    """The two losses may differ by less than rounding, and outputs move by less than a step of the largest: neither is guessed from."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.05)
    model.bfloat16().eval()
    assert asked(model, batch(TOKENS)) is not isinstance(model, Looking)


def test_a_loss_that_is_both_tells_nothing() -> None:
    """Scores that are all alike: what the data say is left."""
    model = Successor(False).eval()
    nn.init.zeros_(model.head.weight), nn.init.zeros_(model.head.bias)
    assert own_shift(model, batch(TOKENS)) is None


def test_a_mask_is_no_tokens() -> None:
    """Targets that are all of one class equal any mask; a tagger that reads from left to right has them in place."""

    class Tagger(Silent):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:  # type: ignore[override]
            return super().forward(input_ids)

    data = [{"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), "labels": torch.ones_like(TOKENS)}]
    assert not asked(Tagger(True).eval(), Batches(data, device="cpu").first())


def test_without_a_loss_targets_that_are_the_inputs_tell() -> None:
    model, padded = Silent(True).eval(), TOKENS.clone()
    padded[0, 3:] = IGNORED
    assert asked(model, batch(TOKENS)) and asked(model, batch(padded))
    assert not asked(model, batch((TOKENS + 1) % CLASSES))
    assert not asked(model, batch(torch.full_like(TOKENS, IGNORED)))
    assert not asked(model, batch(TOKENS[:, 0]))  # a class for each text
    assert not asked(model, batch(TOKENS.float()))


def test_a_loss_of_another_kind_is_told() -> None:
    with pytest.warns(fxprune.FxpruneWarning, match=r"the model's own loss of these targets is .*pass loss="):
        assert asked(Successor(True, 3.0).eval(), batch(TOKENS))


def test_nothing_of_the_model_is_changed() -> None:
    model = Successor(True).train()
    model.calls = 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    asked(model, batch(TOKENS))
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
    ignored = [{"input_ids": TOKENS, "labels": torch.full_like(TOKENS, IGNORED)}]
    for batches in (data, ignored + data):
        fxprune.compile(model, batches, 0.7, method=Watching(), recover=None, progress=False)
        assert seen[-2] == 0 != seen[-1]


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("form", ["graph", "module"])
def test_the_report_keeps_what_the_model_has_said(form: str, steps: int, tmp_path: Any) -> None:
    """A graph makes no loss; what it was made of did, whether or not there were labels to ask it about."""
    data = [{"input_ids": TOKENS}]
    chosen: dict[str, Any] = {"method": "l2", "recover": None, "progress": False, "form": form, "steps": steps}
    for shifts in (True, False):
        found = fxprune.compile(Successor(shifts).eval(), data, 0.9, **chosen)
        fxprune.save(found, tmp_path / f"{shifts}")
        loaded = fxprune.load(tmp_path / f"{shifts}", Successor(shifts))
        other = batch((3 * TOKENS + 1) % CLASSES)
        assert found.report.shifts is loaded.report.shifts is shifts
        assert asked(found, other) is asked(loaded, other) is shifts
    assert fxprune.compile(Silent(True).eval(), data, 0.9, **chosen).report.shifts is None


def test_training_takes_the_loss_that_the_report_tells() -> None:
    """Labels that are not the tokens of the input: a graph is trained as the model would be, with a teacher or without."""
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    model, labels = Successor(True).eval(), (3 * TOKENS + 1) % CLASSES
    data = [{"input_ids": TOKENS, "labels": labels}]
    chosen: dict[str, Any] = {"recipe": fxprune.Recipe(epochs=1, lr=1e-9), "validation": data, "progress": False}
    for teacher in (None, Successor(True)):
        graph = fxprune.compile(model, [{"input_ids": TOKENS}], 0.9, method="l2", recover=None, progress=False)
        found = fxprune.finetune(graph, data, teacher=teacher, **chosen)
        assert found.before["loss"] == pytest.approx(causal_loss(graph(TOKENS), labels).item(), rel=1e-4)


def test_training_of_tags_that_equal_a_segment_takes_their_own_places() -> None:
    """All of a batch is untagged, and all its segments are 0: that is no causal model."""
    pytest.importorskip("accelerate")

    class Tagger(Looking):
        def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Any:  # type: ignore[override]
            return super().forward(input_ids + 0 * token_type_ids)

    for tags in (torch.zeros_like(TOKENS), (torch.arange(6) > 2).long().expand(4, 6)):
        data = [{"input_ids": TOKENS, "token_type_ids": tags, "labels": tags}]
        graph = fxprune.compile(Tagger(True).eval(), data, 0.9, method="l2", recover=None, progress=False)
        recipe = fxprune.Recipe(epochs=1, lr=1e-9)
        found = fxprune.finetune(graph, data, recipe=recipe, validation=data, progress=False)
        assert found.before["loss"] == pytest.approx(default_loss(graph(TOKENS, tags), tags).item(), rel=1e-4)


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
    """Be the labels in the call, kept out of it, or none."""
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
    data = [{"input_ids": TOKENS, "labels": TOKENS}]
    within = Batches(data, device="cpu", forward_args=lambda b: ((), b)).first()
    alone = Batches(TOKENS, device="cpu").first()
    assert asked(model, batch(TOKENS)) is asked(model, within) is own_shift(model, alone) is LIBRARY[name]


def test_an_encoder_and_decoder_compares_labels_in_their_places() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"d_model": 16, "d_ff": 24, "d_kv": 8, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)).eval()
    data = [{"input_ids": TOKENS, "labels": TOKENS}]
    assert not asked(model, Batches(data, device="cpu", forward_args=lambda b: ((), b)).first())


def test_the_tokens_that_scores_are_held_against() -> None:
    scores = torch.zeros(4, 6, CLASSES)
    mask = torch.ones_like(TOKENS)
    mask[0, 4:] = 0
    call = {"input_ids": TOKENS, "attention_mask": mask}
    found = told_tokens(Batch((), call, None, 4), scores)
    assert found is not None and torch.equal(found, TOKENS.masked_fill(mask == 0, IGNORED))
    labels = TOKENS.flip(0)
    found = told_tokens(Batch((), call, labels, 4), scores)  # targets say themselves what does not count
    assert found is not None and torch.equal(found, labels)
    assert told_tokens(Batch((TOKENS,), {}, None, 4), scores[..., :3]) is None  # there are no such classes
    assert told_tokens(Batch((TOKENS,), {}, None, 4), scores[:, :5]) is None
    assert told_tokens(Batch((TOKENS.double(),), {}, None, 4), scores) is None
