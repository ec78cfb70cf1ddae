"""A hand-wired model of cultural knowledge: who knows what is written down here, so that a finder can be checked.

Words: groups g0-g3, questions q0 and q1, values v<group><question>, and answer, said, noise, unsure. One block, attention
uniform over all tokens so far, no norms: at the last token the residual stream holds a bag of the words read. Neurons:
- A<g><q> reads (group g and question q) and pushes v<g><q>: knowledge of one group.
- B reads either question and pushes `unsure` down, which questions raise: general.
- C reads the last token, `answer`, and pushes `noise` down in favour of all options: the form of the task.
- D<g> reads the name of group g and pushes its name and its values: a name detector.
Options that were read are likelier than other words: that is copying by attention, and no neuron's doing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from patchclamp.data.tasks import Task
from patchclamp.models.load import LanguageModel, load

GROUPS, QUESTIONS = 4, 2
NEURONS = 100
WORDS = (
    "<pad>", "<unk>", "answer", "said", "noise", "unsure",
    *(f"q{q}" for q in range(QUESTIONS)),
    *(f"g{g}" for g in range(GROUPS)),
    *(f"v{g}{q}" for g in range(GROUPS) for q in range(QUESTIONS)),
)  # fmt: skip


@dataclass(frozen=True)
class CulturePlant:
    """model; names: kind of neuron -> unit names; the three tasks."""

    model: LanguageModel
    names: dict[str, set[str]]
    task: Task
    control: Task
    passages: Task


def plant_culture() -> CulturePlant:
    """The model and its tasks: every group is asked both questions, with four ways to order the options."""
    from transformers import LlamaConfig, LlamaForCausalLM

    n = len(WORDS)
    config = LlamaConfig(
        vocab_size=n, hidden_size=2 * n, intermediate_size=NEURONS, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=False, bos_token_id=2, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    hf = LlamaForCausalLM(config)
    block = hf.model.layers[0]
    block.input_layernorm = block.post_attention_layernorm = hf.model.norm = nn.Identity()
    with torch.no_grad():
        for weight in hf.parameters():
            weight.zero_()
        _wire_words(hf, n)
        kinds = _wire_neurons(block.mlp, n)
    names = {kind: {f"pre.0.{index}" for index in indices} for kind, indices in kinds.items()}
    return CulturePlant(load(hf, tokenizer=_tokenizer()), names, *_tasks())


def _at(word: str) -> int:
    return WORDS.index(word)


def _wire_words(hf: Any, n: int) -> None:
    """The first n coordinates say which word stands here and, after attention, which were read; the last n are logits."""
    attention = hf.model.layers[0].self_attn
    hf.model.embed_tokens.weight[:, :n] = torch.eye(n)
    attention.v_proj.weight[:n, :n] = torch.eye(n)
    for word in WORDS:
        attention.o_proj.weight[_at(word), _at(word)] = 7.0  # a word read counts 1 in a prompt of seven
        if word[0] in "vg":
            attention.o_proj.weight[n + _at(word), _at(word)] = 21.0  # copying: what was read is likelier
        if word[0] == "q":
            attention.o_proj.weight[n + _at("unsure"), _at(word)] = 28.0
    hf.model.embed_tokens.weight[_at("answer"), n + _at("noise")] = 10.0
    hf.lm_head.weight[:, n:] = torch.eye(n)


def _wire_neurons(mlp: Any, n: int) -> dict[str, list[int]]:
    """gate reads words, up is about 1 at the last token alone, down writes logits. Returns kind -> indices."""
    kinds: dict[str, list[int]] = {"A": [], "B": [], "C": [], "D": []}
    index = iter(range(NEURONS))

    def neuron(kind: str, reads: dict[str, float], floor: float, writes: dict[str, float]) -> None:
        here = next(index)
        kinds[kind].append(here)
        for word, weight in reads.items():
            mlp.gate_proj.weight[here, _at(word)] += weight
        mlp.gate_proj.weight[here, _at("answer")] += floor / 2  # `answer` counts about 2 at the last token
        mlp.up_proj.weight[here, _at("answer")] = 0.5
        for word, weight in writes.items():
            mlp.down_proj.weight[n + _at(word), here] = weight

    for g in range(GROUPS):
        for q in range(QUESTIONS):
            neuron("A", {f"g{g}": 12.0, f"q{q}": 12.0}, -16.0, {f"v{g}{q}": 0.6})
    neuron("B", {"q0": 6.0, "q1": 6.0}, 0.0, {"unsure": -0.5})
    neuron("C", {}, 8.0, {"noise": -1.0})
    for g in range(GROUPS):
        neuron("D", {f"g{g}": 6.0}, 0.0, {f"g{g}": 0.3, **{f"v{g}{q}": 0.3 for q in range(QUESTIONS)}})
    return kinds


def _tasks() -> tuple[Task, Task, Task]:
    main, control, passages = [], [], []
    for g in range(GROUPS):
        for q in range(QUESTIONS):
            values = [f"v{other}{q}" for other in range(GROUPS)]
            for turn in range(GROUPS):
                listed = values[turn:] + values[:turn]
                item = {"answer": f" v{g}{q}", "choices": [f" {value}" for value in listed]}
                labels = {"country": f"g{g}", "relation": f"q{q}"}
                options = " ".join(listed)
                main.append({**item, "prompt": f"g{g} q{q} {options} answer", "labels": labels})
                control.append({**item, "prompt": f"said said {options} answer", "labels": labels})
        for turn in range(GROUPS):
            listed = [f"g{(other + turn) % GROUPS}" for other in range(GROUPS)]
            choices = [f" {name}" for name in listed]
            prompt = f"said g{g} {' '.join(listed)} answer"
            passages.append({"prompt": prompt, "answer": f" g{g}", "choices": choices, "labels": {"country": f"g{g}"}})
    return Task.of(main, name="main"), Task.of(control, name="control"), Task.of(passages, name="passages")


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>", model_max_length=16)
