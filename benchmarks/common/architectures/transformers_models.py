"""Architectures of transformers, each from a small configuration with random weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import Architecture, Call

Options = dict[str, Any]
Inputs = dict[str, Tensor]

_FIRST_WORD = 3  # the ids below are special: padding, begin, end
_WORDS = 200


def entries() -> list[Architecture]:
    return [
        Architecture("transformers", f"transformers:{name}", functools.partial(_build, *row))
        for name, row in _ROWS.items()
    ]


def _build(model: str, config: str, options: Options, inputs: Callable[[torch.Generator], Inputs]) -> Call:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**options))
    return Call(made.eval(), kwargs=inputs(torch.Generator().manual_seed(0)))


def _words(generator: torch.Generator) -> Tensor:
    return torch.randint(_FIRST_WORD, _WORDS, (2, 12), generator=generator)


def _tokens(generator: torch.Generator) -> Inputs:
    ids = _words(generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _bare_tokens(generator: torch.Generator) -> Inputs:
    return {"input_ids": _words(generator)}


def _translation(generator: torch.Generator) -> Inputs:
    return _tokens(generator) | {"decoder_input_ids": _words(generator)}


def _image(edge: int, generator: torch.Generator) -> Inputs:
    return {"pixel_values": torch.randn(2, 3, edge, edge, generator=generator)}


def _audio(generator: torch.Generator) -> Inputs:
    return {"input_values": torch.randn(2, 1600, generator=generator)}


def _transcription(generator: torch.Generator) -> Inputs:
    mel = torch.randn(2, 16, 32, generator=generator)
    return {"input_features": mel, "decoder_input_ids": _words(generator)}


_small = functools.partial(_image, 32)
_large = functools.partial(_image, 64)

_BLOCKS = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_SPECIAL = {"vocab_size": _WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TEXT = {**_BLOCKS, **_SPECIAL, "intermediate_size": 128, "max_position_embeddings": 64}
_DECODER = {**_TEXT, "use_cache": False}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}  # two heads share a key and a value
_BOTH_SIDES = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
}
_TRANSLATION = {**_BOTH_SIDES, **_SPECIAL, "decoder_start_token_id": 1, "use_cache": False}
_VISION = {**_BLOCKS, "intermediate_size": 128, "image_size": 32, "patch_size": 8}
_STAGES = {"hidden_sizes": (32, 48, 64, 96), "depths": (1, 2, 1, 1)}
_WINDOWS = {"embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "image_size": 64}

_ROWS: dict[str, tuple[str, str, Options, Callable[[torch.Generator], Inputs]]] = {
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", _TEXT | {"embedding_size": 32}, _tokens),
    "bart": (
        "BartForConditionalGeneration",
        "BartConfig",
        _TRANSLATION | {"max_position_embeddings": 64, "forced_eos_token_id": 2},
        _translation,
    ),
    "beit": ("BeitForImageClassification", "BeitConfig", _VISION | {"use_relative_position_bias": True}, _small),
    "bert": ("BertForSequenceClassification", "BertConfig", _TEXT, _tokens),
    "bloom": ("BloomForCausalLM", "BloomConfig", _BLOCKS | _SPECIAL | {"use_cache": False}, _tokens),
    "clip_text": ("CLIPTextModelWithProjection", "CLIPTextConfig", _TEXT | {"projection_dim": 48}, _tokens),
    "clip_vision": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", _VISION | {"projection_dim": 48}, _small),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", _STAGES | {"layer_scale_init_value": 1.0}, _large),
    "convnextv2": ("ConvNextV2ForImageClassification", "ConvNextV2Config", _STAGES, _large),
    "deberta-v2": (
        "DebertaV2ForSequenceClassification",
        "DebertaV2Config",
        _TEXT
        | {
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
        _tokens,
    ),
    "deit": ("DeiTForImageClassification", "DeiTConfig", _VISION, _small),
    "detr": (
        "DetrForObjectDetection",
        "DetrConfig",
        _BOTH_SIDES
        | {
            "num_queries": 10,
            "use_timm_backbone": False,
            "backbone_config": {"model_type": "resnet", "embedding_size": 16, "out_features": ["stage4"], **_STAGES},
        },
        _large,
    ),
    "dinov2": (
        "Dinov2ForImageClassification",
        "Dinov2Config",
        _BLOCKS | {"mlp_ratio": 2, "image_size": 32, "patch_size": 8},
        _small,
    ),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        _BLOCKS | _SPECIAL | {"hidden_dim": 128, "max_position_embeddings": 64},
        _tokens,
    ),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", _TEXT | {"embedding_size": 32}, _tokens),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _GROUPED | {"head_dim": 16}, _tokens),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        _GROUPED | {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
        _tokens,
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        _BLOCKS | _SPECIAL | {"n_inner": 128, "n_positions": 64, "use_cache": False},
        _tokens,
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _DECODER, _tokens),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED, _tokens),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        _SPECIAL | {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8, "use_cache": False},
        _bare_tokens,
    ),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GROUPED | {"sliding_window": 8}, _tokens),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2},
        _tokens,
    ),
    "mobilevit": (
        "MobileViTForImageClassification",
        "MobileViTConfig",
        {
            "hidden_sizes": (48, 64, 80),
            "neck_hidden_sizes": (16, 16, 24, 32, 48, 64, 96),
            "expand_ratio": 2.0,
            "initializer_range": 0.2,  # with 0.02 nothing of the image reaches the logits
            "image_size": 64,
        },
        _large,
    ),
    "modernbert": (
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        _TEXT | {"num_hidden_layers": 3, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
        _tokens,
    ),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", _TEXT, _tokens),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        _BLOCKS | _SPECIAL | {"ffn_dim": 128, "max_position_embeddings": 64, "use_cache": False},
        _tokens,
    ),
    "phi": ("PhiForCausalLM", "PhiConfig", _DECODER, _tokens),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _GROUPED, _tokens),
    "poolformer": (
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        _STAGES | {"mlp_ratio": 2.0, "layer_scale_init_value": 1.0},
        _large,
    ),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GROUPED, _tokens),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GROUPED | {"head_dim": 16}, _tokens),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        _GROUPED | {"moe_intermediate_size": 64, "num_experts": 4, "num_experts_per_tok": 2},
        _tokens,
    ),
    "regnet": (
        "RegNetForImageClassification",
        "RegNetConfig",
        _STAGES | {"embedding_size": 16, "groups_width": 16},
        _large,
    ),
    "resnet": ("ResNetForImageClassification", "ResNetConfig", _STAGES | {"embedding_size": 16}, _large),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", _TEXT, _tokens),
    "segformer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "hidden_sizes": (16, 32, 48, 64),
            "depths": (1, 1, 1, 1),
            "num_attention_heads": (1, 2, 3, 4),
            "mlp_ratios": (2, 2, 2, 2),
            "decoder_hidden_size": 64,
        },
        _large,
    ),
    "siglip_text": ("SiglipTextModel", "SiglipTextConfig", _TEXT, _bare_tokens),
    "siglip_vision": ("SiglipVisionModel", "SiglipVisionConfig", _VISION, _small),
    "swin": ("SwinForImageClassification", "SwinConfig", _WINDOWS, _large),
    "swinv2": ("Swinv2ForImageClassification", "Swinv2Config", _WINDOWS | {"pretrained_window_sizes": (0, 0)}, _large),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        _BLOCKS | _SPECIAL | {"num_decoder_layers": 2, "d_kv": 16, "d_ff": 128, "use_cache": False},
        _translation,
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", _VISION, _small),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        "Wav2Vec2Config",
        _BLOCKS
        | _SPECIAL
        | {
            "intermediate_size": 128,
            "conv_dim": (32,) * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "apply_spec_augment": False,
        },
        _audio,
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        _TRANSLATION
        | {"num_mel_bins": 16, "max_source_positions": 16, "max_target_positions": 32, "begin_suppress_tokens": None},
        _transcription,
    ),
}
