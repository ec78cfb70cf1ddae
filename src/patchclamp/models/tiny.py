"""Tiny random models of any causal-LM type that the installed transformers registers, for checks and tests.

One generic small configuration serves most types; `EXTRA` holds the few fields that others need. No network.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch

from patchclamp.core.errors import InputError, ModelError

VOCABULARY = 199
TEXT_PARTS = ("text_config", "decoder", "language_config", "llm_config")
MAX_PARAMETERS = 8_000_000  # a bigger one means that a field which sets the size was missed

SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner"), 48),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(("shared_intermediate_size", "moe_shared_expert_intermediate_size"), 48),
    "first_k_dense_replace": 1,
    "vocab_size": VOCABULARY,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_MLA = {"head_dim": None, "num_key_value_heads": 4}
_FOUR = {"num_hidden_layers": 4}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8}
_DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_MIXED = {"layer_types": ["linear_attention", "full_attention"]}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 8}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
_QWEN4 |= {"hc_lowrank": 8, "ngram_vocab_size_base": 64, "split_ngram_parts": 2, "ple_embed_dim": 32}

# Types that need the same fields; the text configuration gets them (None drops a generic field).
_GROUPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite glm_moe_dsa minicpm3 youtu", _MLA),
    ("qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_next", _FOUR | _DELTA),
    ("qwen4_exp qwen4_exp_text", _FOUR | _DELTA | _QWEN4),
    ("lfm3 recurrent_gemma", _FOUR),
    ("gemma4 gemma4_text gemma4_unified", _PER_LAYER),
    ("gemma3n gemma3n_text", {"num_hidden_layers": 5, "num_kv_shared_layers": 0, "laurel_rank": 8} | _PER_LAYER),
    ("dots3_note dots3_note_text", {"num_key_value_heads": 4}),
    ("codegen gptj", {"rotary_dim": 4}),
)

# One type each; "_top" holds fields of the outer configuration.
EXTRA: dict[str, dict[str, Any]] = {name: fields for names, fields in _GROUPS for name in names.split()} | {
    "bailing_hybrid": {"layer_group_size": 2, "q_lora_rank": None, "num_key_value_heads": 4, **_FOUR},
    "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_top_k": 2},
        **_ROPE,
    },
    "dots1": {"n_shared_experts": 1},
    "git": {"_top": {"vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {**_MAMBA2, **_MIXED},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, **_FOUR},
    "kimi_linear": {
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "q_lora_rank": None,
        "num_key_value_heads": 4,
        **_MIXED,
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"], **_FOUR},
    "longcat_flash": {"num_key_value_heads": 4, "zero_expert_num": 2, "ffn_hidden_size": 48, "num_layers": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "reformer": {"is_decoder": True, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
    "roc_bert": {
        **dict.fromkeys(("pronunciation_vocab_size", "shape_vocab_size"), 50),
        **dict.fromkeys(("pronunciation_embed_dim", "shape_embed_dim"), 8),
    },
    "xlstm": {"hidden_size": 64, "num_blocks": 2},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"], "num_hidden_layers": 3},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"], "head_dim": None},
    "zaya": {"num_experts_per_tok": 1},
}

# Types of which no tiny model can be built here, with the reason.
NOT_BUILT: dict[str, str] = {
    "dots3_note": "its per-layer settings can't be made small together with its vision part; checked as dots3_note_text",
    "gemma3n": "its vision tower needs timm and pillow; its text part is checked as gemma3n_text",
    "gemma4_assistant": "a draft model that reads another model's cache: it can't run by itself",
    "gemma4_unified_assistant": "a draft model that reads another model's cache: it can't run by itself",
}


def causal_types() -> list[str]:
    """Every model type that the installed transformers registers for causal language modelling."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> Any:
    """A small configuration of a model type; InputError for a type that isn't registered."""
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    if model_type not in causal_types():
        raise InputError(f"transformers registers no causal language model of type {model_type!r}")
    cls = CONFIG_MAPPING[model_type]
    wanted = dict(EXTRA.get(model_type, {}))
    top = dict(wanted.pop("_top", {}))
    plain = cls()
    inner = {name: getattr(plain, name, None) for name in cls.sub_configs}
    parts = {name: part for name, part in inner.items() if isinstance(part, PreTrainedConfig) and name not in top}
    text = next((name for name in TEXT_PARTS if name in parts), None)
    small: dict[str, Any] = {
        name: type(part)(**_fields(part, wanted if name == text else {})) for name, part in parts.items()
    }
    if text is not None:
        return cls(**small, **top)
    return cls(**(small | _fields(plain, wanted)), **top)


def tiny_model(model_type: str, *, seed: int = 0) -> Any:
    """A random model of a type, at most a few million parameters, float32 on the CPU, in eval mode."""
    from transformers import AutoModelForCausalLM

    with quiet():
        config = tiny_config(model_type)
        with torch.device("meta"):
            size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
        if size > MAX_PARAMETERS:
            raise ModelError(
                f"the small configuration of {model_type} still has {size:,} parameters; it needs fields in EXTRA"
            )
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings of transformers about missing kernels and odd configurations."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _fields(plain: Any, wanted: dict[str, Any]) -> dict[str, Any]:
    """The generic small fields that a configuration has, and the wanted ones."""
    known = {*plain.to_dict(), *plain.attribute_map}
    merged = {key: value for key, value in SMALL.items() if key in known and key not in wanted}
    return merged | {key: value for key, value in wanted.items() if value is not None}
