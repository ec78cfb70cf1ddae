"""What every kind of intervention keeps to: compose, save, undo, bf16, caches, padding, beams.

A new kind needs an example in EXAMPLES; a test fails until it has one.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchclamp.core.errors import InputError, MismatchError, ModelError
from patchclamp.intervene import Direction, Interventions, edit, intervention
from patchclamp.intervene.abstention import Abstention, Box
from patchclamp.intervene.attention_override import force_attention
from patchclamp.intervene.eigenshift import EigenShift
from patchclamp.intervene.key_space import Region
from patchclamp.intervene.kinds import Change, kind_name, kinds
from patchclamp.intervene.skills import Component, NeuronAdjust
from patchclamp.models.hooks import changed_layers, observe
from patchclamp.models.load import load
from patchclamp.models.units import UnitSet

NAMES = [entry.name for entry in kinds if entry.target.__module__.startswith("patchclamp.")]
PROMPTS = ["The cat sat", "Two and two make four and", "Le chat", "moon"]
NEW = 8  # tokens generated
FEW = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class StoppedError(Exception):
    """What is raised inside a context."""


def units_example(model: Any, prompts: list[str]) -> list[Change]:
    """Neurons at a value, a head scaled in the prompt, a direction added to what is generated."""
    vector = np.random.default_rng(1).normal(size=model.anatomy.d_model)
    return [
        intervention(model, ["mlp.0.3", "mlp.1.7", "mlp.2.40"], to=[2.0, -3.0, 4.0]),
        intervention(model, ["head.1.2"], scale=-4.0, scope="prompt"),
        intervention(model, Direction.of(model, "resid", [1], 4 * vector), add=1.0, scope="generated"),
    ]


def eigenshift_example(model: Any, prompts: list[str]) -> list[Change]:
    """Six random directions of what enters the LM head turned round."""
    drawn = np.random.default_rng(2).normal(size=(model.anatomy.d_model, 6))
    return [EigenShift.of(model, np.ascontiguousarray(np.linalg.qr(drawn)[0].T), -2.0)]


def neuron_adjust_example(model: Any, prompts: list[str]) -> list[Change]:
    """Neurons whose values all look like the skill, moved far away; sampled and expected."""
    units = UnitSet.of(model, [f"mlp.{layer}.{index}" for layer in (0, 2) for index in (1, 5, 9, 20)])
    numbers = np.repeat([[0.0], [2.0], [3.0], [1.0]], len(units), axis=1)
    one = Component("skill", units, numbers)
    return [NeuronAdjust((one,), "sampled", seed=3), NeuronAdjust((one,), "expected")]


def abstain_example(model: Any, prompts: list[str]) -> list[Change]:
    """A box around the keys of two prompts, checked at the prompt's end and at every later position."""
    keys = [seen_at(model, [("mlp", 1)], [prompt])["mlp", 1][-1].numpy() for prompt in PROMPTS[:2]]
    near = np.maximum(np.std(keys, axis=0, ddof=1), 0.3)  # room for what bf16 rounds away
    box = Box("cats", Region("mlp", 1, np.mean(keys, axis=0), near, 0.7, 2, model=model.identity), 1.5)
    return [Abstention((box,), "No."), Abstention((box,), "No.", "any")]


def force_attention_example(model: Any, prompts: list[str]) -> list[Change]:
    """Two heads that look from every prompt's last token at its second only."""
    last = np.array([len(model.tokenize(prompt)) - 1 for prompt in prompts])
    return [force_attention(model, ["head.0.1", "head.2.3"], last, np.ones((len(prompts), 1), dtype=np.int64))]


# kind -> small examples that change what the tiny models write after `prompts`, a batch in this order
EXAMPLES: dict[str, Callable[[Any, list[str]], list[Change]]] = {
    "abstain": abstain_example,
    "eigenshift": eigenshift_example,
    "force-attention": force_attention_example,
    "neuron-adjust": neuron_adjust_example,
    "units": units_example,
}

WITHOUT_CONTROLS = ("abstain",)
WITHOUT_WEIGHTS = ("abstain", "force-attention", "neuron-adjust")  # they depend on what the model computes


@pytest.fixture(scope="module", params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def examples(name: str, model: Any, prompts: list[str] = PROMPTS) -> list[Change]:
    assert name in EXAMPLES, f"{name!r} has no example in {Path(__file__).name}: write one and enter it in EXAMPLES"
    return EXAMPLES[name](model, prompts)


def whole(name: str, model: Any, prompts: list[str] = PROMPTS) -> Interventions:
    """All examples of a kind, one after another."""
    return Interventions(examples(name, model, prompts))


def each_and_all(name: str, model: Any, prompts: list[str] = PROMPTS) -> list[Interventions]:
    """Each example of a kind alone, then all together."""
    return [*map(Interventions.of, examples(name, model, prompts)), whole(name, model, prompts)]


def batch(model: Any, prompts: list[str] = PROMPTS) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts, padded on the left."""
    rows = [model.tokenize(prompt) for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[model.pad_id] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def logits(model: Any) -> Tensor:
    return model.logits(*batch(model))


def seen_at(model: Any, taps: list[tuple[str, int]], prompts: list[str] = PROMPTS) -> dict[tuple[str, int], Tensor]:
    """Values of some taps on a batch of prompts."""
    kept: dict[tuple[str, int], Tensor] = {}
    with observe(model, taps, lambda seen: kept.update({(seen.site, seen.layer): seen.values.clone()})):
        model.logits(*batch(model, prompts))
    return kept


def weights(model: Any) -> str:
    found = hashlib.sha256()
    for name, value in sorted(model.hf.state_dict().items()):
        found.update(name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def hooks(model: Any) -> int:
    """Hooks on all modules, and what was put in front of `generate` and `forward`."""
    kept = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    on_modules = sum(len(getattr(module, name)) for module in model.hf.modules() for name in kept)
    replaced = sum(name in vars(module) for module in model.hf.modules() for name in ("forward", "generate"))
    return on_modules + replaced + len(changed_layers(model))


@contextlib.contextmanager
def untouched(model: Any) -> Any:
    """Weights, logits and hooks are afterwards what they were before, bit for bit."""
    before = weights(model), logits(model), hooks(model)
    yield
    assert hooks(model) == before[2]
    assert weights(model) == before[0]
    assert torch.equal(logits(model), before[1])


def written(model: Any, prompts: list[str] = PROMPTS, **how: Any) -> list[list[int]]:
    """New ids after each prompt, batched; up to the end of text."""
    ids, mask = batch(model, prompts)
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": NEW, "pad_token_id": model.pad_id, **how}
    with torch.no_grad():
        out = model.hf.generate(ids, attention_mask=mask, **settings)
    end = model.hf.generation_config.eos_token_id
    rows = out[:, ids.shape[1] :].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


def test_every_kind_has_an_example() -> None:
    assert sorted(EXAMPLES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_examples_change_what_the_model_computes_and_nothing_stays(name: str, model: Any) -> None:
    for item in examples(name, model):
        assert kind_name(item) == name
        plain = written(model)
        with untouched(model), item.applied(model):
            changed = logits(model)
            assert hooks(model) > 0
            after = written(model)
        assert not torch.equal(changed, logits(model)) or after != plain, item.describe()
        assert torch.isfinite(changed).all()


@pytest.mark.parametrize("name", NAMES)
def test_an_exception_inside_undoes_it(name: str, model: Any) -> None:
    item = whole(name, model)
    with untouched(model):
        with pytest.raises(StoppedError), item.applied(model):
            logits(model)
            raise StoppedError
        with pytest.raises(StoppedError), item.applied(model), observe(model, [("resid", 1)], stop):
            logits(model)  # in the middle of a forward pass
        with pytest.raises(StoppedError), item.applied(model), observe(model, [("resid", 1)], stop_later()):
            written(model)  # in the middle of a generation


def stop(seen: Any) -> None:
    raise StoppedError


def stop_later() -> Callable[[Any], None]:
    """An observer that raises when it sees the third step."""
    steps: list[Any] = []

    def see(seen: Any) -> None:
        steps.append(seen.step)
        if len(steps) == 3:
            raise StoppedError

    return see


@pytest.mark.parametrize("name", NAMES)
def test_a_list_is_the_nesting_of_its_items(name: str, model: Any) -> None:
    other = intervention(model, ["mlp.1.2", "mlp.2.3"], add=1.5)
    for item in examples(name, model):
        with item.applied(model), other.applied(model):
            nested = logits(model)
        with (item + other).applied(model):
            assert torch.equal(logits(model), nested)
        with untouched(model), item.applied(model):
            alone = logits(model)
            with other.applied(model):
                assert torch.equal(logits(model), nested)
            assert torch.equal(logits(model), alone)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_does_the_same(name: str, model: Any, tmp_path: Path) -> None:
    items = whole(name, model)
    again = Interventions.load(items.save(tmp_path / "items.json"))
    assert again.describe() == items.describe()
    assert again.n_units == items.n_units >= 0
    assert [one.scope for one in again] == [one.scope for one in items]
    assert again.to_dict() == items.to_dict()
    with items.applied(model):
        wanted, said = logits(model), written(model)
    with again.applied(model):
        assert torch.equal(logits(model), wanted)
        assert written(model) == said


@pytest.mark.parametrize("name", NAMES)
def test_another_model_is_refused(name: str, request: pytest.FixtureRequest) -> None:
    mine, other = request.getfixturevalue("tiny_llama"), request.getfixturevalue("tiny_gpt2")
    with untouched(other), pytest.raises(MismatchError), whole(name, mine).applied(other):
        pass


@pytest.mark.parametrize("name", NAMES)
def test_blocks_below_the_lowest_compute_the_same(name: str, model: Any) -> None:
    for item in examples(name, model):
        lowest = item.lowest_block()
        assert lowest is not None
        taps = [("resid", layer) for layer in range(lowest)]
        plain, changed = seen_at(model, taps), None
        with item.applied(model):
            changed = seen_at(model, taps)
        assert all(torch.equal(plain[tap], changed[tap]) for tap in taps)


@pytest.mark.parametrize("name", NAMES)
def test_a_random_control_is_repeatable_or_refused(name: str, model: Any) -> None:
    for item in examples(name, model):
        if name in WITHOUT_CONTROLS:
            with pytest.raises(InputError, match="no random control"):
                item.matched_random(1)
            continue
        one, again, other = item.matched_random(1), item.matched_random(1), item.matched_random(2)
        assert kind_name(one) == name
        assert one.to_dict() == again.to_dict() != other.to_dict()
        assert (one.n_units, one.scope) == (item.n_units, item.scope)
        with untouched(model), one.applied(model):
            assert torch.isfinite(logits(model)).all()


@pytest.mark.parametrize("name", NAMES)
def test_weights_hold_it_exactly_or_it_says_why(name: str, model: Any) -> None:
    for item in examples(name, model):
        if name in WITHOUT_WEIGHTS or item.scope != "all":
            with untouched(model), pytest.raises(ModelError, match=r"weights|scope"):
                edit(model, item)
            continue
        with untouched(model):
            edited = edit(model, item)
        with item.applied(model):
            wanted = logits(model)
        torch.testing.assert_close(logits(edited.model), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_in_bfloat16(name: str, model: Any) -> None:
    half = load(copy.deepcopy(model.hf).to(torch.bfloat16), tokenizer=model.tokenizer)
    items = whole(name, model)
    plain, said = logits(half), written(half)
    with items.applied(half):
        changed, instead = logits(half), written(half)
    assert changed.dtype == plain.dtype
    assert torch.isfinite(changed).all()
    assert not torch.equal(changed, plain) or instead != said
    assert torch.equal(logits(half), plain)


@pytest.mark.parametrize("name", NAMES)
def test_generation_with_a_cache_is_that_without(name: str, model: Any) -> None:
    for items in each_and_all(name, model):
        with untouched(model), items.applied(model):
            assert written(model, use_cache=True) == written(model, use_cache=False), items.describe()


@pytest.mark.parametrize("name", NAMES)
def test_a_left_padded_batch_is_each_prompt_alone(name: str, model: Any) -> None:
    alone = [each_and_all(name, model, [prompt]) for prompt in PROMPTS]
    for number, items in enumerate(each_and_all(name, model)):
        with items.applied(model):
            together, said = logits(model)[:, -1], written(model)
        for row, prompt in enumerate(PROMPTS):
            with alone[row][number].applied(model):
                torch.testing.assert_close(
                    together[row], model.logits(*batch(model, [prompt]))[0, -1], rtol=1e-4, atol=1e-4
                )
                assert written(model, [prompt])[0] == said[row], items.describe()


@pytest.mark.parametrize("name", NAMES)
def test_beam_search_keeps_rows_apart(name: str, model: Any) -> None:
    beams: dict[str, Any] = {"num_beams": 3, "early_stopping": True}
    alone = [each_and_all(name, model, [prompt]) for prompt in PROMPTS]
    for number, items in enumerate(each_and_all(name, model)):
        with untouched(model), items.applied(model):
            said = written(model, **beams)
            if all(getattr(item, "when", None) != "any" for item in items):  # says itself that a cache matters there
                assert written(model, use_cache=False, **beams) == said, items.describe()
        for row, prompt in enumerate(PROMPTS):
            with alone[row][number].applied(model):
                assert written(model, [prompt], **beams)[0] == said[row], items.describe()


@pytest.mark.parametrize("name", NAMES)
def test_generating_twice_in_one_context_gives_the_same(name: str, model: Any) -> None:
    for item in examples(name, model):
        with item.applied(model):
            first = written(model)
            written(model, PROMPTS[::-1])
            assert written(model) == first


@FEW
@given(data=st.data())
def test_any_nesting_leaves_the_model_as_it_was(tiny_llama: Any, data: st.DataObject) -> None:
    pool = [item for name in NAMES for item in examples(name, tiny_llama)]
    chosen = data.draw(st.lists(st.sampled_from(range(len(pool))), min_size=1, max_size=5))
    fails = data.draw(st.sampled_from(["nowhere", "inside", "in a pass", "between"]))
    depth = data.draw(st.integers(0, len(chosen) - 1))
    with untouched(tiny_llama), contextlib.suppress(StoppedError), contextlib.ExitStack() as stack:
        for number, which in enumerate(chosen):
            stack.enter_context(pool[which].applied(tiny_llama))
            if number == depth and fails == "between":
                raise StoppedError
        logits(tiny_llama)
        if fails == "inside":
            raise StoppedError
        if fails == "in a pass":
            with observe(tiny_llama, [("resid", 0)], stop):
                logits(tiny_llama)
