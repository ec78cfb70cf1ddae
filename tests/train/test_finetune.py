"""Fine-tuning changes what it is told to change, by the update that AdamW prescribes, and nothing else."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from patchclamp.core.errors import InputError, MismatchError, ModelError
from patchclamp.data import Task, corpus
from patchclamp.intervene import clamp
from patchclamp.measure import answer_loss, perplexity
from patchclamp.models.load import load
from patchclamp.models.units import UnitSet
from patchclamp.train.finetune import finetune
from patchclamp.train.trained_weights import trained_weights

TEXTS = ["The cat sat on the mat.", "Le chat est assis.", "Two and two make four.", "Die Katze sitzt."]
TASK = Task.of([{"prompt": "Two and two make", "answer": " four"}, {"prompt": "The cat sat on the", "answer": " mat"}])


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.hf.named_parameters()}


def changed(before: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Name -> bool mask of the entries that differ, for parameters where any does."""
    masks = {name: before[name] != parameter for name, parameter in model.hf.named_parameters()}
    return {name: mask for name, mask in masks.items() if mask.any()}


def test_the_loss_falls_and_the_given_model_keeps_every_bit(tiny_llama: Any) -> None:
    before = weights(tiny_llama)
    tuned = finetune(tiny_llama, TEXTS, steps=30, learning_rate=1e-2, quiet=True)
    assert not changed(before, tiny_llama)
    assert not any(parameter.requires_grad for parameter in [*tuned.hf.parameters(), *tiny_llama.hf.parameters()])
    assert len(tuned.training.losses) == 30
    assert tuned.training.losses[-1] < 0.5 * tuned.training.losses[0]
    assert tuned.fingerprint != tiny_llama.fingerprint == tuned.training.provenance["inputs"]["model"]["fingerprint"]
    assert tuned.training.weights == sum(value.numel() for value in before.values())


def test_the_first_loss_is_the_texts_log_perplexity(tiny_gpt2: Any) -> None:
    tuned = finetune(tiny_gpt2, TEXTS, steps=1, batch_tokens=sum(len(tiny_gpt2.tokenize(t)) for t in TEXTS), quiet=True)
    expected = perplexity(tiny_gpt2, corpus(a=TEXTS), quiet=True)["a"]
    assert tuned.training.losses[0] == pytest.approx(math.log(expected.value), abs=1e-5)
    assert tuned.training.tokens == expected.n_tokens


def test_the_loss_of_a_task_is_that_of_its_answers_alone(tiny_llama: Any) -> None:
    tuned = finetune(tiny_llama, TASK, steps=1, batch_tokens=1000, quiet=True)
    expected = answer_loss(tiny_llama, TASK, quiet=True)
    assert tuned.training.tokens == expected.n_tokens
    assert tuned.training.losses[0] == pytest.approx(expected.totals.sum() / expected.n_tokens, abs=1e-5)


def test_a_step_is_what_plain_torch_computes(tiny_llama: Any) -> None:
    tuned = finetune(tiny_llama, TEXTS[:1], steps=2, learning_rate=1e-3, weight_decay=0.1, batch_tokens=2, quiet=True)
    plain = copy.deepcopy(tiny_llama.hf).requires_grad_(True)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.1)
    ids = torch.tensor([tiny_llama.tokenize(TEXTS[0])])
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(plain(ids).logits[0, :-1], ids[0, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    for mine, other in zip(tuned.hf.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other.detach(), atol=2e-6, rtol=1e-4)


def test_a_seed_decides_the_order_and_the_result(tiny_llama: Any) -> None:
    runs = [finetune(tiny_llama, TEXTS, steps=4, batch_tokens=30, seed=seed, quiet=True) for seed in (3, 3, 4)]
    assert runs[0].training.losses == runs[1].training.losses != runs[2].training.losses
    assert not changed(weights(runs[0]), runs[1])


def test_small_forward_passes_make_the_same_step(tiny_llama: Any) -> None:
    at_once, apart = (
        finetune(tiny_llama, TEXTS, steps=3, batch_tokens=60, micro_tokens=size, quiet=True) for size in (4096, 8)
    )
    np.testing.assert_allclose(at_once.training.losses, apart.training.losses, atol=1e-5)


def test_patterns_choose_modules(tiny_llama: Any) -> None:
    before = weights(tiny_llama)
    tuned = finetune(tiny_llama, TEXTS, steps=2, only=["*.1.mlp.down_proj", "model.norm"], quiet=True)
    assert set(changed(before, tuned)) == {"model.layers.1.mlp.down_proj.weight", "model.norm.weight"}
    with pytest.raises(InputError, match=r"no module or parameter is called '\*.down'"):
        finetune(tiny_llama, TEXTS, only="*.down")
    with pytest.raises(InputError, match="would train nothing"):
        finetune(tiny_llama, TEXTS, only=[])


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_units_choose_their_rows_and_columns(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    before = weights(model)
    tuned = finetune(
        model, TEXTS, steps=2, only=UnitSet.of(model, ["mlp.1.5", "mlp.1.9"]), weight_decay=0.1, quiet=True
    )
    found = changed(before, tuned)
    if name == "tiny_llama":
        rows = {"model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.up_proj.weight"}
        assert set(found) == {*rows, "model.layers.1.mlp.down_proj.weight"}
        for row in rows:
            assert found[row].any(1).nonzero().flatten().tolist() == [5, 9]
        assert found["model.layers.1.mlp.down_proj.weight"].any(0).nonzero().flatten().tolist() == [5, 9]
    else:  # Conv1D keeps [in, out], with biases
        block = "transformer.h.1.mlp."
        assert set(found) == {f"{block}c_fc.weight", f"{block}c_fc.bias", f"{block}c_proj.weight"}
        assert found[f"{block}c_fc.weight"].any(0).nonzero().flatten().tolist() == [5, 9]
        assert found[f"{block}c_fc.bias"].nonzero().flatten().tolist() == [5, 9]
        assert found[f"{block}c_proj.weight"].any(1).nonzero().flatten().tolist() == [5, 9]
    assert tuned.fingerprint != model.fingerprint == tuned.training.provenance["inputs"]["model"]["fingerprint"]


def test_heads_and_experts_have_weights_of_their_own(tiny_llama: Any) -> None:
    from patchclamp.models.tiny import tiny_model

    parts = trained_weights(tiny_llama, UnitSet.of(tiny_llama, ["head.2.1"]))
    assert [part.name for part in parts] == ["model.layers.2.self_attn.o_proj.weight"]
    assert parts[0].mask is not None
    assert parts[0].mask.any(0).nonzero().flatten().tolist() == list(range(8, 16))
    mixture = load(tiny_model("mixtral"), check=False)
    layout = mixture.layouts["mlp"]
    unit = next(layout.names([layout.offsets[1] + layout.widths[1] // layout.experts[1] + 2]).__iter__())
    (part,) = trained_weights(mixture, UnitSet.of(mixture, [unit]))
    assert part.size == mixture.anatomy.d_model
    column = mixture.anatomy.down_weights(1)[1][1][:, 2]
    assert torch.equal(part.take(part.parameter), column.float())


def test_units_of_another_model_or_without_weights_are_refused(tiny_llama: Any, tiny_gpt2: Any) -> None:
    with pytest.raises(MismatchError, match="belong to model"):
        finetune(tiny_llama, TEXTS, only=UnitSet.of(tiny_gpt2, ["mlp.1.5"]))
    with pytest.raises(InputError, match="no weights belong to units of resid in layer 1"):
        finetune(tiny_llama, TEXTS, only=UnitSet.of(tiny_llama, ["resid.1.5"]))


def test_half_precision_keeps_steps_too_small_for_it(tiny_llama: Any) -> None:
    half = load(copy.deepcopy(tiny_llama.hf), tokenizer=tiny_llama.tokenizer, dtype="bfloat16", check=False)
    before = weights(half)
    tuned = finetune(half, TEXTS, steps=40, learning_rate=1e-4, batch_tokens=200, quiet=True)
    reference = finetune(tiny_llama, TEXTS, steps=40, learning_rate=1e-4, batch_tokens=200, quiet=True)
    assert tuned.dtype is torch.bfloat16
    name = "model.layers.1.mlp.down_proj.weight"
    moved = (weights(tuned)[name].float() - before[name].float()).flatten()
    wanted = (weights(reference)[name] - weights(tiny_llama)[name]).flatten()
    assert float(torch.corrcoef(torch.stack([moved, wanted]))[0, 1]) > 0.8


def test_a_clamped_model_is_refused_and_hooks_of_transformers_are_not(tiny_gpt2: Any) -> None:
    with (
        clamp(tiny_gpt2, ["mlp.1.5"], to=0.0),
        pytest.raises(InputError, match="leave every clamp"),
    ):
        finetune(tiny_gpt2, TEXTS, steps=1, quiet=True)
    tiny_gpt2.hf(torch.tensor([[1, 5]]), output_hidden_states=True)
    tuned = finetune(tiny_gpt2, TEXTS, steps=1, quiet=True)
    assert changed(weights(tiny_gpt2), tuned)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": "one text"}, "a list of texts is needed"),
        ({"texts": []}, "no text|empty"),
        ({"texts": TEXTS, "steps": 0}, "steps=0"),
        ({"texts": TEXTS, "learning_rate": float("nan")}, "learning_rate=nan"),
        ({"texts": TEXTS, "schedule": "zigzag"}, "schedule='zigzag'"),
        ({"texts": TEXTS, "max_length": 1000}, "this model takes 2 to 64"),
    ],
)
def test_bad_arguments_are_refused(tiny_llama: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        finetune(tiny_llama, **arguments)


def test_text_without_a_token_to_predict_is_refused(tiny_llama: Any) -> None:
    from tokenizers import processors

    bare = copy.deepcopy(tiny_llama.tokenizer)
    bare.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)  # no BOS any more
    with pytest.raises(InputError, match="fewer than 2 tokens"):
        finetune(load(tiny_llama.hf, tokenizer=bare, check=False), ["a", "b"], steps=1)


def test_a_loss_that_is_not_finite_stops_the_run(tiny_llama: Any) -> None:
    with pytest.raises(ModelError, match="the loss is"):
        finetune(tiny_llama, TEXTS, steps=20, learning_rate=1e30, quiet=True)


@pytest.mark.parametrize(
    ("schedule", "last"), [("constant", 1.0), ("linear", 0.1), ("cosine", (1 + math.cos(0.9 * math.pi)) / 2)]
)
def test_schedules_begin_at_the_peak_and_fall_as_they_are_called(schedule: str, last: float) -> None:
    from patchclamp.train.finetune import _factor

    assert _factor(0, 10, schedule, 0.0) == 1.0
    assert _factor(9, 10, schedule, 0.0) == pytest.approx(last)
    assert [_factor(step, 10, schedule, 0.3) for step in range(3)] == pytest.approx([1 / 3, 2 / 3, 1.0])
