"""A hand-wired Llama that knows facts by relation: what masking each of its neurons does is known beforehand.

A prompt is "s3 capital0": a subject word, then a word that asks (two words per relation). The answer is the relation's own
word. Attention writes nothing, so all comes from the last word; logits keep their order under RMSNorm, so accuracies are
exact. The answer's logit is 0.1 plus the number of active neurons of its circuit over m; a competitor stands at 0.55,
so that 4 of 8 suffice and 3 do not.

Layer 0, neurons of `circuits[relation]`: m redundant ones each; with `shared` the first two relations have one circuit.
`harmful`: fires on the first relation, where it does no harm, and on the second word of the third, where it lifts a
wrong answer above the right one. `entities`: each fires on one subject and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from patchclamp.data.tasks import Task
from patchclamp.models.load import load
from patchclamp.models.units import Layout

RELATIONS = ("capital", "river", "food")
M, SUBJECTS, WIDTH, COMPETITOR, START = 8, 20, 64, 0.55, 0.1
OTHER, WRONG = "other", "wrong"
ASKING = [f"{relation}{number}" for relation in RELATIONS for number in range(2)]
WORDS = [*(f"s{i}" for i in range(SUBJECTS)), *ASKING, *(f"is-{name}" for name in RELATIONS), OTHER, WRONG, "<unk>"]


@dataclass(frozen=True)
class Plant:
    """model; unit names of what was wired."""

    model: Any
    circuits: dict[str, list[str]]
    entities: list[str]
    harmful: str
    layout: Layout

    def task(self, subjects: range = range(SUBJECTS)) -> Task:
        """Every subject with every asking word; labels relation, subject, template."""
        items = [
            {
                "prompt": f"s{i} {relation}{number}",
                "answers": [f" is-{relation}"],
                "labels": {"relation": relation, "subject": f"s{i}", "template": str(number)},
            }
            for i in subjects
            for relation in RELATIONS
            for number in range(2)
        ]
        return Task.of(items, name="facts")


def plant(*, shared: bool = False, harmful: bool = False) -> Plant:
    """shared: the first two relations have one circuit. harmful: the neuron that spoils half of the third relation."""
    from transformers import LlamaConfig, LlamaForCausalLM

    d = len(WORDS) + 8
    asks, answers = len(WORDS), len(WORDS) + 3  # coordinates: asked relation (3), written answer (3), competitor, wrong
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=d, intermediate_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=32, hidden_act="relu", rms_norm_eps=1e-9,
        tie_word_embeddings=False, pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        embed, head = hf.model.embed_tokens.weight, hf.lm_head.weight
        embed.zero_()
        head.zero_()
        embed[range(len(WORDS)), range(len(WORDS))] = 1
        for number, relation in enumerate(RELATIONS):
            for word in (f"{relation}0", f"{relation}1"):
                embed[WORDS.index(word), asks + number] = 1
                embed[WORDS.index(word), answers + 3] = COMPETITOR
                embed[WORDS.index(word), answers + number] = START
            head[WORDS.index(f"is-{relation}"), answers + number] = 1
        head[WORDS.index(OTHER), answers + 3] = 1
        head[WORDS.index(WRONG), answers + 4] = 1
        mlp = hf.model.layers[0].mlp
        mlp.gate_proj.weight.zero_()
        mlp.up_proj.weight.fill_(0)
        squared = (
            2 + COMPETITOR**2 + START**2
        ) / d  # of an asking word: mean square, so that an activation is 1 / squared
        wired: dict[int, tuple[dict[int, float], int | None, float]] = {}
        circuits: dict[str, list[int]] = {}
        at = 3
        for number, relation in enumerate(RELATIONS):
            if shared and number == 1:
                circuits[relation] = circuits[RELATIONS[0]]
                continue
            circuits[relation] = list(range(at, at + M))
            at += M
            reads = [number, 1] if shared and number == 0 else [number]
            for neuron in circuits[relation]:
                wired[neuron] = ({asks + read: 1.0 for read in reads}, answers + number, 1 / M)
                if shared and number == 0:
                    mlp.down_proj.weight[answers + 1, neuron] = squared / M
        entities = list(range(at, at + SUBJECTS))
        for subject, neuron in enumerate(entities):
            wired[neuron] = ({subject: 1.0}, None, 0.0)
        spoiler = at + SUBJECTS
        if harmful:
            wired[spoiler] = ({asks: 1.0, WORDS.index("food1"): 1.0}, answers + 4, 1.5)
        for neuron, (reads_, writes, amount) in wired.items():
            for coordinate, weight in reads_.items():
                mlp.gate_proj.weight[neuron, coordinate] = weight
                mlp.up_proj.weight[neuron, coordinate] = weight
            if writes is not None:
                mlp.down_proj.weight[writes, neuron] = squared * amount
        if harmful:  # on the first relation itself what the spoiler writes is undone by its other output
            mlp.down_proj.weight[answers, spoiler] = squared * 1.5
        model = load(hf, tokenizer=_tokenizer())
    name = "mlp.0.{}".format
    return Plant(
        model,
        {relation: [name(neuron) for neuron in neurons] for relation, neurons in circuits.items()},
        [name(neuron) for neuron in entities],
        name(spoiler),
        model.layouts["mlp"],
    )


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", model_max_length=32)
