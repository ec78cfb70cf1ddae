"""Relation neurons: the planted circuit is found and entity neurons are not; noise names nothing; prompts are checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.find.planted_relations import RELATIONS, M, Plant, plant
from tests.find.pooled import ArrayRecording

from patchclamp.core.errors import InputError
from patchclamp.data.tasks import Task
from patchclamp.find import Finding
from patchclamp.find.relation import PAPER_SHARE, relation
from patchclamp.find.relation_prompts import check_leakage, split_subjects, subject_overlap, validated
from patchclamp.find.separation import average_precision
from patchclamp.record import Recording, record


@pytest.fixture(scope="module")
def planted() -> Plant:
    return plant()


@pytest.fixture(scope="module")
def recording(planted: Plant) -> Recording:
    return record(planted.model, planted.task().corpus(by="relation"), statistics=["pooled"], quiet=True)


def noise(n: int = 40, units: int = 200, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {label: rng.normal(size=(n, units)) for label in ("a", "b", "c")}


def test_the_planted_circuit_is_the_top_and_nothing_else(planted: Plant, recording: Recording) -> None:
    found = relation(recording, top=M, negatives=0)
    assert {name: units.names() for name, units in found.sets.items()} == planted.circuits
    assert found.select(top=M) == found.sets
    for name in RELATIONS:
        assert found.scores[found.labels.index(name), found.position(planted.circuits[name][0])] == 1.0


def test_entity_neurons_score_near_the_prevalence_and_are_not_chosen(planted: Plant, recording: Recording) -> None:
    found = relation(recording, share=1.0, negatives=0)
    where = [found.position(name) for name in planted.entities]
    assert found.scores[:, where] == pytest.approx(1 / 3, abs=0.02)
    assert not found.chosen[:, where].any()


def test_scores_are_the_average_precision_of_the_pooled_means(planted: Plant, recording: Recording) -> None:
    found = relation(recording, negatives=0, shuffles=1)
    values = np.concatenate([np.asarray(recording.get("pooled", name).mean) for name in recording.labels])
    truth = np.repeat(np.eye(3, dtype=bool), 40, axis=1)
    np.testing.assert_allclose(found.scores, average_precision(values, truth), atol=1e-12)


def test_the_sampled_negatives_are_as_many_as_asked_for() -> None:
    found = relation(ArrayRecording(noise(), width=100), negatives=1, shuffles=1)
    assert found.details["documents"]["a"] == {"positive": 40, "negative": 40}
    many = relation(ArrayRecording(noise(), width=100), negatives=4, shuffles=1)
    assert many.details["documents"]["a"] == {"positive": 40, "negative": 80}
    assert any("all are used" in note for note in many.notes)


def test_nothing_is_chosen_in_noise() -> None:
    named = [relation(ArrayRecording(noise(seed=s), width=100), share=1.0, shuffles=10).chosen.sum() for s in range(5)]
    assert np.mean([n > 0 for n in named]) <= 0.2
    assert sum(named) <= 3


def test_the_papers_form_names_as_many_units_in_noise_and_the_null_says_so() -> None:
    found = relation(ArrayRecording(noise(), width=100), top=10, fdr=1.0)
    assert found.chosen.sum(axis=1).tolist() == [10, 10, 10]
    for entry in found.null["labels"].values():
        assert entry["kth"]["k"] == 10
        assert entry["kth"]["observed"] < entry["kth"]["max"] + 0.03
        assert entry["mean"] == pytest.approx(10, abs=7)


def test_bottom_finds_what_falls_silent_on_the_relation() -> None:
    values = noise()
    values["a"][:, 7] -= 3
    assert relation(ArrayRecording(values, width=100), side="bottom", top=1, shuffles=100).sets["a"].names() == [
        "mlp.0.7"
    ]
    both = relation(ArrayRecording(values, width=100), side="both", top=1, shuffles=100)
    assert both.sets["a"].names() == ["mlp.0.7"]
    assert not both.member[0, 7]


def test_too_few_shuffles_to_name_a_single_unit_are_noted() -> None:
    assert any("shuffles=60" in note for note in relation(ArrayRecording(noise(), width=100), shuffles=20).notes)
    assert not any("shuffles=" in note for note in relation(ArrayRecording(noise(), width=100), shuffles=60).notes)


def test_several_sites_are_ranked_together() -> None:
    values = noise(units=100)
    values["b"][:, 3] += 4
    sites = {label: {"gate": array[:, 50:], "up": array[:, :50]} for label, array in values.items()}
    found = relation(ArrayRecording(sites, width=50), top=1, shuffles=100)
    assert found.sites == ("gate", "up")
    assert found.sets["b"].names() == ["up.0.3"]
    assert relation(ArrayRecording(sites, width=50), sites="gate", top=1, shuffles=100).sets["b"].names() == []


def test_units_that_were_not_recorded_never_count() -> None:
    values = noise()
    for array in values.values():
        array[:, 100:] = np.nan
    found = relation(ArrayRecording(values, width=100), top=50, fdr=1.0)
    assert not found.chosen[:, 100:].any()
    assert (found.p_values[:, 100:] == 1).all()
    assert any("were not recorded" in note for note in found.notes)
    with pytest.raises(InputError, match="100 were recorded"):
        relation(ArrayRecording(values, width=100), top=150)


def test_the_default_share_is_the_papers() -> None:
    assert round(PAPER_SHARE * 835_584) == 3000
    found = relation(ArrayRecording(noise(units=1000), width=100), fdr=1.0, shuffles=1)
    assert found.chosen.sum(axis=1).tolist() == [4, 4, 4]


def test_listed_units_say_what_to_force_them_to(recording: Recording, planted: Plant) -> None:
    row = relation(recording, negatives=0, shuffles=1).details["listed"]["food"][0]
    assert row["unit"] == planted.circuits["food"][0]
    assert row["off_mean"] == 0
    assert row["on_p50"] == pytest.approx(row["on_p90"])
    assert row["on_p50"] > 1
    assert (row["auroc"], row["low"], row["high"], row["ap"]) == (1, 1, 1, 1)


def test_a_finding_survives_its_file(recording: Recording, tmp_path: Path) -> None:
    found = relation(recording, top=M, negatives=0)
    again = Finding.load(found.save(tmp_path / "relations.json"))
    assert again.sets == found.sets
    assert again.details["overlap"] == found.details["overlap"]
    assert "shuffled" in repr(again.null["said"])


def test_the_same_seed_gives_the_same_finding() -> None:
    first, second = (relation(ArrayRecording(noise(), width=100), negatives=1, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first.scores, second.scores)
    np.testing.assert_array_equal(first.p_values, second.p_values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negatives": -1}, "negatives=-1"),
        ({"pool": "sum"}, "pool='sum'"),
        ({"side": "left"}, "side='left'"),
        ({"top": 0}, "top=0"),
        ({"top": 10_000}, "10000 units"),
        ({"share": 0.0}, "share=0.0"),
        ({"top": 3, "share": 0.1}, "give one"),
        ({"fdr": 0.0}, "fdr=0.0"),
        ({"shuffles": 0}, "shuffles=0"),
        ({"sites": "attn"}, "was not recorded"),
    ],
)
def test_bad_arguments_are_one_clear_error(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        relation(ArrayRecording(noise(n=12, units=20), width=10), **arguments)


def test_bad_recordings_are_one_clear_error() -> None:
    values = noise(n=12, units=20)
    values["b"][3, 14] = np.inf
    with pytest.raises(InputError, match=r"mlp\.1\.4: mean responses"):
        relation(ArrayRecording(values, width=10))
    with pytest.raises(InputError, match="one label"):
        relation(ArrayRecording({"a": noise()["a"]}, width=100))
    plain = ArrayRecording(noise(), width=100)
    plain.statistics = ("firing",)
    with pytest.raises(InputError, match="pooled"):
        relation(plain)
    empty = ArrayRecording(noise(n=4, units=20), width=10, tokens={"a": np.ones(4), "b": np.zeros(4), "c": np.ones(4)})
    with pytest.raises(InputError, match="'b' has a token"):
        relation(empty)


def test_documents_without_tokens_are_left_out() -> None:
    values, tokens = noise(), {label: np.full(40, 5) for label in "abc"}
    tokens["a"][:3] = 0
    values["a"][:3] = np.nan
    found = relation(ArrayRecording(values, width=100, tokens=tokens), negatives=0, shuffles=1)
    assert found.details["documents"]["a"]["positive"] == 37
    assert any("3 documents" in note for note in found.notes)


def test_a_leaked_subject_is_refused(planted: Plant) -> None:
    task = planted.task()
    detection, evaluation = split_subjects(task, evaluation=4)
    check_leakage(detection, evaluation)
    assert len(detection) + len(evaluation) == len(task)
    assert {item.labels["relation"] for item in evaluation} == set(RELATIONS)
    leaked = Task.of([*evaluation, detection[0]], name="leaked")
    with pytest.raises(InputError, match=rf"1 subjects.*{detection[0].labels['subject']}"):
        check_leakage(detection, leaked)


def test_a_subject_goes_with_all_its_relations() -> None:
    facts = [("father", f"p{i}") for i in range(20)] + [("mother", f"p{i}") for i in range(10, 30)]
    items = [{"prompt": f"{s} {r}", "answers": [" x"], "labels": {"relation": r, "subject": s}} for r, s in facts]
    task = Task.of(items, name="parents")
    for seed in range(5):
        detection, evaluation = split_subjects(task, evaluation=6, seed=seed)
        check_leakage(detection, evaluation)
        for relation_name in ("father", "mother"):
            assert sum(item.labels["relation"] == relation_name for item in evaluation) >= 6
    assert subject_overlap(task) == {"labels": ["father", "mother"], "matrix": [[20, 10], [10, 20]]}


def test_subjects_that_are_too_few_or_missing_are_refused(planted: Plant) -> None:
    with pytest.raises(InputError, match="can't be parted"):
        split_subjects(planted.task(range(1)))
    with pytest.raises(InputError, match="no label 'country'"):
        split_subjects(planted.task(), subject="country")
    with pytest.raises(InputError, match="evaluation=0"):
        split_subjects(planted.task(), evaluation=0)


def test_only_prompts_that_the_model_completes_are_kept() -> None:
    spoiled = plant(harmful=True)
    task = spoiled.task(range(6))
    kept = validated(spoiled.model, task, quiet=True)
    assert kept.kept == {"capital": (12, 12), "river": (12, 12), "food": (6, 12)}
    assert all(item.labels["template"] == "0" for item in kept.task if item.labels["relation"] == "food")
    strict = validated(spoiled.model, task, least=7, quiet=True)
    assert list(strict.skipped) == ["food"]
    assert {item.labels["relation"] for item in strict.task} == {"capital", "river"}
    with pytest.raises(InputError, match="fewer than two labels"):
        validated(spoiled.model, task, least=100, quiet=True)
