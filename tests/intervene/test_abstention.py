"""Abstention: which rows refuse, what they say, the same in batches, beams and teacher forcing; fitted, saved, watched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.find.planted_skill import noisy, shifted, text

import patchclamp as pc
from patchclamp.core.errors import DamagedError, InputError, MismatchError, ModelError
from patchclamp.intervene import Interventions, intervention
from patchclamp.intervene.abstention import REFUSAL, Abstention, Box, spoken_ids
from patchclamp.intervene.fits import fit
from patchclamp.intervene.key_fit import abstain, abstain_from_text
from patchclamp.intervene.key_space import Region
from patchclamp.intervene.verdicts import trips_per_100_tokens, verdicts
from patchclamp.models import hooks
from patchclamp.models.collect import collect
from patchclamp.models.hooks import prompt_scope
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model

KINDS = ("skill", "rest", "more")
PROMPTS = ["The cat", "Le chat est assis", "Two", "Die Katze sitzt auf der"]


def keys(model: Any, prompt: str, layer: int) -> np.ndarray:
    """(tokens, width) vectors that enter a layer's down projection."""
    layout = model.layouts["mlp"]
    return collect(model, "mlp", torch.tensor([model.tokenize(prompt)]))[0].double().numpy()[:, layout.slice(layer)]


def around(model: Any, vectors: np.ndarray, *, layer: int, width: float = 1e-3) -> Box:
    """A box that holds these vectors and hardly anything else; alpha 1."""
    middle = vectors.mean(0)
    std = 1.001 * np.maximum(np.abs(vectors - middle).max(0), width)  # another batch rounds them differently
    return Box("skill", Region("mlp", layer, middle, std, 1.0, 20, 0, dict(model.identity)), 1.0)


def refusing(model: Any, prompt: str, *, layer: int = 1, when: str = "prompt", refusal: str = "No.") -> Abstention:
    """An abstention that trips on one prompt's last key."""
    return Abstention((around(model, keys(model, prompt, layer)[-1:], layer=layer),), refusal, when)


# --- who refuses, and what is said --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("arguments", [{}, {"use_cache": False}, {"num_beams": 3}, {"do_sample": True, "seed": 0}])
@pytest.mark.parametrize("when", ["prompt", "any"])
def test_only_the_row_whose_prompt_lies_inside_refuses(
    name: str, arguments: dict[str, Any], when: str, request: pytest.FixtureRequest
) -> None:
    """The reference looks at the first row of a batch and keeps one verdict for all."""
    model = request.getfixturevalue(name)
    how = {"max_new_tokens": 12, **arguments}
    seed = how.pop("seed", None)

    def written(prompts: list[str]) -> list[str]:
        if seed is not None:
            torch.manual_seed(seed)
        found: list[str] = model.generate(prompts, **how)
        return found

    for at, prompt in enumerate(PROMPTS):
        plain = written(PROMPTS)
        with refusing(model, prompt, when=when).applied(model):
            found = written(PROMPTS)
            alone = written([prompt])
        assert found[at] == alone[0] == "No."
        assert seed is not None or found[:at] + found[at + 1 :] == plain[:at] + plain[at + 1 :]
    assert written(PROMPTS) == plain


def test_the_refusal_ends_the_text(tiny_llama: Any) -> None:
    ids = torch.tensor([tiny_llama.tokenize("Two")])
    with refusing(tiny_llama, "Two").applied(tiny_llama):
        out = tiny_llama.hf.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert out[0, ids.shape[1] :].tolist() == [*spoken_ids(tiny_llama, "No."), 2]


def test_a_model_without_an_end_of_text_says_it_again(tiny_llama: Any) -> None:
    from patchclamp.intervene.refusing import Refusing

    box = refusing(tiny_llama, "Two").boxes[0]
    running = Refusing([(box.region, 1.0)], "prompt", [5, 6], None)
    assert running._tokens(torch.arange(5)).tolist() == [5, 6, 5, 6, 5]
    assert Refusing([(box.region, 1.0)], "prompt", [5, 6], 2)._tokens(torch.arange(5)).tolist() == [5, 6, 2, 2, 2]


@pytest.mark.parametrize("when", ["prompt", "any"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_scored_answers_meet_the_logits_that_generation_meets(tiny_llama: Any, when: str, side: str) -> None:
    """Teacher-forced rows with answers of different length, padded on either side: forced from the prompt's last key on."""
    ids = [tiny_llama.tokenize(prompt) for prompt in ("The cat", "Two")]
    answers = [[40, 41, 42, 43, 44], [50, 51]]
    rows = [prompt + answer for prompt, answer in zip(ids, answers, strict=True)]
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    batch = torch.tensor([p + r if side == "left" else r + p for p, r in zip(pads, rows, strict=True)])
    mask = torch.tensor([p + o if side == "left" else o + p for p, o in zip(pads, ones, strict=True)])
    lengths = torch.tensor([len(prompt) for prompt in ids])
    plain = tiny_llama.logits(batch, mask)
    spoken = [*spoken_ids(tiny_llama, "No."), 2, 2, 2, 2]
    for tripped in range(2):
        change = refusing(tiny_llama, ("The cat", "Two")[tripped], when=when)
        with change.applied(tiny_llama), prompt_scope(tiny_llama, lengths):
            found = tiny_llama.logits(batch, mask)
        start = (len(pads[tripped]) if side == "left" else 0) + len(ids[tripped]) - 1
        stop = start + 1 + len(answers[tripped])
        forced = found[tripped, start:stop]
        assert forced.argmax(-1).tolist() == spoken[: len(forced)]
        assert (forced.amax(-1) == 30).all()
        assert (forced.sort(-1).values[:, :-1] == 0).all()
        assert torch.equal(found[tripped, :start], plain[tripped, :start])
        assert torch.equal(found[1 - tripped], plain[1 - tripped])


def test_kept_logits_are_forced_as_all_of_them_are(tiny_llama: Any) -> None:
    ids = torch.tensor([[*tiny_llama.tokenize("Two"), 50, 51]])
    with refusing(tiny_llama, "Two").applied(tiny_llama), prompt_scope(tiny_llama, ids.shape[1] - 2):
        whole = tiny_llama.logits(ids)
        kept = tiny_llama.hf(**tiny_llama.inputs(ids), logits_to_keep=2).logits
    assert torch.equal(kept, whole[:, -2:])


def test_without_an_answer_the_whole_input_is_the_prompt(tiny_llama: Any) -> None:
    ids = torch.tensor([tiny_llama.tokenize("The cat")])
    plain = tiny_llama.logits(ids)
    with refusing(tiny_llama, "The cat").applied(tiny_llama):
        found = tiny_llama.logits(ids)
    assert torch.equal(found[:, :-1], plain[:, :-1])
    assert found[0, -1].argmax() == spoken_ids(tiny_llama, "No.")[0]


def greedy(model: Any, prompt: str, n: int) -> list[int]:
    """What the model writes: ids."""
    ids = torch.tensor([model.tokenize(prompt)])
    out = model.hf.generate(ids, max_new_tokens=n, do_sample=False, pad_token_id=0, eos_token_id=None)
    found: list[int] = out[0, ids.shape[1] :].tolist()
    return found


@pytest.mark.parametrize("arguments", [{}, {"use_cache": False}])
def test_any_key_on_the_way_cuts_the_answer_short(tiny_llama: Any, arguments: dict[str, Any]) -> None:
    """A box around the key of the third token written: what came before stays, then the refusal."""
    new = greedy(tiny_llama, "The cat", 6)
    whole = tiny_llama.tokenize("The cat") + new
    layout = tiny_llama.layouts["mlp"]
    third = collect(tiny_llama, "mlp", torch.tensor([whole]))[0].double().numpy()[[len(whole) - 4], layout.slice(1)]
    box = around(tiny_llama, third, layer=1)
    rows = ["The cat", "Two"]
    how = {"max_new_tokens": 12, "eos_token_id": 2, **arguments}
    plain = tiny_llama.generate(rows, **how)
    with Abstention((box,), "No.", "any").applied(tiny_llama):
        found = tiny_llama.generate(rows, **how)
    assert found[0] == tiny_llama.tokenizer.decode(new[:3]) + "No."
    assert found[1] == plain[1]
    with Abstention((box,), "No.", "prompt").applied(tiny_llama):
        assert tiny_llama.generate(rows, **how) == plain


def test_beams_of_a_prompt_refuse_together(tiny_llama: Any) -> None:
    new = greedy(tiny_llama, "The cat", 6)
    whole = tiny_llama.tokenize("The cat") + new
    second = collect(tiny_llama, "mlp", torch.tensor([whole]))[0].double().numpy()[[len(whole) - 5], slice(48, 96)]
    with Abstention((around(tiny_llama, second, layer=1),), "No.", "any").applied(tiny_llama):
        found = tiny_llama.generate(["The cat", "Two"], max_new_tokens=12, num_beams=3)
        assert found[0].endswith("No.")
    assert found[1] == tiny_llama.generate(["The cat", "Two"], max_new_tokens=12, num_beams=3)[1]


def test_all_keys_of_the_prompt_must_lie_inside_where_that_is_asked(tiny_llama: Any) -> None:
    inside = keys(tiny_llama, "The cat", 0)
    box = around(tiny_llama, inside, layer=0)
    longer = "The cat"[:3]  # a prompt whose keys are among them
    assert tiny_llama.tokenize(longer) == tiny_llama.tokenize("The cat")[: len(tiny_llama.tokenize(longer))]
    last_only = refusing(tiny_llama, "The cat", layer=0).boxes[0]
    rows = ["The cat", longer, "Two"]
    plain = tiny_llama.generate(rows, max_new_tokens=8)
    for arguments in ({}, {"use_cache": False}):
        with Abstention((box,), "No.", "all").applied(tiny_llama):
            assert tiny_llama.generate(rows, max_new_tokens=8, **arguments) == ["No.", "No.", plain[2]]
        with Abstention((last_only,), "No.", "all").applied(tiny_llama):
            assert tiny_llama.generate(rows, max_new_tokens=8, **arguments) == plain


def test_one_of_several_boxes_is_enough(tiny_llama: Any) -> None:
    boxes = tuple(refusing(tiny_llama, prompt, layer=layer).boxes[0] for layer, prompt in enumerate(PROMPTS[:2]))
    plain = tiny_llama.generate(PROMPTS, max_new_tokens=6)
    with Abstention(boxes, "No.").applied(tiny_llama):
        assert tiny_llama.generate(PROMPTS, max_new_tokens=6) == ["No.", "No.", *plain[2:]]


def test_a_box_of_no_size_holds_the_exact_middle_only(tiny_llama: Any) -> None:
    box = refusing(tiny_llama, "Two").boxes[0]
    moved = Region("mlp", 1, box.region.mean + 1e-9, box.region.std, 1.0, 20, 0, box.region.model)
    plain = tiny_llama.generate("Two", max_new_tokens=5)
    with Abstention((Box("skill", box.region, 0.0),), "No.").applied(tiny_llama):
        assert tiny_llama.generate("Two", max_new_tokens=5) == ["No."]
    with Abstention((Box("skill", moved, 0.0),), "No.").applied(tiny_llama):
        assert tiny_llama.generate("Two", max_new_tokens=5) == plain


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_keys_of_experts_are_gathered_over_all_of_them(kind: str, tiny_tokenizer: Any) -> None:
    """What a token was not given to counts as 0, as recordings keep it; the distance is that of the whole layer."""
    model = load(tiny_model(kind), tokenizer=tiny_tokenizer, check=False)
    ids = torch.randint(3, 199, (3, 5), generator=torch.Generator().manual_seed(0))
    layout = model.layouts["mlp"]
    found = collect(model, "mlp", ids)[:, -1].double().numpy()[:, layout.slice(0)]
    vectors = np.concatenate([found[:1]] * 2)
    change = Abstention((around(model, vectors, layer=0, width=1e-4),), "No.")
    plain = model.logits(ids)
    with change.applied(model):
        forced = model.logits(ids)
    assert (forced[0, -1].amax() == 30).item()
    assert torch.equal(forced[1:], plain[1:])
    assert torch.equal(forced[0, :-1], plain[0, :-1])


def test_bfloat16_refuses_too(tiny_llama: Any) -> None:
    import copy

    model = load(copy.deepcopy(tiny_llama.hf).to(torch.bfloat16), tokenizer=tiny_llama.tokenizer, check=False)
    with refusing(model, "Two").applied(model):
        assert model.generate(["Two"], max_new_tokens=8) == ["No."]
        assert model.generate(["The cat"], max_new_tokens=8) != ["No."]


@given(when=st.sampled_from(["prompt", "any", "all"]), raised=st.booleans(), at=st.integers(0, 3))
@settings(max_examples=8, deadline=None)
def test_nothing_is_left_behind(tiny_llama: Any, when: str, raised: bool, at: int) -> None:
    ids = torch.tensor([tiny_llama.tokenize(PROMPTS[at])])
    plain = tiny_llama.logits(ids)
    try:
        with refusing(tiny_llama, PROMPTS[at], when=when).applied(tiny_llama):
            tiny_llama.generate(PROMPTS, max_new_tokens=3)
            if raised:
                raise KeyError
    except KeyError:
        pass
    assert torch.equal(tiny_llama.logits(ids), plain)


def test_it_goes_with_other_changes(tiny_llama: Any) -> None:
    """A clamp below moves the key out of the box: what the change sees is what flows."""
    clamped = intervention(tiny_llama, ["resid.0.3"], to=5.0)
    change = refusing(tiny_llama, "Two")
    with clamped.applied(tiny_llama):
        wanted = tiny_llama.generate("Two", max_new_tokens=5)
    with (clamped + change).applied(tiny_llama):
        assert tiny_llama.generate("Two", max_new_tokens=5) == wanted
    assert (change + clamped).lowest_block() == 0


def test_gradients_flow_past_it_after_passes_without_them(tiny_llama: Any) -> None:
    ids = torch.tensor([tiny_llama.tokenize("Two"), tiny_llama.tokenize("Two")])
    ids[1, -1] = 40
    shift = torch.zeros(32, requires_grad=True)
    with refusing(tiny_llama, "Two").applied(tiny_llama):
        tiny_llama.logits(ids)
        with hooks.change(tiny_llama, {("resid", 0): lambda seen: seen.values + shift}):
            found = tiny_llama.logits(ids, grad=True)
    assert (found[0, -1].amax() == 30).item()
    found[:, -1, 5].sum().backward()
    assert shift.grad is not None
    assert shift.grad.abs().sum() > 0


# --- as data -----------------------------------------------------------------------------------------------------


def test_it_survives_saving_and_belongs_to_its_model(tiny_llama: Any, tiny_gpt2: Any, tmp_path: Path) -> None:
    change = refusing(tiny_llama, "Two", when="any", refusal="Nein.")
    again = Interventions.load((change + change).save(tmp_path / "no.json"))
    assert again[0].to_dict() == change.to_dict()
    with again[0].applied(tiny_llama):
        assert tiny_llama.generate("Two", max_new_tokens=8) == ["Nein."]
    with pytest.raises(MismatchError), again.applied(tiny_gpt2):
        pass
    assert REFUSAL not in change.describe()
    body = change.to_dict()
    body["boxes"][0]["k"] = 99.0  # farther than 20 vectors can lie
    with pytest.raises(DamagedError, match="Samuelson"):
        Abstention.from_dict(body, tiny_llama)
    with pytest.raises(DamagedError):
        Abstention.from_dict(change.to_dict() | {"when": "never"}, tiny_llama)


def test_there_is_no_random_control_and_no_edit(tiny_llama: Any) -> None:
    change = refusing(tiny_llama, "Two")
    with pytest.raises(InputError, match="control"):
        change.matched_random(0)
    with pytest.raises(ModelError):
        change.write(tiny_llama)
    assert change.n_units == 0


@pytest.mark.parametrize("arguments", [{"boxes": ()}, {"when": "never"}, {"refusal": " "}, {"scope": "prompt"}])
def test_what_makes_no_abstention_is_refused(tiny_llama: Any, arguments: dict[str, Any]) -> None:
    boxes = refusing(tiny_llama, "Two").boxes
    with pytest.raises(InputError):
        Abstention(**{"boxes": boxes, **arguments})
    with pytest.raises(InputError):
        Box("skill", boxes[0].region, float("nan"))


def test_a_model_without_a_tokenizer_can_say_nothing(tiny_llama: Any) -> None:
    model = load(tiny_llama.hf, check=False)
    with pytest.raises(InputError, match="tokenizer"):
        refusing(tiny_llama, "Two").compiled(model)


# --- fitted ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted() -> Any:
    """Layer 0 sees nothing but noise; in layer 1 a few neurons are moved far by the skill."""
    gates = [shifted(units, 60, 3, kind=0, shift=12.0, seed=at) for at, units in enumerate([(), PLANTED])]
    return noisy(KINDS, gates, act="silu")


PLANTED = (4, 9, 33)


@pytest.fixture(scope="module")
def recording(planted: Any) -> Any:
    return pc.record(planted, pc.corpus(text(KINDS, documents=80)), statistics=("pooled", "moments"), quiet=True)


def test_the_skill_is_refused_and_the_rest_answered(planted: Any, recording: Any) -> None:
    change = abstain(recording, forget="skill", layer="best")
    box = change.boxes[0]
    assert box.region.layer == 1
    assert box.fitted["forget"] >= 0.8
    assert box.fitted["retain"] <= 0.1
    assert [entry["layer"] for entry in box.fitted["layers"]] == [0, 1]
    assert f"{box.fitted['forget']:.0%} of held-out skill" in change.describe()
    fresh = text(KINDS, documents=30, seed=5)
    found = {kind: verdicts(planted, change, lines) for kind, lines in fresh.items()}
    assert np.mean([one.refused for one in found["skill"]]) > 0.7
    assert np.mean([one.refused for kind in KINDS[1:] for one in found[kind]]) < 0.1
    for one in found["skill"][:5]:
        reach = box.region.reach(keys(planted, one.prompt, 1)[-1:])[0] / box.alpha
        assert one.nearness[0] == pytest.approx(reach, rel=1e-5)


def test_the_last_layer_is_the_paper_s_and_others_can_be_asked_for(recording: Any) -> None:
    assert abstain(recording, forget="skill").boxes[0].region.layer == 1
    assert abstain(recording, forget="skill", layer=0).boxes[0].region.layer == 0
    chosen = abstain(recording, forget="skill").boxes[0]
    again = abstain(recording, forget="skill", alpha=chosen.alpha).boxes[0]
    assert (again.fitted["forget"], again.fitted["retain"]) == (chosen.fitted["forget"], chosen.fitted["retain"])
    small, large = (abstain(recording, forget="skill", alpha=alpha).boxes[0] for alpha in (1e-6, 1e6))
    assert (small.alpha, large.alpha) == (1e-6, 1e6)
    assert (small.fitted["forget"], large.fitted["retain"]) == (0.0, 1.0)


def test_several_skills_each_have_a_box(planted: Any, recording: Any) -> None:
    change = abstain(recording, forget=["skill", "more"], layer="best")
    assert [box.name for box in change.boxes] == ["skill", "more"]
    assert change.boxes[0].fitted["answered"] == ["rest"]


def test_without_other_text_the_size_can_t_be_tuned(planted: Any) -> None:
    alone = pc.record(planted, pc.corpus(skill=text(KINDS)["skill"]), statistics=("pooled",), quiet=True)
    with pytest.warns(UserWarning, match="alpha"):
        change = abstain(alone, forget="skill")
    assert change.boxes[0].alpha == 1.0
    assert change.boxes[0].fitted["retain"] is None
    assert 0 <= change.boxes[0].fitted["forget"] <= 1


def test_all_tokens_make_a_box_for_all_keys(planted: Any, recording: Any) -> None:
    others = pc.record(planted, pc.corpus(text(KINDS, documents=30, seed=9)), statistics=("pooled",), quiet=True)
    change = abstain(recording, forget="skill", fit="all", held_out=others, layer="best", alpha=1.0, when="all")
    found = verdicts(planted, change, text(KINDS, documents=80)["skill"][:20])
    assert all(one.refused for one in found)  # fitted to these very keys


def test_texts_of_different_length_are_fitted(planted: Any) -> None:
    """The reference fails on them unless it looks at last tokens only."""
    lines = {
        kind: [" ".join(line.split()[: 3 + at % 9]) for at, line in enumerate(each)]
        for kind, each in text(KINDS).items()
    }
    change = abstain_from_text(planted, pc.corpus(lines), forget="skill", layer="best", quiet=True)
    assert change.boxes[0].fitted["counts"]["fit"] > 1
    assert fit("abstain", planted_recording(planted, lines), forget="skill").describe()


def planted_recording(model: Any, lines: dict[str, list[str]]) -> Any:
    return pc.record(model, pc.corpus(lines), statistics=("pooled",), quiet=True)


@pytest.mark.parametrize(
    "arguments",
    [
        {"forget": "nothing"}, {"forget": []}, {"forget": ["skill", "skill"]}, {"forget": "skill", "retain": ["skill"]},
        {"forget": "skill", "layer": 7}, {"forget": "skill", "layer": "first"}, {"forget": "skill", "alpha": -1.0},
        {"forget": "skill", "site": "attn"}, {"forget": "skill", "retain": ["nobody"]}, {"forget": "skill", "refusal": ""},
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(recording: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        abstain(recording, **arguments)


# --- watched -----------------------------------------------------------------------------------------------------


def test_verdicts_tell_the_step_and_leave_the_text_alone(tiny_llama: Any) -> None:
    new = greedy(tiny_llama, "The cat", 6)
    whole = tiny_llama.tokenize("The cat") + new
    third = collect(tiny_llama, "mlp", torch.tensor([whole]))[0].double().numpy()[[len(whole) - 4], slice(48, 96)]
    box = around(tiny_llama, third, layer=1)
    change = Abstention((box,), "No.", "any")
    first, second = verdicts(tiny_llama, change, ["The cat", "Two"], max_new_tokens=6)
    assert first.step == 3
    assert first.refused
    assert first.nearness[3] == pytest.approx(0, abs=0.1)
    assert not second.refused
    assert not verdicts(tiny_llama, Abstention((box,), "No."), ["The cat"], max_new_tokens=6)[0].refused
    assert trips_per_100_tokens([first]) == pytest.approx(100 / (len(first.nearness) - 1))
    assert np.isnan(trips_per_100_tokens(verdicts(tiny_llama, change, ["Two"])))
    with pytest.raises(InputError):
        verdicts(tiny_llama, change, ["Two"], max_new_tokens=-1)


def test_verdicts_in_batches_are_those_of_single_prompts(tiny_llama: Any) -> None:
    change = refusing(tiny_llama, "Two", when="any")
    prompts = [*PROMPTS, *(f"{word} and {word}" for word in "abcdefghijklmnopq")]
    together = verdicts(tiny_llama, change, prompts, max_new_tokens=4)
    for prompt, one in zip(prompts, together, strict=True):
        (alone,) = verdicts(tiny_llama, change, [prompt], max_new_tokens=4)
        assert one.step == alone.step
        np.testing.assert_allclose(one.nearness, alone.nearness, rtol=1e-2, atol=0.01)
