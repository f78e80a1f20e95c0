"""Text generation by `transformers` with a pruned causal language model behind it."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune._base.errors import FxpruneError


def for_generation(pruned: nn.Module, model: nn.Module) -> Any:
    """Returns a `transformers` model whose ``generate()`` asks a pruned causal language model.

    Greedy search, sampling and beam search work as they do on the original. There is no key-value cache: the pruned graph
    takes whole sequences, so each step reads the text anew.

    Args:
        pruned: what `fxprune.compile` or `fxprune.load` made of a causal language model, compiled with ``use_cache=False``
            in the model's config; it takes ``input_ids``, and ``attention_mask`` too if the calibration batches had one,
            without which texts of different lengths cannot be padded to one batch. It is shared, not copied, and keeps its mode.
        model: the original, for its config and generation config; it stays as it is.

    Raises:
        FxpruneError: the original is no `transformers` model that can generate, or the pruned one takes other inputs.
    """
    if not getattr(model, "can_generate", lambda: False)():
        raise FxpruneError(
            f"for_generation: expected the original causal language model of transformers, got {type(model).__name__}"
        )
    takes = _inputs(pruned)
    if "input_ids" not in takes:
        raise FxpruneError(
            f"for_generation: expected a pruned model that takes input_ids, got one of {', '.join(takes)}: compile it "
            "with batches such as {'input_ids': ..., 'attention_mask': ...}"
        )
    return _generator(pruned, model, masked="attention_mask" in takes)


def _inputs(pruned: nn.Module) -> list[str]:
    if isinstance(pruned, fx.GraphModule):
        return [node.name for node in pruned.graph.nodes if node.op == "placeholder"]
    return list(inspect.signature(pruned.forward).parameters)


def _generator(pruned: nn.Module, model: Any, *, masked: bool) -> Any:
    from transformers import GenerationMixin, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    class PrunedForGeneration(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
        config_class = type(model.config)
        main_input_name = "input_ids"

        def __init__(self) -> None:
            config = copy.deepcopy(model.config)
            config.use_cache = False
            # the graph has its own; any that this class may name will do
            config._attn_implementation = "eager"
            super().__init__(config)
            self.generation_config = copy.deepcopy(model.generation_config)
            self.generation_config.use_cache = False
            self.pruned = pruned
            self.training = False

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
            given = {"input_ids": input_ids}
            if masked:
                given["attention_mask"] = torch.ones_like(input_ids) if attention_mask is None else attention_mask
            elif attention_mask is not None and not bool(attention_mask.all()):
                raise FxpruneError(
                    "the pruned model takes no attention_mask, so texts cannot be padded: generate for one length at a "
                    "time, or compile with batches that have an attention_mask"
                )
            output = self.pruned(**given)
            return CausalLMOutput(logits=output["logits"] if isinstance(output, dict) else output[0])

    return PrunedForGeneration()
