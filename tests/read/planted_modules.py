"""A hand-wired Llama in which the MLP of layer 0 serves one skill and that of layer 1 the other, and attention neither.

Words a0..a5 are followed by A0..A5, words b0..b5 by B0..B5. Neuron i of layer 0 reads word a_i and writes word A_i; neuron i
of layer 1 does so for b; the other half of the neurons, and all of attention's output, are 0.
"""

from __future__ import annotations

from typing import Any

import torch

WORDS = 6
NEURONS = 2 * WORDS


def planted_model(strength: float = 1.0) -> Any:
    """strength: what a neuron writes; at 0.01 the answers are likeliest, but there is much to learn (1.4 nats)."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from patchclamp.models.load import load

    words = [f"{letter}{number}" for letter in "abAB" for number in range(WORDS)]
    vocabulary = {word: number for number, word in enumerate(["<pad>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", model_max_length=32)
    width = 4 * WORDS
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=width, intermediate_size=NEURONS, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=32, tie_word_embeddings=False, pad_token_id=0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = LlamaForCausalLM(config)
    with torch.no_grad():
        embedding, head = hf.model.embed_tokens.weight, hf.lm_head.weight
        embedding.zero_()
        head.zero_()
        for number in range(width):
            embedding[number + 1, number] = 1.0
        for number in range(2 * WORDS, width):
            head[number + 1, number] = 1.0
        for layer, block in enumerate(hf.model.layers):
            block.self_attn.o_proj.weight.zero_()
            for projection in (block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):
                projection.weight.zero_()
            for number in range(WORDS):
                reads = layer * WORDS + number
                block.mlp.gate_proj.weight[number, reads] = 2.0
                block.mlp.up_proj.weight[number, reads] = 1.0
                block.mlp.down_proj.weight[2 * WORDS + reads, number] = strength
    return load(hf, tokenizer=tokenizer)


def planted_tasks() -> dict[str, Any]:
    """Dataset of each skill: a word, the word that follows, and the other words of the same kind as choices."""
    from patchclamp.data.tasks import Task

    found = {}
    for name, word, answer in (("first", "a", "A"), ("second", "b", "B")):
        choices = [f" {answer}{number}" for number in range(WORDS)]
        found[name] = Task.of(
            [
                {"prompt": f"{word}{n}", "answer": f" {answer}{n}", "choices": choices, "labels": {"skill": name}}
                for n in range(WORDS)
            ],
            name=name,
        )
    return found
