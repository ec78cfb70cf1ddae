"""Text whose word classes follow a known rule, and a small network trained to predict its next word."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from patchclamp.data import Corpus, Document, corpus
from patchclamp.models import LanguageModel, load

CLASSES, WORDS, LENGTH = 4, 5, 24
KEPT = 0.9  # share of words whose class follows the rule; the others have a random class


def class_sequences(rule: str, count: int, seed: int) -> Any:
    """(count, LENGTH) class numbers: each follows from the class before ("one back"), two before ("two back"), or nothing."""
    rng = np.random.default_rng(seed)
    found = rng.integers(CLASSES, size=(count, LENGTH))
    back = {"one back": 1, "two back": 2, "none": 0}[rule]
    for at in range(back, LENGTH if back else 0):
        follows = rng.random(count) < KEPT
        found[follows, at] = (found[follows, at - back] + 1) % CLASSES
    return found


def tagged(rule: str, count: int = 120, seed: int = 0) -> Corpus:
    """Documents of such sequences, words drawn evenly within a class, with spans upos=C0 ... C3."""
    rng = np.random.default_rng(seed + 1)
    documents = []
    for number, classes in enumerate(class_sequences(rule, count, seed)):
        text, spans = "", {}
        for kind in classes.tolist():
            start = len(text) + bool(text)
            text += f"{' ' if text else ''}w{kind}{rng.integers(WORDS)}"
            spans.setdefault(f"upos=C{kind}", []).append((start, len(text)))
        kept = {name: tuple(places) for name, places in spans.items()}
        documents.append(Document(text, kept, id=str(number)))
    return corpus({"automaton": documents})


def tokenizer() -> Any:
    """One token a word, <s> in front."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [f"w{kind}{word}" for kind in range(CLASSES) for word in range(WORDS)]
    core = Tokenizer(models.WordLevel({name: at for at, name in enumerate(["<pad>", "<s>", "<unk>", *words])}, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", model_max_length=64
    )


@functools.cache
def trained(rule: str, *, steps: int = 120, seed: int = 0) -> LanguageModel:
    """A GPT-2 of one layer and d_model 32 after so many batches of 32 fresh sequences; made once per run of the tests."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=3 + CLASSES * WORDS, n_positions=64, n_embd=32, n_layer=1, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.01)
    rng = np.random.default_rng(seed)
    for step in range(steps):
        classes = class_sequences(rule, 32, seed=1000 + step)
        words = 3 + classes * WORDS + rng.integers(WORDS, size=classes.shape)
        ids = torch.from_numpy(np.pad(words, ((0, 0), (1, 0)), constant_values=1))
        loss = network(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return load(network.eval(), tokenizer=tokenizer(), check=False)
