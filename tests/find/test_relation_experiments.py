"""Cumulativity, versatility and interference come out exactly as they were planted."""

from __future__ import annotations

import numpy as np
import pytest
from tests.find.planted_relations import RELATIONS, M, Plant, plant

from patchclamp.core.errors import InputError
from patchclamp.find.relation import relation
from patchclamp.find.relation_experiments import cumulativity, drops, ranking
from patchclamp.measure import effect
from patchclamp.measure.effect_table import Effects
from patchclamp.models.units import UnitSet
from patchclamp.record import record


@pytest.fixture(scope="module")
def planted() -> Plant:
    return plant()


def measured(planted: Plant, sets: dict[str, list[str]]) -> Effects:
    task = planted.task(range(10))
    units = {name: UnitSet.of(planted.model, names) for name, names in sets.items()}
    return effect(planted.model, units, on=task.by("relation"), how="completion", controls=2, quiet=True)


def by_pair(rows: list[dict]) -> dict[tuple[str, str], dict]:
    return {(row["masked"], row["relation"]): row for row in rows}


def test_redundant_neurons_act_only_together(planted: Plant) -> None:
    found = cumulativity(planted.model, planted.circuits, planted.task(range(6)), ks=(2, 4, 6, 8), quiet=True)
    for name in RELATIONS:
        own = {row["k"]: row["own"] for row in found.curve if row["relation"] == name}
        assert own == {0: 1.0, 2: 1.0, 4: 1.0, 6: 0.0, 8: 0.0}  # 4 of 8 left suffice, 2 do not
        assert all(row["others"] == 1 for row in found.curve if row["relation"] == name)
        assert all(row["random"] in (None, 1.0) for row in found.curve if row["relation"] == name)
    steps = {(row["relation"], row["k1"], row["k2"]): row for row in found.steps}
    for name in RELATIONS:
        assert steps[name, 4, 6] == {"relation": name, "k1": 4, "k2": 6, "total": 12, "affected": 0, "index": 1.0}
        assert steps[name, 2, 4]["index"] is None
    assert found.macro() == {(2, 4): None, (4, 6): 1.0, (6, 8): None}
    assert found.micro() == found.macro()
    assert found.right["river", "5-6"].all()


def test_a_range_that_suffices_alone_has_index_zero(planted: Plant) -> None:
    padded = {"food": [*planted.circuits["food"][:1], *planted.circuits["food"][1:7]]}
    found = cumulativity(planted.model, padded, planted.task(range(4)), ks=(1, 7), quiet=True)
    assert found.steps == [{"relation": "food", "k1": 1, "k2": 7, "total": 8, "affected": 8, "index": 0.0}]


def test_each_circuit_serves_its_own_relation_alone(planted: Plant) -> None:
    rows = by_pair(drops(measured(planted, planted.circuits)))
    for masked in RELATIONS:
        for name in RELATIONS:
            row = rows[masked, name]
            assert row["drop"] == (1.0 if masked == name else 0.0)
            assert row["kind"] == ("own" if masked == name else "none")
            assert row["random"] == 0.0
            assert row["n"] == 20


def test_a_shared_circuit_is_versatile() -> None:
    shared = plant(shared=True)
    rows = by_pair(drops(measured(shared, shared.circuits)))
    assert rows["capital", "river"]["kind"] == rows["river", "capital"]["kind"] == "versatility"
    assert rows["capital", "river"]["drop"] == 1.0
    assert rows["capital", "food"]["kind"] == "none"


def test_a_neuron_that_spoils_another_relation_interferes() -> None:
    spoiled = plant(harmful=True)
    rows = by_pair(drops(measured(spoiled, {"capital": [spoiled.harmful]})))
    food = rows["capital", "food"]
    assert (food["plain"], food["accuracy"], food["drop"], food["kind"]) == (0.5, 1.0, -1.0, "interference")
    assert food["low"] < -1 < food["high"] < 0
    assert rows["capital", "river"]["drop"] == 0


def test_a_relation_without_a_right_answer_has_no_drop() -> None:
    row = {"set": "a", "text": "b", "plain": 0.0, "clamped": 0.0, "control_mean": 0.0, "p_holm": 1.0}
    found = drops(Effects([row], {"b": {"plain": [0.0, 0.0], "clamped": {"a": [0.0, 0.0]}}}))
    assert (found[0]["drop"], found[0]["low"], found[0]["random"], found[0]["kind"]) == (None, None, None, "none")


def test_found_units_do_what_planted_ones_do(planted: Plant) -> None:
    task = planted.task()
    found = relation(record(planted.model, task.corpus(by="relation"), statistics=["pooled"], quiet=True), negatives=0)
    rankings = {name: ranking(found, name, M) for name in found.labels}
    assert {name: sorted(names) for name, names in rankings.items()} == {
        name: sorted(names) for name, names in planted.circuits.items()
    }
    curve = cumulativity(planted.model, rankings, planted.task(range(3)), ks=(M,), controls=1, quiet=True).curve
    assert [row["own"] for row in curve] == [1, 0] * 3


def test_a_ranking_is_best_first(planted: Plant) -> None:
    task = planted.task()
    found = relation(record(planted.model, task.corpus(by="relation"), statistics=["pooled"], quiet=True), shuffles=1)
    names = ranking(found, "food", 30)
    scores = [found.scores[found.labels.index("food"), found.position(name)] for name in names]
    assert scores == sorted(scores, reverse=True)
    with pytest.raises(InputError, match="the 0 best"):
        ranking(found, "food", 0)


@pytest.mark.parametrize("ks", [(), (0, 3), (3, 3), (5, 2), (9,)])
def test_numbers_of_units_ascend_and_exist(planted: Plant, ks: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="ascending numbers of units from 1 to 8"):
        cumulativity(planted.model, planted.circuits, planted.task(range(2)), ks=ks, quiet=True)


def test_a_ranking_needs_prompts(planted: Plant) -> None:
    with pytest.raises(InputError, match="'sport'"):
        cumulativity(planted.model, {"sport": planted.circuits["food"]}, planted.task(range(2)), ks=(2,), quiet=True)


def test_indices_are_counts_of_prompts() -> None:
    from patchclamp.find.relation_experiments import _index

    before, after = np.array([1, 1, 1, 0], bool), np.array([0, 0, 1, 0], bool)
    part, mine = np.array([0, 1, 0, 0], bool), np.ones(4, bool)
    assert _index(before, after, part, mine) == {"total": 2, "affected": 1, "index": 0.5}
