"""The null: what is shuffled, that noise names next to nothing, that signal is far above it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.find.counted import CountedRecording, recording_of

from patchclamp.core.errors import InputError
from patchclamp.find.language import language
from patchclamp.find.language_null import shuffled_labels
from patchclamp.find.language_selection import label_scores, probabilities, profile, ternary


def noise(
    seed: int, *, labels: int = 4, folds: int = 8, total: int = 1000, tokens: tuple[int, ...] = (400,) * 4
) -> CountedRecording:
    """Every unit has one probability, the same for all labels."""
    rng = np.random.default_rng(seed)
    p = rng.beta(0.4, 4, size=total)
    p[: total // 50] = 0.9
    cells = {
        f"l{at}": (rng.binomial(tokens[at], np.broadcast_to(p, (folds, total))), np.full(folds, tokens[at]))
        for at in range(labels)
    }
    return CountedRecording(cells, (total,))


def signal(seed: int, *, n: int = 8) -> tuple[CountedRecording, Any]:
    """Noise with n specific units for each of 4 labels, found at random places."""
    recording = noise(seed)
    rng = np.random.default_rng(seed + 1)
    where = rng.permutation(np.arange(20, 1000))[: 4 * n].reshape(4, n)
    for at, label in enumerate(recording.labels):
        state = recording.get("firing", label).state()
        state["counts"][:, where] = 0
        state["counts"][:, where[at]] = 360
    return recording, where


def test_noise_names_no_more_than_its_null() -> None:
    found = language(noise(0), rate=0.03, seed=1)
    named = found.null["named"]
    assert named["observed"] <= 5
    assert named["p"] > 0.05
    assert all(len(units) == 0 for units in found.select(fdr=0.05).values())


def test_planted_signal_is_far_above_its_null() -> None:
    recording, where = signal(0)
    found = language(recording, rate=0.032, shuffles=19)
    for label, planted in zip(found.labels, where, strict=True):
        assert found.sets[label].positions["mlp"].tolist() == sorted(planted.tolist())
    assert found.null["named"]["observed"] == 32
    assert found.null["named"]["max"] < 32
    assert found.null["named"]["p"] == 1 / 20
    specific = found.null["classes"]["specific"]
    assert specific["observed"] == 32
    assert specific["share"] == specific["mean"] / 32


def test_false_discovery_selection_finds_the_planted_units() -> None:
    recording, where = signal(3)
    taken = language(recording, rate=0.032).select(fdr=0.05)
    planted = {(at, unit) for at in range(4) for unit in where[at].tolist()}
    picked = {(at, unit) for at, units in enumerate(taken.values()) for unit in units.positions["mlp"].tolist()}
    assert planted <= picked
    assert len(picked - planted) <= 0.2 * len(picked)


def test_the_null_is_seeded() -> None:
    first, again, other = (language(signal(1)[0], rate=0.032, shuffles=5, seed=seed) for seed in (0, 0, 1))
    assert first.null == again.null
    np.testing.assert_array_equal(first.p_values, again.p_values)
    assert first.null != other.null


def test_a_shuffle_moves_whole_cells_and_keeps_their_number() -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 5, size=(3, 4, 20))
    tokens = np.array([[10, 20, 30, 0], [5, 5, 0, 0], [100, 7, 9, 11]])  # unequal, some folds empty
    cells[tokens == 0] = 0
    seen = []

    def select(p: Any) -> Any:
        seen.append(p)
        return ternary(p, rate=0.2)

    split = ternary(probabilities(cells.sum(axis=1), tokens.sum(axis=1)), rate=0.2)
    p = probabilities(cells.sum(axis=1), tokens.sum(axis=1))
    scores = label_scores(p, profile(p), split.weight)
    record, p_values = shuffled_labels(cells, tokens, ("a", "b", "c"), split, scores, select, shuffles=6, seed=2)
    assert record["cells"] == 9
    filled = np.argwhere(tokens > 0)
    rng = np.random.default_rng(2)
    for shuffled in seen:  # the same by a plain loop over cells
        given = rng.permutation(filled[:, 0])
        for label in range(3):
            mine = filled[given == label]
            assert len(mine) == (tokens[label] > 0).sum()
            counts = sum(cells[k, f] for k, f in mine)
            np.testing.assert_array_equal(shuffled[label], counts / sum(tokens[k, f] for k, f in mine))
    assert p_values is not None
    assert p_values.shape == (3, 20)
    assert (p_values > 0).all()
    assert (p_values <= 1).all()


def test_p_values_count_shuffled_scores_of_the_same_label() -> None:
    recording, _ = signal(5)
    found = language(recording, rate=0.032, shuffles=4)
    order = np.argsort(-found.scores[0])
    assert (np.diff(found.p_values[0][order]) >= 0).all()  # a larger score never has a larger p
    assert found.p_values.min() == pytest.approx(1 / 4001, rel=1e-3)
    assert found.p_values[0][found.scores[0] == 0].min() == 1


def test_one_fold_per_label_has_no_null_and_says_why() -> None:
    rng = np.random.default_rng(0)
    cells = {label: (rng.integers(0, 400, size=(1, 100)), [400]) for label in ("a", "b")}
    found = language(CountedRecording(cells, (100,)), rate=0.1)
    assert found.null["available"] is False
    assert "single fold" in found.null["why"]
    with pytest.raises(InputError, match="single fold"):
        found.select(fdr=0.1)


def test_no_shuffles_gives_the_same_sets_without_a_null() -> None:
    recording, _ = signal(6)
    with_null, without = (
        language(recording, rate=0.032, shuffles=3),
        language(recording, rate=0.032, shuffles=0),
    )
    np.testing.assert_array_equal(with_null.chosen, without.chosen)
    assert without.p_values is None
    with pytest.raises(InputError, match="shuffles"):
        language(recording, shuffles=-1)


def test_identical_labels_leave_nothing_to_discover() -> None:
    rng = np.random.default_rng(0)
    row = np.round(rng.random(200) * 100) / 100
    found = language(recording_of(np.stack([row, row, row])), rate=0.05)
    assert found.null["classes"]["specific"]["observed"] == 0
    assert any("identical counts" in note for note in found.notes)
