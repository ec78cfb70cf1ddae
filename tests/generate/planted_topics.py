"""A hand-wired Llama whose second layer has four groups of neurons, each driven by the words of one topic alone."""

from __future__ import annotations

from typing import Any

import torch

TOPICS = ("a", "b", "c", "d")
WORDS = 6  # of each topic; the last one is the word that the model says next within the topic
WIDTH, D_MODEL = 32, 16
GROUP = WIDTH // len(TOPICS)


def word(topic: int, number: int) -> str:
    return f"{TOPICS[topic]}{number}"


def token(topic: int, number: int) -> int:
    return 2 + topic * WORDS + number


def group(topic: int) -> list[int]:
    """The neurons of a topic."""
    return list(range(topic * GROUP, (topic + 1) * GROUP))


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [word(topic, number) for topic in range(len(TOPICS)) for number in range(WORDS)]
    core = Tokenizer(
        models.WordLevel({name: at for at, name in enumerate(["<pad>", "<unk>", *words])}, unk_token="<unk>")
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", model_max_length=64)


def planted_model() -> Any:
    """Words of topic k stand at axis k; group k fires for them alone and writes to axis 8 + k, which says its last word."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from patchclamp.models.load import load

    config = LlamaConfig(
        vocab_size=2 + len(TOPICS) * WORDS, hidden_size=D_MODEL, intermediate_size=WIDTH, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
        pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    hf = LlamaForCausalLM(config)
    strength = torch.linspace(1.0, 2.0, GROUP)
    with torch.no_grad():
        for weight in hf.parameters():
            weight.zero_()
        for norm in (
            hf.model.norm,
            *(n for b in hf.model.layers for n in (b.input_layernorm, b.post_attention_layernorm)),
        ):
            norm.weight.fill_(1.0)
        mlp = hf.model.layers[1].mlp
        for topic in range(len(TOPICS)):
            for number in range(WORDS):
                hf.model.embed_tokens.weight[token(topic, number), topic] = 1.0
            rows = group(topic)
            mlp.gate_proj.weight[rows, topic] = strength
            mlp.up_proj.weight[rows, topic] = 1.0
            mlp.down_proj.weight[8 + topic, rows] = 0.01  # every neuron of the group adds its part
            hf.lm_head.weight[token(topic, WORDS - 1), 8 + topic] = 2.0
    return load(hf, tokenizer=tokenizer())


def text_of(topic: int, count: int, seed: int = 0, length: int = 12) -> list[str]:
    """Texts of one topic: its words but the last, drawn at random."""
    generator = torch.Generator().manual_seed(100 * seed + topic)
    drawn = torch.randint(0, WORDS - 1, (count, length), generator=generator)
    return [" ".join(word(topic, int(number)) for number in row) for row in drawn]
