"""Models of transformers in their own class, in its Trainer, its `generate`, and under peft and accelerate."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune

transformers = pytest.importorskip("transformers")

TEXT = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 60, "max_position_embeddings": 64}
FORWARD = inspect.signature(transformers.LlamaForCausalLM.forward).parameters
CACHE = "cache" if "cache" in FORWARD else "past_key_values"  # its name until 5.24
GREEDY = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}


def compiled(model: nn.Module, data: Any, **options: Any) -> Any:
    chosen = {"budget": None, "ratios": 0.3, "form": "module", "progress": False} | options
    found = fxprune.compile(model, data, **chosen)
    assert found.report.verified
    return found


@pytest.fixture(scope="module")
def bert() -> SimpleNamespace:
    """A classifier of text, compiled without labels: before and after."""
    torch.manual_seed(0)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_labels": 2}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT, **heads)).eval()
    ids = torch.randint(1, 60, (8, 10))
    data = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
    return SimpleNamespace(model=model, pruned=compiled(model, data, ratios=None, budget=0.7))


@pytest.fixture(scope="module")
def llama() -> SimpleNamespace:
    """A language model of which streams, layers and groups of heads have lost a part: before and after, and its tokens."""
    torch.manual_seed(0)
    heads = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
    config = transformers.LlamaConfig(**TEXT, **heads, pad_token_id=0, eos_token_id=None, attn_implementation="sdpa")
    model, ids = transformers.LlamaForCausalLM(config).eval(), torch.randint(1, 60, (2, 9))
    nn.init.normal_(model.lm_head.weight)  # no two tokens close
    pruned = compiled(model, ids, units=["channel", "kv_group"], recover=None)
    assert pruned.model.layers[0].self_attn.k_proj.out_features == 3 * 8
    return SimpleNamespace(model=model, ids=ids, pruned=pruned)


def sentences(count: int = 64) -> list[dict[str, Any]]:
    """Returns a task: whether the first token of a sentence is a large one."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 60, (count, 10), generator=generator)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": int(row[0] > 30)} for row in ids]


def trainer(model: nn.Module, folder: Path, compute_loss_func: Any = None, **settings: Any) -> Any:
    chosen = {"max_steps": 20, "per_device_train_batch_size": 16, "learning_rate": 6e-3, "logging_steps": 1}
    quiet = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "seed": 0}
    arguments = transformers.TrainingArguments(str(folder), **(chosen | quiet | settings))
    given = {"train_dataset": sentences(), "compute_loss_func": compute_loss_func}
    return transformers.Trainer(model=model, args=arguments, **given)


def cross_entropy(outputs: Any, labels: Tensor, **_: Any) -> Tensor:
    return nn.functional.cross_entropy(outputs["logits"], labels)


def losses(done: Any) -> list[float]:
    return [entry["loss"] for entry in done.state.log_history if "loss" in entry]


@pytest.mark.slow
def test_a_classifier_compiled_without_labels_is_trained_with_them(bert: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    pruned = copy.deepcopy(bert.pruned)
    seen: list[int] = []
    pruned.bert.encoder.layer[0].register_forward_hook(lambda _, args, out: seen.append(args[0].shape[-1]))
    done = trainer(pruned, tmp_path)
    done.train()
    found = losses(done)
    assert (
        type(pruned) is transformers.BertForSequenceClassification
        and pruned.num_parameters() < bert.model.num_parameters()
    )
    assert sum(found[-5:]) < 0.8 * sum(found[:5])
    assert len(seen) == 20 and set(seen) == {pruned.bert.embeddings.word_embeddings.weight.shape[1]}
    found = done.predict(sentences())
    assert (found.predictions.argmax(-1) == found.label_ids).mean() > 0.7


@pytest.mark.slow
def test_a_checkpoint_of_the_trainer_goes_on(bert: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    whole, later = copy.deepcopy(bert.pruned), copy.deepcopy(bert.pruned)
    trainer(whole, tmp_path, save_strategy="steps", save_steps=10).train()
    trainer(later, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(later.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_is_saved_by_fxprune_and_not_by_its_config(bert: SimpleNamespace, tmp_path: Path) -> None:
    fxprune.save(bert.pruned, tmp_path / "pruned")
    again = fxprune.load(tmp_path / "pruned", bert.model)
    ids = torch.randint(1, 60, (3, 7))
    assert torch.equal(again(ids).logits, bert.pruned(ids).logits)
    bert.pruned.save_pretrained(tmp_path / "theirs")
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        type(again).from_pretrained(tmp_path / "theirs")


def test_generation_with_a_cache_is_the_forward_step_by_step(llama: SimpleNamespace) -> None:
    pruned, ids = llama.pruned, llama.ids
    graph = fxprune.apply(llama.model, pruned.plan)
    with torch.no_grad():
        found = pruned.generate(ids, **GREEDY)
        whole, of_graph = pruned(found).logits, graph(found).logits
        torch.testing.assert_close(whole, of_graph, rtol=1e-4, atol=1e-4)
        cache = {CACHE: transformers.DynamicCache(config=pruned.config), "use_cache": True}
        for step in range(found.shape[1]):
            logits = pruned(found[:, step : step + 1], **cache).logits
            torch.testing.assert_close(logits[:, 0], whole[:, step], rtol=1e-4, atol=1e-4)
    assert torch.equal(found[:, ids.shape[1] :], whole[:, ids.shape[1] - 1 : -1].argmax(-1))
    assert not torch.equal(found, llama.model.generate(ids, **GREEDY))


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"do_sample": True, "top_k": 20},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "num_beams": 2},
    ],
    ids=["greedy", "sampled", "beams", "sampled beams"],
)
def test_generation_is_the_same_without_a_cache(llama: SimpleNamespace, settings: dict[str, Any]) -> None:
    found = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        chosen = {"max_new_tokens": 6, "pad_token_id": 0, "use_cache": use_cache} | settings
        found.append(llama.pruned.generate(llama.ids, **chosen))
    assert found[0].shape == (2, 15) and torch.equal(*found)


def test_generation_with_a_static_cache(llama: SimpleNamespace) -> None:
    static = llama.pruned.generate(llama.ids, cache_implementation="static", disable_compile=True, **GREEDY)
    assert torch.equal(static, llama.pruned.generate(llama.ids, **GREEDY))


def test_padded_batches_are_what_their_rows_are_alone(llama: SimpleNamespace) -> None:
    pruned, ids = llama.pruned, llama.ids
    left = torch.stack([ids[0], torch.cat([torch.zeros(4, dtype=torch.long), ids[1, :5]])])
    mask = (left != 0).long()
    with torch.no_grad():
        found, alone = pruned(left, attention_mask=mask).logits, pruned(ids[1:, :5]).logits
        torch.testing.assert_close(found[1, 4:], alone[0], rtol=1e-4, atol=1e-4)
        padded = pruned.generate(left, attention_mask=mask, **GREEDY)
        assert torch.equal(padded[1, 9:], pruned.generate(ids[1:, :5], **GREEDY)[0, 5:])
        assert torch.equal(padded[0], pruned.generate(ids[:1], **GREEDY)[0])


@pytest.mark.slow
def test_a_graph_comes_home_and_generates(llama: SimpleNamespace) -> None:
    graph = fxprune.compile(llama.model, llama.ids, 0.8, units="channel", progress=False)
    with torch.no_grad():
        for value in graph.parameters():  # trained since
            value.mul_(1.01)
        home = fxprune.restore(graph, llama.model)
        found = home.generate(llama.ids, **GREEDY)
        logits = graph(found).logits
    assert type(home) is transformers.LlamaForCausalLM
    assert torch.equal(found[:, 9:], logits[:, 8:-1].argmax(-1))


def gradients(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(ids, labels=ids).loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters()}


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_has_the_same_gradients(llama: SimpleNamespace, reentrant: bool) -> None:
    pruned = copy.deepcopy(llama.pruned).train()
    wanted = gradients(pruned, llama.ids)
    calls: list[int] = []
    pruned.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    pruned.gradient_checkpointing_enable({"use_reentrant": reentrant})
    found = gradients(pruned, llama.ids)
    assert len(calls) == 2, "its forward runs again in the backward"
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_adapters_are_trained_on_it(llama: SimpleNamespace) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = copy.deepcopy(llama.pruned)
    frozen = {name: value.clone() for name, value in base.state_dict().items()}
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]
    )
    model = peft.get_peft_model(base, settings).train()
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], 1e-2)
    found = []
    for _ in range(30):
        loss = model(llama.ids, labels=llama.ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.8 * found[0]
    model.eval()
    with torch.no_grad():
        wanted = model(llama.ids).logits
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(llama.ids).logits, wanted, rtol=1e-4, atol=1e-4)
    assert type(merged) is transformers.LlamaForCausalLM
    assert torch.equal(merged.model.layers[0].self_attn.k_proj.weight, frozen["model.layers.0.self_attn.k_proj.weight"])
    merged.generate(llama.ids, **GREEDY)


@pytest.mark.slow
def test_accelerate_prepares_it(bert: SimpleNamespace) -> None:
    accelerate = pytest.importorskip("accelerate")
    pruned = copy.deepcopy(bert.pruned).train()
    loader = torch.utils.data.DataLoader(sentences(16), batch_size=16)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, batches = accelerator.prepare(pruned, torch.optim.SGD(pruned.parameters(), 1e-2), loader)
    before = pruned.classifier.weight.clone()
    for batch in batches:
        accelerator.backward(model(**batch).loss)
        optimizer.step()
    assert accelerator.unwrap_model(model) is pruned and not torch.equal(before, pruned.classifier.weight)


@pytest.mark.slow
def test_a_graph_has_no_methods_and_takes_no_mask_that_was_not_captured(llama: SimpleNamespace) -> None:
    graph = fxprune.apply(llama.model, llama.pruned.plan)
    assert not any(hasattr(graph, name) for name in ("generate", "gradient_checkpointing_enable", "save_pretrained"))
    with pytest.raises(fxprune.CallError):
        graph(llama.ids, attention_mask=torch.ones_like(llama.ids))


@pytest.fixture(scope="module")
def graph(bert: SimpleNamespace) -> Any:
    """The same plan as a graph."""
    return fxprune.apply(bert.model, bert.pruned.plan)


@pytest.mark.slow
def test_the_trainer_takes_a_graph_with_a_loss_of_its_own(graph: Any, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    model = copy.deepcopy(graph)
    model.accepts_loss_kwargs = False  # or it is given the number of items in a batch, which was not captured
    whole = trainer(model, tmp_path, compute_loss_func=cross_entropy, save_strategy="steps", save_steps=10)
    whole.train()
    found = losses(whole)
    assert sum(found[-5:]) < 0.8 * sum(found[:5])
    later = copy.deepcopy(graph)
    later.accepts_loss_kwargs = False
    resumed = trainer(later, tmp_path, compute_loss_func=cross_entropy)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(later.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    with pytest.raises(fxprune.CallError):
        trainer(model, tmp_path).train()


@pytest.mark.slow
def test_adapters_are_trained_on_a_graph(graph: Any) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(copy.deepcopy(graph), peft.LoraConfig(r=4, target_modules=["query", "value"]))
    rows = torch.utils.data.default_collate(sentences(8))
    labels = rows.pop("labels")
    nn.functional.cross_entropy(model(**rows).logits, labels).backward()
    trained = {name for name, value in model.named_parameters() if value.grad is not None}
    assert trained and all("lora_" in name for name in trained)


@pytest.mark.slow
def test_accelerate_prepares_a_graph(graph: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    pruned = copy.deepcopy(graph).train()
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(pruned, torch.optim.SGD(pruned.parameters(), 1e-2))
    rows = torch.utils.data.default_collate(sentences(8))
    labels, before = rows.pop("labels"), pruned.classifier.weight.clone()
    accelerator.backward(nn.functional.cross_entropy(model(**rows).logits, labels))
    optimizer.step()
    assert not torch.equal(before, pruned.classifier.weight)
