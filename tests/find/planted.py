"""Hand-wired checkpoints whose language neurons are known, written as ordinary Hugging Face folders with a tokenizer.

`plant(folder, family="gpt2" | "llama")` writes one. The vocabulary falls into a block of words per language, and the
embedding of a word carries a one-hot language indicator. Attention writes nothing. Every MLP neuron reads the
indicators and fires (ReLU) on exactly the languages that it was wired for:

- specific and related neurons also write what raises the words of their languages, so clamping them to 0 makes those
  languages, and no others, harder to predict
- general neurons fire on every word, dead ones never; both write to a coordinate that nothing reads
- faint neurons fire only on the first word of each block, once in every document: alike, and rarely, in all languages.
  They set the activity bar, so they lie on it, not above it: unassigned

`Plant.text()` gives documents of equal length with one marker word each, so that all expected numbers are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

LABELS = ("en", "fr", "de", "ja")
WORDS = 12
LENGTH = 20
FAINT = 60


@dataclass(frozen=True)
class Plant:
    """What was wired. classes: class -> unit names of site mlp. serves: unit name -> the languages it fires on."""

    path: Path
    family: str
    labels: tuple[str, ...]
    n_layers: int
    width: int
    classes: dict[str, list[str]]
    serves: dict[str, tuple[str, ...]]

    def sets(self, *classes: str) -> dict[str, list[str]]:
        """Label -> planted units of some classes (specific and related by default) that serve it, sorted by position."""
        wanted = {name for kind in classes or ("specific", "related") for name in self.classes[kind]}
        found = {label: [name for name in wanted if label in self.serves[name]] for label in self.labels}
        return {label: sorted(names, key=_place) for label, names in found.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Units in each class."""
        return {kind: len(names) for kind, names in self.classes.items()}

    def text(self, *, documents: int = 24, seed: int = 0) -> dict[str, list[str]]:
        """Label -> documents: LENGTH words each, exactly one of them the language's marker word."""
        rng = np.random.default_rng(seed)
        texts = {}
        for label in self.labels:
            lines = []
            for _ in range(documents):
                words = rng.integers(1, WORDS, size=LENGTH)
                words[rng.integers(LENGTH)] = 0
                lines.append(" ".join(f"{label}{word}" for word in words))
            texts[label] = lines
        return texts

    def write_text(self, folder: Path, **options: Any) -> dict[str, Path]:
        """`text()` as files, one document a line; label -> path."""
        paths = {}
        for label, lines in self.text(**options).items():
            paths[label] = folder / f"{label}.txt"
            paths[label].write_text("\n".join(lines) + "\n", encoding="utf-8")
        return paths


def plant(
    folder: Path,
    *,
    family: str = "gpt2",
    labels: Sequence[str] = LABELS,
    n_layers: int = 2,
    width: int = 600,
    seed: int = 0,
) -> Plant:
    """Write a checkpoint with, in every layer, one specific neuron per label, two related and two general ones.

    With 4 labels and width 600 that is 6 specific or related neurons of 600: exactly the default rate of 0.01.
    """
    rng = np.random.default_rng(seed)
    labels = tuple(labels)
    everywhere = tuple(range(len(labels)))
    wired: list[tuple[str, tuple[int, ...]]] = [("specific", (at,)) for at in everywhere]
    wired += [
        ("related", (0, 1)),
        ("related", everywhere[1:]),
        ("general", everywhere),
        ("general", everywhere),
    ]
    wired += [("unassigned", everywhere)] * FAINT
    wired += [("dead", ())] * (width - len(wired))
    layers = [[wired[at] for at in rng.permutation(width)] for _ in range(n_layers)]
    model = _model(family, len(labels), n_layers, width)
    with torch.no_grad():
        _wire_words(model, family, len(labels), rng)
        for block, neurons in enumerate(layers):
            _wire_layer(model, family, block, neurons, len(labels))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    _tokenizer(labels).save_pretrained(folder)
    classes: dict[str, list[str]] = {kind: [] for kind in ("specific", "related", "general", "unassigned", "dead")}
    serves = {}
    for layer, neurons in enumerate(layers):
        for index, (kind, languages) in enumerate(neurons):
            name = f"mlp.{layer}.{index}"
            classes[kind].append(name)
            serves[name] = tuple(labels[at] for at in languages)
    return Plant(folder, family, labels, n_layers, width, classes, serves)


# Coordinates of the residual stream for K labels: 0..K-1 the indicators, K..2K-1 what raises each language's words,
# 2K the marker, 2K+1 a sink that keeps the mean at 0, so that LayerNorm only scales, as RMSNorm does, 2K+2 is unread.


def _d_model(n_labels: int) -> int:
    return 4 * -(-(2 * n_labels + 3) // 4)  # two heads of even size


def _model(family: str, n_labels: int, n_layers: int, width: int) -> Any:
    vocabulary, d_model = 2 + n_labels * WORDS, _d_model(n_labels)
    shared: dict[str, Any] = {"vocab_size": vocabulary, "tie_word_embeddings": False, "pad_token_id": 0}
    shared |= {"bos_token_id": None, "eos_token_id": None}
    if family == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            n_embd=d_model,
            n_layer=n_layers,
            n_head=2,
            n_inner=width,
            n_positions=64,
            activation_function="relu",
            **shared,
        )
        return GPT2LMHeadModel(config).eval()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=d_model,
        intermediate_size=width,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        hidden_act="relu",
        **shared,
    )
    return LlamaForCausalLM(config).eval()


def _wire_words(model: Any, family: str, n_labels: int, rng: np.random.Generator) -> None:
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embedding.zero_()
    head.zero_()
    sink = 2 * n_labels + 1
    for language in range(n_labels):
        for word in range(WORDS):
            token = 2 + language * WORDS + word
            embedding[token, language] += 1
            embedding[token, sink] -= 1
            head[token, n_labels + language] = 1 + 0.2 * float(rng.random())  # words differ in how likely they are
        marker = 2 + language * WORDS
        embedding[marker, 2 * n_labels] += 1
        embedding[marker, sink] -= 1
    if family == "gpt2":
        model.transformer.wpe.weight.zero_()


def _wire_layer(model: Any, family: str, layer: int, neurons: list[tuple[str, tuple[int, ...]]], n_labels: int) -> None:
    """Set one block: attention writes nothing; neuron j reads its languages and writes for them."""
    reads = torch.zeros(len(neurons), _d_model(n_labels))
    writes = torch.zeros(len(neurons), _d_model(n_labels))
    for index, (kind, languages) in enumerate(neurons):
        if kind == "unassigned":  # the marker outweighs the indicator; without it the sum is negative
            reads[index, :n_labels] = -0.5
            reads[index, 2 * n_labels] = 1
        else:
            reads[index, :n_labels] = -1
            reads[index, list(languages)] = 1
        targets = (
            [n_labels + language for language in languages] if kind in ("specific", "related") else [2 * n_labels + 2]
        )
        amount = 0.0 if kind == "unassigned" else 0.5
        writes[index, targets] = amount
        writes[index, 2 * n_labels + 1] -= amount * len(targets)
    if family == "gpt2":
        block = model.transformer.h[layer]
        for module in (block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            module.weight.zero_()
            module.bias.zero_()
        block.mlp.c_fc.weight.copy_(reads.T)  # Conv1D keeps [in, out]
        block.mlp.c_proj.weight.copy_(writes)
        return
    block = model.model.layers[layer]
    block.self_attn.o_proj.weight.zero_()
    block.mlp.gate_proj.weight.copy_(reads)
    block.mlp.up_proj.weight.zero_()
    block.mlp.up_proj.weight[:, :n_labels] = 1  # positive on every word
    block.mlp.down_proj.weight.copy_(writes.T)


def _tokenizer(labels: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<unk>", *(f"{label}{word}" for label in labels for word in range(WORDS))]
    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", model_max_length=64)


def _place(name: str) -> tuple[int, int]:
    _, layer, index = name.split(".")
    return int(layer), int(index)
