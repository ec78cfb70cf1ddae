"""A hand-wired Llama whose residual stream says which latents a word has, and texts whose topic is known.

A word of topic t has one of five latents of t; function words have latents of their own. The residual stream holds one
coordinate per latent; the gate's neurons mix topics: neuron k fires for latent k of topic A and of topic B alike.
"""

from __future__ import annotations

import random
from typing import Any

import torch

LATENTS = 32  # of which 0-4 are topic a, 5-9 b, 10-14 c, 20-24 function words
FIRST = {"a": 0, "b": 5, "c": 10, "f": 20}
VARIANTS = 24  # words of each latent


def planted_model() -> Any:
    """Words are written topic, latent, variant: a3x17. No special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from patchclamp.models.load import load

    words = {"<unk>": (0, 0)}
    for topic, first in FIRST.items():
        for latent in range(5):
            for variant in range(VARIANTS):
                words[f"{topic}{latent}x{variant}"] = (first + latent, variant)
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", model_max_length=256)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=LATENTS, intermediate_size=15, num_hidden_layers=2, num_attention_heads=1,
        max_position_embeddings=256, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = LlamaForCausalLM(config)
    with torch.no_grad():
        hf.model.embed_tokens.weight.zero_()
        for number, (latent, _) in enumerate(words.values()):
            hf.model.embed_tokens.weight[number, latent] = 1.0
        for block in hf.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
            block.mlp.gate_proj.weight.zero_()
            for k in range(5):
                block.mlp.gate_proj.weight[k, [k, 5 + k]] = 1.0  # fires for a and for b
                block.mlp.gate_proj.weight[5 + k, 10 + k] = 1.0  # for c alone
                block.mlp.gate_proj.weight[10 + k, 20 + k] = 1.0
    return load(hf, tokenizer=tokenizer, check=False)


def latents(width: int = LATENTS) -> Any:
    """A dictionary that reads the latents off the residual stream of layer 0; further latents never fire."""
    from patchclamp.models.features import LinearDictionary

    directions = torch.zeros(width, LATENTS)
    directions[:LATENTS] = torch.eye(LATENTS)
    return LinearDictionary("planted", "resid", 0, directions, activation="relu")


def texts(topic: str, n: int, variants: range, seed: int) -> list[str]:
    """n texts of six words of a topic, all its latents among them, and six function words; words from some of the variants."""
    rng = random.Random(f"{topic}/{seed}")
    made = []
    for _ in range(n):
        chosen = [f"{topic}{latent}x{rng.choice(variants)}" for latent in (0, 1, 2, 3, 4, rng.randrange(5))]
        chosen += [f"f{rng.randrange(5)}x{rng.randrange(VARIANTS)}" for _ in range(6)]
        rng.shuffle(chosen)
        made.append(" ".join(chosen))
    return made
