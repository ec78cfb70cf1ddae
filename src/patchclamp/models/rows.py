"""The few model types whose module tree doesn't tell everything: one row each.

To add a type: give what differs. `blocks`: a pattern of the modules that stand for blocks; `sites`: site -> (pattern,
where); `{}` in a pattern is the layer number. `time_first`: tensors are (seq, batch, width). `pads`: the model lengthens
its input to a multiple of its block length. `qkv`: how one projection for queries, keys and values is laid out, where it
is not contiguous: "heads" (q, k, v of one head after another), "parts4" (four parts, each with q, v, k). `without`:
sites that can't be read as one vector per position. `refuse`: why units of this type can't be matched with positions.
"""

from __future__ import annotations

from typing import Any

_XLM = {
    "blocks": "transformer.ffns.{}",
    "sites": {
        "attn": ("transformer.attentions.{}.out_lin", "input"),
        "attn_out": ("transformer.attentions.{}.out_lin", "output"),
        "resid": ("transformer.layer_norm2.{}", "output"),
    },
}

_BY_HEADS = {"qkv": "heads"}

ROWS: dict[str, dict[str, Any]] = {
    "bloom": _BY_HEADS,
    "falcon": _BY_HEADS,  # unless multi_query or its new architecture, which its attention says itself
    "fuyu": _BY_HEADS,
    "gpt_bigcode": _BY_HEADS,  # unless multi_query
    "gpt_neox": _BY_HEADS,
    "gpt_neox_japanese": _BY_HEADS,
    "minimax": _BY_HEADS,
    "persimmon": _BY_HEADS,
    "codegen": {"qkv": "parts4"},
    "dbrx": {
        "sites": {
            "attn": ("transformer.blocks.{}.norm_attn_norm.attn.out_proj", "input"),
            "attn_out": ("transformer.blocks.{}.norm_attn_norm.attn.out_proj", "output"),
        }
    },
    "xlm": _XLM,
    "flaubert": _XLM,
    "xlnet": {"time_first": True},
    "big_bird": {"pads": True},
    "bigbird_pegasus": {"pads": True},
    "cpmant": {"refuse": "it puts prompt positions of its own before the text, at which its units are active as well"},
    "gemma3n": {"without": ("resid",)},
    "gemma3n_text": {"without": ("resid",)},
    "hrm_text": {"refuse": "its blocks run several cycles in one pass, so a unit has several values for each position"},
    "blt": {"refuse": "its main blocks work on patches of bytes, so their units have no value for each position"},
    "prophetnet": {
        "refuse": "its blocks run several n-gram streams for each position, so a unit has several values there"
    },
    "musicgen": {"refuse": "its input holds several audio codebooks for each position, not text"},
    "musicgen_decoder": {"refuse": "its input holds several audio codebooks for each position, not text"},
    "musicgen_melody": {"refuse": "its input holds several audio codebooks for each position, not text"},
    "musicgen_melody_decoder": {"refuse": "its input holds several audio codebooks for each position, not text"},
    "reformer": {"without": ("resid",), "pads": True},
}
