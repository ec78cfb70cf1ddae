"""Shared tiny models and a tokenizer, built in memory: no network, no files, seeded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

SENTENCES = [
    "The cat sat on the mat and looked at the moon.",
    "Le chat est assis sur le tapis et regarde la lune.",
    "Die Katze sitzt auf der Matte und schaut zum Mond.",
    "猫はマットの上に座って月を見ている。",
    "Two and two make four, three and three make six.",
]


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of 320 entries: <s> is put in front, <pad> and </s> exist."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES * 3, trainer)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=64
    )


@pytest.fixture(scope="session")
def tiny_gpt2(tiny_tokenizer: Any) -> Any:
    """A random GPT-2: 3 layers, d_model 32, 4 heads, 128 MLP neurons per layer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from patchclamp.models.load import load

    config = GPT2Config(
        vocab_size=320, n_positions=64, n_embd=32, n_layer=3, n_head=4, initializer_range=0.2,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return load(GPT2LMHeadModel(config), tokenizer=tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_llama(tiny_tokenizer: Any) -> Any:
    """A random Llama: 3 layers, d_model 32, 4 heads on 2 key-value heads, 48 MLP neurons per layer, untied head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from patchclamp.models.load import load

    config = LlamaConfig(
        vocab_size=320, max_position_embeddings=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return load(LlamaForCausalLM(config), tokenizer=tiny_tokenizer)
