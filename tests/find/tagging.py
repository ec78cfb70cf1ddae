"""Small models for frequency tagging: words of four classes, a trained GPT-2, and a hand-wired one whose units are known."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from patchclamp.models.load import load

CLASSES = "ANVO"
LEXICON = 20
END = "<end>"
WORDS = [*(f"{kind}{number}" for kind in CLASSES for number in range(LEXICON)), END]


def tokenizer() -> Any:
    """One token per word, split at spaces; no special tokens are added."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token=END))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=END, eos_token=END, model_max_length=256)


def sentences(n: int, *, seed: int = 0) -> list[str]:
    """n different sentences "A N V O" of random words of each class."""
    rng = np.random.default_rng(seed)
    made: dict[str, None] = {}
    while len(made) < n:
        made[" ".join(f"{kind}{rng.integers(LEXICON)}" for kind in CLASSES)] = None
    return list(made)


def random_model(*, seed: int = 0) -> Any:
    """A random GPT-2: 2 layers, d_model 32, 128 neurons each, one token per word."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=256, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None,
        pad_token_id=len(WORDS) - 1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    return load(GPT2LMHeadModel(config), tokenizer=tokenizer())


@functools.cache
def trained_model(*, steps: int = 200, seed: int = 0) -> Any:
    """The same architecture, trained on streams of such sentences; made once."""
    model = random_model(seed=seed)
    hf = model.hf.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(hf.parameters(), lr=3e-3, weight_decay=0.1)
    rng = np.random.default_rng(seed)
    starts = np.arange(4) * LEXICON
    for _ in range(steps):
        ids = (rng.integers(LEXICON, size=(16, 12, 4)) + starts).reshape(16, 48)
        rows = torch.from_numpy(np.stack([np.roll(row, -int(rng.integers(4))) for row in ids]))
        logits = hf(input_ids=rows, attention_mask=torch.ones_like(rows)).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return load(hf.eval(), tokenizer=tokenizer())


# Units of `wired_model` by what they follow; unit 0 follows the place in the text, unit 2 nothing.
PLACE_LOCKED, CONSTANT = "mlp.0.0", "mlp.0.2"
WIRED = {"sentence": ["mlp.0.5"], "phrase": ["mlp.0.3"], "shared": ["mlp.0.1", "mlp.0.4"]}


def wired_model(*, width: int = 60) -> Any:
    """A GPT-2 of one layer without attention, whose ReLU neurons read one-hot codes of word class and position mod 4.

    0: position 3 of 4. 1: clause-final nouns (class O). 2: constant. 3: N or O, the ends of both phrases. 4: A. 5: a cosine, most
    at A and least at V. The others are constant.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(WORDS), n_positions=256, n_embd=8, n_inner=width, n_layer=1, n_head=1, activation_function="relu",
        bos_token_id=None, eos_token_id=None, pad_token_id=len(WORDS) - 1,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(config)
    with torch.no_grad():
        block = hf.transformer.h[0]
        hf.transformer.wte.weight[:-1] = torch.eye(8)[:4].repeat_interleave(LEXICON, dim=0)
        hf.transformer.wpe.weight.copy_(torch.eye(8)[4:].repeat(64, 1))
        block.attn.c_proj.weight.zero_()
        block.attn.c_proj.bias.zero_()
        block.mlp.c_fc.weight.zero_()
        block.mlp.c_fc.bias.fill_(1.0)
        for unit, reads in {0: {7: 1}, 1: {3: 1}, 3: {1: 1, 3: 1}, 4: {0: 1}, 5: {0: 1, 2: -1}}.items():
            block.mlp.c_fc.bias[unit] = 4.0  # no value falls below 0, where ReLU would bend it
            for dimension, weight in reads.items():
                block.mlp.c_fc.weight[dimension, unit] = weight
    return load(hf, tokenizer=tokenizer())


def brute_force(model: Any, texts: list[Any]) -> np.ndarray[Any, Any]:
    """(streams, T, n) unit means by a plain forward pass per stream, hooks of torch and a loop over units of text."""
    found = []
    for stream in texts:
        encoded = model.tokenizer(
            stream.text, add_special_tokens=False, return_offsets_mapping=True, return_tensors="pt"
        )
        seen: list[torch.Tensor] = []
        handles = [
            block.mlp.c_proj.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0].clone()))
            for block in model.hf.transformer.h
        ]
        model.hf(encoded["input_ids"])
        for handle in handles:
            handle.remove()
        values = torch.cat(seen, dim=-1)
        rows = []
        for left, right in stream.spans.tolist():
            mine = [t for t, (a, b) in enumerate(encoded["offset_mapping"][0].tolist()) if a < right and b > left]
            rows.append(values[mine].mean(dim=0))
        found.append(torch.stack(rows).detach().numpy())
    return np.stack(found)
