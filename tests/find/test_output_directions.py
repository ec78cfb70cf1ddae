"""Directions of an output matrix: closed forms, the sign that must not matter, a planted direction, noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.core.errors import InputError
from patchclamp.data.tasks import Task
from patchclamp.find.output_directions import last_states, output_directions, output_matrix, promoted
from patchclamp.models.load import load


def states(seed: int = 0, n: int = 60, d: int = 12, along: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    phi, psi = rng.normal(size=(2, n, d))
    return (phi if along is None else phi + 3 * along), psi


def test_the_mean_difference_is_split_over_the_right_vectors() -> None:
    weight = np.array([[0.0, 3, 0], [0, 0, 2], [1, 0, 0]])  # right vectors +-e2, +-e3, +-e1
    psi = np.tile([[5.0, 5, 5], [4, 4, 4]], (6, 1))
    found = output_directions(weight, psi + np.eye(3)[0], psi, shuffles=19)
    assert found.sigma == pytest.approx([3, 2, 1])
    assert np.abs(found.delta) == pytest.approx([0, 0, 1], abs=1e-12)
    assert found.top(1).tolist() == [2]  # the authors' transposed projection would name 1


def test_delta_is_the_projected_difference_of_the_means() -> None:
    weight = np.random.default_rng(1).normal(size=(40, 12))
    phi, psi = states()
    found = output_directions(weight, phi, psi, shuffles=9)
    _, sigma, vt = np.linalg.svd(weight, full_matrices=False)
    assert found.sigma == pytest.approx(sigma)
    assert np.abs(found.delta) == pytest.approx(np.abs(vt @ (phi.mean(0) - psi.mean(0))))
    assert found.vectors @ found.vectors.T == pytest.approx(np.eye(12), abs=1e-9)
    assert (np.concatenate([phi, psi]).mean(0) @ found.vectors.T >= -1e-12).all()


def test_a_planted_direction_is_first_and_noise_has_none() -> None:
    weight = np.random.default_rng(2).normal(size=(50, 12))
    _, _, vt = np.linalg.svd(weight, full_matrices=False)
    found = output_directions(weight, *states(along=vt[7]))
    assert found.top(3)[0] == 7
    assert found.p[7] == pytest.approx(0.001)
    assert (np.delete(found.p, 7) > 0.05).all()
    named = [(output_directions(weight, *states(seed), shuffles=99).p < 0.05).any() for seed in range(40)]
    assert np.mean(named) <= 0.15


def test_the_default_score_does_not_depend_on_signs_or_on_which_side_is_which() -> None:
    weight = np.random.default_rng(3).normal(size=(50, 12))
    phi, psi = states(4)
    phi = phi + 0.3
    first, second = output_directions(weight, phi, psi, shuffles=9), output_directions(-weight, phi, psi, shuffles=9)
    assert first.top(5).tolist() == second.top(5).tolist()
    turned = output_directions(weight, psi, phi, shuffles=9)
    assert first.top(5).tolist() == turned.top(5).tolist()
    assert first.delta == pytest.approx(-turned.delta)


def test_directions_below_rounding_are_never_chosen() -> None:
    weight = np.random.default_rng(5).normal(size=(50, 12))
    weight[:, 4] = 0
    phi, psi = states()
    phi[:, 4] += 9
    found = output_directions(weight, phi, psi, shuffles=9)
    assert not found.reliable[-1]
    assert 11 not in found.top(11)


def test_states_of_the_demo_model_enter_its_output_matrix() -> None:
    model = load("demo")
    prompts = ["The capital of France is", "Tom is a rude man.", "People in Peru pay with the"]
    task = Task.of([{"prompt": prompt, "answers": [" x"]} for prompt in prompts], name="prompts")
    found = last_states(model, task, batch_tokens=16)
    weight = output_matrix(model)
    for prompt, state in zip(prompts, found, strict=True):
        ids = torch.tensor([model.tokenizer(prompt)["input_ids"]])
        logits = model.logits(ids)[0, -1].double().numpy()
        assert state @ weight.T == pytest.approx(logits, abs=2e-3)
    directions = output_directions(weight, np.repeat(found[:1], 10, 0), np.repeat(found[1:2], 10, 0), shuffles=9)
    words = promoted(model, directions, 0, k=3)
    assert words["up"][0]["logit"] >= words["up"][1]["logit"] > words["down"][0]["logit"]


@pytest.mark.parametrize(
    ("weight", "phi", "psi", "message"),
    [
        (np.ones(12), *states(), "are needed, not"),
        (np.ones((5, 11)), *states(), "are needed, not"),
        (np.ones((5, 12)), states()[0][:9], states()[1], "9 and 60 states"),
        (np.ones((5, 12)), np.full((20, 12), np.nan), states()[1], "not finite"),
    ],
)
def test_bad_input_is_one_clear_error(weight: np.ndarray, phi: np.ndarray, psi: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        output_directions(weight, phi, psi)
    with pytest.raises(InputError, match="the 99 best"):
        output_directions(np.eye(12), *states(), shuffles=9).top(99)


def test_the_shift_of_a_finding_takes_its_directions_and_its_controls(tiny_llama: Any) -> None:
    rng = np.random.default_rng(0)
    phi, psi = rng.normal(size=(2, 60, 32))
    phi = phi + rng.normal(size=32)
    found = output_directions(output_matrix(tiny_llama), phi, psi, shuffles=9)
    shift = found.shift(tiny_llama, k=4, alpha=0.5)
    assert shift.directions == tuple(found.top(4).tolist())
    assert np.array_equal(shift.vectors, found.vectors[found.top(4)])
    smallest = found.shift(tiny_llama, k=4, control="smallest")
    assert sorted(smallest.directions) == sorted(np.argsort(np.abs(found.delta))[:4].tolist())
    random = found.shift(tiny_llama, k=4, control="random", seed=1)
    assert random.directions == found.shift(tiny_llama, k=4, control="random", seed=1).directions
    assert random.directions != found.shift(tiny_llama, k=4, control="random", seed=2).directions
    weighed = np.argsort(-found.sigma * np.abs(found.delta), kind="stable")[:4]
    assert found.shift(tiny_llama, k=4, rank="logit").directions == tuple(weighed.tolist())
    assert found.shift(tiny_llama, share=0.1).n_units == 4
    with pytest.warns(UserWarning, match="arbitrary"):
        found.shift(tiny_llama, k=4, rank="signed")
    with pytest.raises(InputError, match="control='best'"):
        found.shift(tiny_llama, k=4, control="best")
    with pytest.raises(InputError, match="33 of 32"):
        found.shift(tiny_llama, k=33)


def test_a_sweep_names_shifts_and_controls(tiny_llama: Any) -> None:
    phi, psi = np.random.default_rng(0).normal(size=(2, 20, 32))
    found = output_directions(output_matrix(tiny_llama), phi, psi, shuffles=9)
    swept = found.sweep(tiny_llama, ks=(2, 5), alphas=(0.0, 0.5), controls=2, seed=3)
    assert list(swept)[:4] == ["EigenShift/2", "random directions/2#0", "random directions/2#1", "smallest |delta|/2"]
    assert len(swept) == 16
    for name, shift in swept.items():
        assert shift.n_units == int(name.partition("/")[2].partition(" ")[0].partition("#")[0])
        assert shift.alpha == (0.5 if "alpha 0.5" in name else 0.0)
    assert (
        swept["random directions/5#1"].directions == found.shift(tiny_llama, k=5, control="random", seed=4).directions
    )
    assert list(found.sweep(tiny_llama, ks=(2,), controls=0)) == ["EigenShift/2"]
