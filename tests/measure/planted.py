"""A hand-wired Llama whose loss is known in closed form: two languages, one neuron each that writes their logits.

Vocabulary: 4 words of language A (a0 to a3), 4 of B (b0 to b3); no special tokens. Attention and layer 0 write nothing.
In layer 1, neuron 5 is on (by a known amount) at every A word and off at every B word, and adds 1.5 per unit to a
direction that the LM head reads as "an A word comes next"; neuron 9 does the same for B. All other neurons write nothing.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from patchclamp.models.load import load

WORDS = [f"{language}{number}" for language in "ab" for number in range(4)]
D, D_MLP, GAIN, WRITE, EPS = 16, 24, 2.0, 1.5, 1e-6
NEURONS = {"a": "mlp.1.5", "b": "mlp.1.9"}


def planted() -> Any:
    """The LanguageModel."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8, hidden_size=D, intermediate_size=D_MLP, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, hidden_act="relu", rms_norm_eps=EPS,
        tie_word_embeddings=False, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        hf.model.embed_tokens.weight.copy_(torch.from_numpy(embedding()))
        hf.lm_head.weight.copy_(torch.from_numpy(unembedding()))
        mlp = hf.model.layers[1].mlp
        for number, neuron in enumerate((5, 9)):
            mlp.gate_proj.weight[neuron] = 0
            mlp.gate_proj.weight[neuron, 8 + number] = GAIN
            mlp.up_proj.weight[neuron] = 0
            mlp.up_proj.weight[neuron, 8:10] = 1
            mlp.down_proj.weight[10 + number, neuron] = WRITE
    return load(hf, tokenizer=tokenizer())


def tokenizer() -> Any:
    """Words split at spaces; no special tokens are added."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core)


def embedding() -> np.ndarray[Any, Any]:
    """(8, D): a one-hot word and a one-hot language (dimensions 8 and 9)."""
    table = np.zeros((8, D))
    table[range(8), range(8)] = 1
    table[:4, 8] = table[4:, 9] = 1
    return table


def unembedding() -> np.ndarray[Any, Any]:
    """(8, D): A words read dimension 10, B words dimension 11; each word also reads the word before it a little."""
    table = np.zeros((8, D))
    table[:4, 10] = table[4:, 11] = 1
    for word in range(8):
        table[word, (word + 3) % 8] = 0.5
    return table


def loss(text: str, *, clamped: dict[str, float] | None = None) -> float:
    """Summed negative log-likelihood of a document by the closed form, in float64; clamped: language -> value."""
    ids = [WORDS.index(word) for word in text.split()]
    total = 0.0
    for word, following in itertools.pairwise(ids):
        x = embedding()[word]
        seen = x / np.sqrt(np.mean(x**2) + EPS)
        for number, language in enumerate("ab"):
            on = max(0.0, GAIN * seen[8 + number]) * (seen[8] + seen[9])
            value = (clamped or {}).get(language, on)
            x = x + value * WRITE * np.eye(D)[10 + number]
        logits = unembedding() @ (x / np.sqrt(np.mean(x**2) + EPS))
        total += float(np.log(np.exp(logits).sum()) - logits[following])
    return total


def documents(language: str, n: int, *, seed: int = 0) -> list[str]:
    """n documents of 5 to 9 random words of one language."""
    rng = np.random.default_rng([seed, ord(language)])
    return [" ".join(f"{language}{word}" for word in rng.integers(0, 4, rng.integers(5, 10))) for _ in range(n)]
