"""EigenShift: state form equals weight form, identity and undoing, signs, the planted head, its bound, checkpoints, refusals."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.small import small

from patchclamp.core.errors import DamagedError, InputError, MismatchError, ModelError
from patchclamp.data.tasks import Task
from patchclamp.intervene import edit
from patchclamp.intervene.eigenshift import (
    EigenShift,
    eigenshift,
    how_many,
    ranked_directions,
    shift_between,
    shifted_weight,
)
from patchclamp.intervene.kinds import Interventions
from patchclamp.intervene.output_head import end_states, output_spectrum, output_weight, spectrum, states_at, untie
from patchclamp.models.hooks import observe, prompt_scope
from patchclamp.models.load import load
from patchclamp.models.tiny import quiet

IDS = torch.tensor([[1, 20, 30, 40, 50, 60], [1, 70, 80, 90, 100, 110]])


@pytest.fixture(params=["tiny_llama", "tiny_gpt2"])  # an untied and a tied head
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def wide(model: Any) -> Any:
    return load(copy.deepcopy(model.hf).double(), tokenizer=model.tokenizer, check=False)


def shift_of(model: Any, numbers: tuple[int, ...] = (0, 3, 9), alpha: float = 0.0, **more: Any) -> EigenShift:
    _, vectors = output_spectrum(model)
    return EigenShift.of(model, vectors[list(numbers)], alpha, directions=numbers, **more)


def written(model: Any, shift: EigenShift) -> Any:
    edited = load(copy.deepcopy(model.hf), tokenizer=model.tokenizer, check=False)
    shift.write(edited)
    return edited


@pytest.mark.parametrize("alpha", [-2.0, 0.0, 0.1, 0.9, 1.0])
def test_the_state_form_equals_the_weight_form_and_scaled_singular_values(model: Any, alpha: float) -> None:
    double = wide(model)
    shift = shift_of(double, alpha=alpha)
    with shift.applied(double):
        found = double.logits(IDS)
    assert (written(double, shift).logits(IDS) - found).abs().max() < 1e-12 * found.abs().max() + 1e-12
    weight = output_weight(double)
    u, sigma, vt = torch.linalg.svd(weight, full_matrices=False)
    sigma[list(shift.directions)] *= alpha
    assert (shifted_weight(weight, shift.vectors, alpha) - u @ torch.diag(sigma) @ vt).abs().max() < 1e-12


def test_alpha_one_changes_no_bit_and_the_inverse_restores_the_matrix(model: Any) -> None:
    plain = model.logits(IDS)
    with shift_of(model, alpha=1.0).applied(model):
        assert torch.equal(model.logits(IDS), plain)
    double = wide(model)
    shift = shift_of(double, alpha=-1.0)
    once = shifted_weight(output_weight(double), shift.vectors, shift.alpha)
    again = shifted_weight(once, shift.vectors, shift.undone().alpha)
    assert (again - output_weight(double)).abs().max() < 1e-12
    assert (once - output_weight(double)).abs().max() > 0.1
    for alpha in (0.0, 0.5):
        with pytest.raises(InputError, match="can't be undone"):
            shift_of(double, alpha=alpha).undone()


def test_two_shifts_compose_and_leaving_the_block_undoes_them(model: Any) -> None:
    plain = model.logits(IDS)
    first, second = shift_of(model, (0, 1), 0.5), shift_of(model, (1, 2), 0.0)
    with (first + second).applied(model):
        both = model.logits(IDS)
    with first.applied(model), second.applied(model):
        assert torch.equal(model.logits(IDS), both)
    with pytest.raises(RuntimeError), first.applied(model):
        raise RuntimeError
    assert torch.equal(model.logits(IDS), plain)


def test_the_other_directions_keep_their_logits_exactly(model: Any) -> None:
    double = wide(model)
    _, vectors = output_spectrum(double)
    weight = output_weight(double)
    shifted = shifted_weight(weight, shift_of(double, (2, 5)).vectors, 0.0)
    for number in (0, 1, 3, 20):
        v = torch.from_numpy(vectors[number])
        assert (shifted @ v - weight @ v).abs().max() < 1e-12
    assert (shifted @ torch.from_numpy(vectors[2])).abs().max() < 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(-2, 1))
def test_logits_move_by_no_more_than_the_bound(seed: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    weight, h = rng.normal(size=(30, 8)), rng.normal(size=8)
    sigma, vectors = spectrum(weight)
    chosen = rng.permutation(8)[:3]
    change = (shifted_weight(torch.from_numpy(weight), vectors[chosen], alpha).numpy() - weight) @ h
    bound = (1 - alpha) * (sigma[chosen] * np.abs(vectors[chosen] @ h)).sum()
    assert np.abs(change).max() <= bound + 1e-9


def test_the_closed_form_of_the_projection_bug(tiny_llama: Any) -> None:
    weight = np.array([[0.0, 3, 0], [0, 0, 2], [1, 0, 0]])
    sigma, vectors = spectrum(weight)
    delta = vectors @ np.array([1.0, 0, 0])
    assert sigma == pytest.approx([3, 2, 1])
    assert np.abs(delta) == pytest.approx([0, 0, 1], abs=1e-12)
    assert ranked_directions(delta, sigma)[0] == 2  # the transposed projection of the authors' code names 1
    for sign in (1.0, -1.0):
        assert ranked_directions(sign * delta, sigma)[0] == 2
    assert ranked_directions(-np.abs(delta), sigma, rank="signed")[0] != 2  # what a common LAPACK's sign does


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8), st.floats(-2, 1))
def test_signs_of_the_vectors_change_neither_choice_nor_matrix(seed: int, k: int, alpha: float) -> None:
    rng = np.random.default_rng(seed)
    weight = torch.from_numpy(rng.normal(size=(30, 8)))
    sigma, vectors = spectrum(weight)
    difference, flips = rng.normal(size=8), rng.choice([-1.0, 1.0], size=8)[:, None]
    for rank in ("delta", "logit"):
        one = ranked_directions(vectors @ difference, sigma, rank=rank)[:k]
        other = ranked_directions((vectors * flips) @ difference, sigma, rank=rank)[:k]
        assert one.tolist() == other.tolist()
    a = shifted_weight(weight, vectors[one], alpha)
    b = shifted_weight(weight, (vectors * flips)[one], alpha)
    assert (a - b).abs().max() < 1e-12


def test_the_signed_rank_depends_on_signs_and_says_so(tiny_llama: Any) -> None:
    rng = np.random.default_rng(0)
    _, vectors = output_spectrum(tiny_llama)
    center = 5 * vectors.sum(0)  # every direction is positive in all states, so none is turned
    psi = rng.normal(size=(40, 32)) * 0.01 + center
    phi = psi - 4 * vectors[6]
    with pytest.warns(UserWarning, match="arbitrary"):
        signed = shift_between(tiny_llama, phi, psi, k=1, rank="signed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shift_between(tiny_llama, phi, psi, k=1).directions == (6,)
    assert signed.directions != (6,)


def test_a_planted_direction_is_first_and_its_tokens_fall(tiny_llama: Any) -> None:
    d, vocabulary, block = 32, 320, slice(40, 60)
    rng = np.random.default_rng(0)
    v = np.linalg.qr(rng.normal(size=(d, d)))[0]
    raw = rng.normal(size=(vocabulary, d))
    raw[:, 0] = 0
    raw[block, 0] = 1
    u = np.linalg.qr(raw)[0]  # its first column is the block, up to sign
    u[:, 0] *= np.sign(u[40, 0])
    sigma = np.linspace(9, 3, d)
    planted = load(copy.deepcopy(tiny_llama.hf), tokenizer=tiny_llama.tokenizer, check=False)
    with torch.no_grad():
        output_weight(planted).copy_(torch.from_numpy(u @ np.diag(sigma) @ v))
    psi, phi = rng.normal(size=(60, d)), rng.normal(size=(60, d)) + 3 * v[0]
    shift = shift_between(planted, phi, psi, k=1)
    assert np.abs(shift.vectors[0] @ v[0]) > 0.99

    def share(weight: torch.Tensor, states: np.ndarray) -> float:
        return float(torch.softmax(torch.from_numpy(states).float() @ weight.T, -1)[:, block].sum(-1).mean())

    before, after = output_weight(planted), shifted_weight(output_weight(planted), shift.vectors, 0.0)
    assert share(before, phi) > 0.3
    assert share(after, phi) < 0.5 * share(before, phi)

    def moved(states: np.ndarray) -> float:
        h = torch.from_numpy(states).float()
        return float((torch.log_softmax(h @ before.T, -1) - torch.log_softmax(h @ after.T, -1)).abs().mean())

    assert moved(psi) < moved(phi)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_saved_checkpoint_gives_the_same_logits_in_plain_transformers(
    model: Any, alpha: float, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    shift = shift_of(model, alpha=alpha)
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    with shift.applied(model):
        wanted = model.logits(IDS)
    edited = written(model, shift)
    edited.hf.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(again.get_input_embeddings().weight, model.hf.get_input_embeddings().weight)
    assert torch.equal(again.get_output_embeddings().weight, edited.hf.get_output_embeddings().weight)
    for name, value in model.hf.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    "kind", ["gemma3", "gemma2", "cohere", "opt", "minicpm3"]
)  # nested configs, caps, scales, biases
def test_other_families_hold_it_in_a_checkpoint(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    with quiet():
        model = load(small(kind), check=False)
        shift = shift_of(model)
        with shift.applied(model):
            wanted = model.logits(IDS)
        written(model, shift).hf.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        torch.testing.assert_close(again(IDS).logits, wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - model.logits(IDS)).abs().max() > 1e-3


def test_models_whose_states_do_not_enter_the_head_as_they_are_are_refused() -> None:
    with quiet():
        bert = load(small("bert"), check=False)
    with pytest.raises(ModelError, match="not linear"):
        output_spectrum(bert)


def test_states_are_damped_where_time_comes_before_batch_inside() -> None:
    with quiet():
        xlnet = load(small("xlnet"), check=False)
    shift = shift_of(xlnet)
    states = xlnet.trunk(IDS)
    v = torch.from_numpy(shift.vectors).float()
    wanted = xlnet.hf.get_output_embeddings()(states - (1 - shift.alpha) * (states @ v.T) @ v)
    with shift.applied(xlnet):
        torch.testing.assert_close(xlnet.logits(IDS), wanted, rtol=1e-4, atol=1e-5)


def test_untying_says_what_changed_and_leaves_an_untied_model_alone(tiny_gpt2: Any, tiny_llama: Any) -> None:
    hf = copy.deepcopy(tiny_gpt2.hf)
    assert untie(hf) == {"tie_word_embeddings": False}
    assert hf.get_output_embeddings().weight is not hf.get_input_embeddings().weight
    assert torch.equal(hf.get_output_embeddings().weight, hf.get_input_embeddings().weight)
    assert untie(hf) == {}
    assert untie(copy.deepcopy(tiny_llama.hf)) == {}
    assert tiny_gpt2.hf.config.tie_word_embeddings


def test_an_architecture_that_ties_whatever_its_config_says_is_refused(tiny_gpt2: Any) -> None:
    kind = type(tiny_gpt2.hf)

    class Stubborn(kind):  # type: ignore[misc,valid-type]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.lm_head.weight = self.transformer.wte.weight

    hf = copy.deepcopy(tiny_gpt2.hf)
    hf.__class__ = Stubborn
    with pytest.raises(ModelError, match="whatever its config says"):
        untie(hf)
    assert hf.config.tie_word_embeddings  # nothing was half done
    assert hf.get_output_embeddings().weight is hf.get_input_embeddings().weight


def test_scopes_touch_only_their_positions(tiny_llama: Any) -> None:
    kept: dict[str, torch.Tensor] = {}
    for scope in ("prompt", "generated", "all"):
        with (
            shift_of(tiny_llama, scope=scope).applied(tiny_llama),
            prompt_scope(tiny_llama, 4),
            observe(tiny_llama, [("final", 2)], lambda seen, s=scope: kept.update({s: seen.values.clone()})),
        ):
            tiny_llama.logits(IDS)
    plain = tiny_llama.trunk(IDS).reshape(12, -1)
    late = torch.tensor([False] * 4 + [True] * 2).repeat(2)
    assert torch.equal(kept["prompt"][late], plain[late])
    assert torch.equal(kept["generated"][~late], plain[~late])
    assert torch.equal(kept["prompt"][~late], kept["all"][~late])
    assert torch.equal(kept["generated"][late], kept["all"][late])
    with pytest.raises(ModelError, match="serves all positions"):
        written(tiny_llama, shift_of(tiny_llama, scope="prompt"))


def test_generation_with_a_cache_equals_the_written_model(model: Any) -> None:
    shift = shift_of(model, (0, 1, 2, 3), 0.0)
    edited = written(model, shift)
    for more in ({}, {"num_beams": 3}, {"use_cache": False}):
        with shift.applied(model):
            found = model.generate(["The cat", "Two and two make"], max_new_tokens=8, **more)
        assert found == edited.generate(["The cat", "Two and two make"], max_new_tokens=8, **more)


def test_it_is_saved_and_loaded_among_other_interventions(tiny_llama: Any, tiny_gpt2: Any, tmp_path: Path) -> None:
    shift = shift_of(tiny_llama, alpha=0.25, note="a note")
    loaded = Interventions.load(Interventions([shift]).save(tmp_path / "shift.json"))
    again = loaded[0]
    assert isinstance(again, EigenShift)
    assert (again.alpha, again.directions, again.note, again.scope) == (0.25, (0, 3, 9), "a note", "all")
    assert np.array_equal(again.vectors, shift.vectors)
    assert "3 directions (0, 3, 9)" in repr(loaded)
    assert loaded.lowest_block() == 2
    with pytest.raises(MismatchError, match="belong to model"), shift.applied(tiny_gpt2):
        pass
    data = json.loads((tmp_path / "shift.json").read_text())
    data["interventions"][0]["vectors"]["base64"] = "AA"
    (tmp_path / "shift.json").write_text(json.dumps(data))
    with pytest.raises(DamagedError):
        Interventions.load(tmp_path / "shift.json")


def test_the_random_control_is_seeded_orthonormal_and_as_large(tiny_llama: Any) -> None:
    shift = shift_of(tiny_llama)
    one, two = shift.matched_random(3), shift.matched_random(4)
    assert np.array_equal(one.vectors, shift.matched_random(3).vectors)
    assert not np.allclose(one.vectors, two.vectors)
    assert one.vectors.shape == shift.vectors.shape
    assert one.alpha == shift.alpha


def test_edit_saves_it_with_its_card(model: Any, tmp_path: Path) -> None:
    shift = shift_of(model, note="rude")
    for what in (shift, shift + shift_of(model, (3, 4), 0.5)):
        edited = edit(model, what, why="fewer rude replies")
        folder = edited.save(tmp_path / str(len(Interventions.of(what))))
        assert edited.verify(folder)["max_difference"] < 1e-4 * edited.verify(folder)["largest_logit"]
        card = json.loads((folder / "edit.json").read_text())
        assert "3 directions (0, 3, 9)" in card["what"]
        assert card["config_changes"] == ({"tie_word_embeddings": False} if model.anatomy.tied else {})
    with pytest.raises(ModelError, match="serves all positions"):
        edit(model, shift_of(model, scope="generated"))


def test_half_precision_works(tiny_llama: Any) -> None:
    half = load(copy.deepcopy(tiny_llama.hf).to(torch.bfloat16), tokenizer=tiny_llama.tokenizer, check=False)
    shift = shift_of(half)
    with shift.applied(half):
        found = half.logits(IDS).float()
    wanted = written(half, shift).logits(IDS).float()
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_states_are_those_at_the_places_asked_for(tiny_llama: Any) -> None:
    texts = ["The cat sat", "Two and two make four, three"]
    rows = [tiny_llama.tokenize(text) for text in texts]
    wanted = [tiny_llama.trunk(torch.tensor([row]))[0] for row in rows]
    np.testing.assert_allclose(end_states(tiny_llama, texts), [w[-1] for w in wanted], atol=1e-4)
    found = states_at(tiny_llama, rows, [1, 2], batch_tokens=8)
    np.testing.assert_allclose(found, [wanted[0][1], wanted[1][2]], atol=1e-4)
    with pytest.raises(InputError, match="position 99"):
        states_at(tiny_llama, rows, [99, 0])


def test_the_fit_takes_labelled_prompts(tiny_llama: Any) -> None:
    items = [
        {"prompt": f"The cat {n}" if n % 2 else f"Two and {n}", "answer": "x", "labels": {"tone": "ab"[n % 2]}}
        for n in range(24)
    ]
    task = Task.of(items, name="tones")
    (shift,) = eigenshift(tiny_llama, task, label="tone", positive="b", share=0.1, alpha=0.5)
    states = end_states(tiny_llama, [item.prompt for item in task])
    truth = np.array([item.labels["tone"] == "b" for item in task])
    assert isinstance(shift, EigenShift)
    assert shift.directions == shift_between(tiny_llama, states[truth], states[~truth], k=4).directions
    assert shift.alpha == 0.5
    with pytest.raises(InputError, match="tone=c"):
        eigenshift(tiny_llama, task, label="tone", positive="c")
    with pytest.raises(InputError, match="at least 10"):
        eigenshift(tiny_llama, Task.of(items[:12]), label="tone", positive="b")


@pytest.mark.parametrize(
    ("percentile", "k"), [(0.999, 5), (0.995, 21), (0.99, 41), (0.95, 205), (0.9, 410), (0.75, 1024)]
)
def test_shares_are_rounded_as_in_the_paper(percentile: float, k: int) -> None:
    assert how_many(4096, None, 1 - percentile) == k


def test_bad_input_is_one_clear_error(tiny_llama: Any) -> None:
    states = np.random.default_rng(0).normal(size=(12, 32))
    for phi, psi, more, message in (
        (states[:9], states, {}, "9 and 12 states"),
        (states[:, :8], states, {}, "states \\(n, 32\\) are needed"),
        (np.full((12, 32), np.nan), states, {}, "not finite"),
        (states, states, {"k": 33}, "33 of 32"),
        (states, states, {"k": 0}, "0 of 32"),
        (states, states, {"share": 0.0}, "share=0.0"),
        (states, states, {"alpha": 1.5}, "alpha=1.5"),
        (states, states, {"alpha": -2.5}, "alpha=-2.5"),
        (states, states, {"alpha": float("nan")}, "alpha=nan"),
        (states, states, {"rank": "best"}, "rank='best'"),
        (states, states, {"scope": "some"}, "scope='some'"),
    ):
        with pytest.raises(InputError, match=message):
            shift_between(tiny_llama, phi, psi, **more)
    with pytest.raises(InputError, match="right angles"):
        EigenShift.of(tiny_llama, np.ones((2, 32)))
    with pytest.raises(InputError, match="shape \\(3,\\)"):
        EigenShift.of(tiny_llama, np.ones(3))


def test_heads_that_are_no_matrix_are_refused(tiny_llama: Any) -> None:
    headless = load(copy.deepcopy(tiny_llama.hf), tokenizer=tiny_llama.tokenizer, check=False)
    weight = output_weight(headless)
    headless.hf.lm_head.weight = torch.nn.Parameter(weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="quantised"):
        output_weight(headless)
    headless.hf.lm_head = torch.nn.Identity()
    with pytest.raises(ModelError, match="no output matrix"):
        output_weight(headless)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_and_weight_form_agree_on_a_gpu(dtype: str) -> None:
    model = load("demo", device="cuda", dtype=dtype)
    states = np.random.default_rng(0).normal(size=(2, 20, model.anatomy.d_model))
    shift = shift_between(model, states[0] + 1, states[1], k=8)
    with shift.applied(model):
        found = model.logits(IDS).float()
        said = model.generate(["The river", "Tom is a"], max_new_tokens=4)
    wanted = written(model, shift).logits(IDS).float()
    assert len(said) == 2
    assert (found - wanted).abs().max() < (1e-4 if dtype == "float32" else 0.05) * wanted.abs().max()
    assert end_states(model, ["The river"]).shape == (1, model.anatomy.d_model)
