"""Circuits as data and what two of them share: closed forms of the null, brute force, the published numbers, files."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.intervene.circuits import (
    Circuit,
    hypergeometric,
    overlap,
    overlap_sweep,
    top_circuit,
    top_members,
)
from patchclamp.models.units import UnitSet

HEADS = [f"head.{layer}.{head}" for layer in range(4) for head in range(6)]


def identity(fingerprint: str = "f") -> dict[str, Any]:
    sites = {"head": {"widths": [6] * 4, "experts": [0] * 4}, "mlp_out": {"widths": [8] * 4, "experts": [0] * 4}}
    return {"name": "m", "fingerprint": fingerprint, "sites": sites, "forms": ["gated"] * 4}


def circuit(members: list[str], scores: dict[str, float] | None = None, **how: Any) -> Circuit:
    return Circuit({"all": tuple(members)}, scores or {}, how.pop("total", 24), how.pop("model", identity()), **how)


def test_the_null_of_the_published_overlap_has_its_closed_form() -> None:
    mean, p = hypergeometric(25, 32, 32, 384)
    assert mean == pytest.approx(2.67, abs=0.005)
    assert p == pytest.approx(8e-27, rel=0.06)
    assert hypergeometric(6, 32, 32, 384)[1] == pytest.approx(0.039, abs=0.0005)
    assert hypergeometric(0, 32, 32, 384)[1] == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.data())
def test_the_null_is_what_counting_all_sets_gives(total: int, data: st.DataObject) -> None:
    n_first, n_second = (data.draw(st.integers(0, total)) for _ in range(2))
    shared = data.draw(st.integers(0, total))
    first = set(range(n_first))
    sizes = [len(first & set(other)) for other in itertools.combinations(range(total), n_second)]
    mean, p = hypergeometric(shared, n_first, n_second, total)
    assert mean == pytest.approx(np.mean(sizes))
    assert p == pytest.approx(np.mean([size >= shared for size in sizes]))


def test_25_of_32_heads_are_78_percent() -> None:
    names = [f"head.{layer}.{head}" for layer in range(24) for head in range(16)]
    first, second = circuit(names[:32], total=384), circuit(names[7:39], total=384)
    found = overlap(first, second)
    assert len(found.shared) == 25
    assert found.share == pytest.approx(0.78125)
    assert found.jaccard == pytest.approx(25 / 39)
    assert found.p == pytest.approx(8.4e-27, rel=0.01)


@settings(max_examples=25, deadline=None)
@given(st.sets(st.sampled_from(HEADS)), st.sets(st.sampled_from(HEADS)))
def test_what_two_circuits_share_is_the_same_from_both_sides(a: set[str], b: set[str]) -> None:
    first, second = circuit(sorted(a)), circuit(sorted(b))
    one, other = overlap(first, second), overlap(second, first)
    assert set(one.shared) == set(other.shared) == a & b
    assert one.p == pytest.approx(other.p)
    assert one.expected == pytest.approx(len(a) * len(b) / 24)
    if a | b:
        assert one.jaccard == other.jaccard == pytest.approx(len(a & b) / len(a | b))
    else:
        assert math.isnan(one.jaccard)
    assert math.isnan(one.share) if not a else one.share == pytest.approx(len(a & b) / len(a))


def test_weights_are_the_smaller_of_two_scaled_scores() -> None:
    first = circuit(["head.0.0", "head.0.1"], {"head.0.0": 30.0, "head.0.1": -10.0})
    second = circuit(["head.0.1", "head.2.0"], {"head.0.1": 5.0, "head.2.0": 5.0})
    assert overlap(first, second).weighted == pytest.approx(min(0.25, 0.5))
    assert overlap(first, first).weighted == pytest.approx(1)
    assert math.isnan(overlap(first, circuit(["head.0.1"])).weighted)


def test_permuting_within_layers_is_a_sharper_null_than_drawing_anywhere() -> None:
    """Both circuits sit in layer 3: of 3 and 3 of 6 heads, 1.5 are shared on average, not 3 * 3 / 24."""
    first, second = circuit(HEADS[18:21]), circuit(HEADS[20:23])
    found = overlap(first, second, permutations=4000, seed=1)
    assert found.expected == pytest.approx(9 / 24)
    assert found.permuted_mean == pytest.approx(1.5, abs=0.05)
    at_least_one = 1 - math.comb(3, 3) / math.comb(6, 3)
    assert found.p_permuted == pytest.approx(at_least_one, abs=0.02)
    assert found.p < 0.4
    assert (
        overlap(first, second, permutations=50, seed=1).p_permuted
        == overlap(first, second, permutations=50, seed=1).p_permuted
    )


def test_mlps_stay_where_they_are_when_heads_are_permuted() -> None:
    first = Circuit.of_heads(["head.0.0", "mlp.1"], model=identity())
    second = Circuit.of_heads(["head.3.0", "mlp.1", "mlp.2"], model=identity())
    assert first.total == 28
    assert overlap(first, second, permutations=20).permuted_mean == 1


def test_top_fractions_round_up_and_rank_by_size_not_sign() -> None:
    scores = {name: float(rank) for rank, name in enumerate(HEADS)} | {"head.0.3": -100.0, "head.0.4": math.nan}
    assert list(top_members(scores, 0.02)) == ["head.0.3"]
    assert list(top_members(scores, 0.1)) == ["head.0.3", "head.3.5", "head.3.4"]  # 2.4 rounds up
    assert len(top_members(dict.fromkeys(range(384), 1.0), 0.02)) == 8  # type: ignore[arg-type]
    for wrong in (0, 1.1, -0.5):
        with pytest.raises(InputError):
            top_members(scores, wrong)


def test_a_circuit_is_the_union_of_its_stages() -> None:
    one = dict(zip(HEADS, range(24), strict=True))
    two = {name: -value for name, value in zip(HEADS, reversed(range(24)), strict=True)} | {"head.3.5": 40.0}
    found = top_circuit({"movers": one, "keys": two}, 0.1, model=identity())
    assert found.stages["movers"] == ("head.3.5", "head.3.4", "head.3.3")
    assert found.stages["keys"] == ("head.3.5", "head.0.0", "head.0.1")
    assert len(found) == 5
    assert found.scores["head.3.5"] == 40.0
    assert found.total == 24
    with pytest.raises(InputError, match="same ones"):
        top_circuit({"a": one, "b": {"head.0.0": 1.0}}, 0.1)


def test_a_sweep_gives_one_row_for_each_fraction() -> None:
    draw = np.random.default_rng(0)
    one = {"all": dict(zip(HEADS, draw.normal(size=24).tolist(), strict=True))}
    rows = overlap_sweep(one, one, (0.05, 0.2, 1.0), model=identity(), permutations=20)
    assert [row["n_first"] for row in rows] == [2, 5, 24]
    assert all(row["share"] == row["jaccard"] == 1 and row["weighted"] == pytest.approx(1) for row in rows)
    assert rows[2]["p"] == 1
    assert rows[1]["p"] < 1e-4


def test_circuits_that_do_not_compare_are_refused() -> None:
    with pytest.raises(MismatchError):
        overlap(circuit(["head.0.0"]), circuit(["head.0.0"], model=identity("g")))
    with pytest.raises(InputError, match="out of 24"):
        overlap(circuit(["head.0.0"]), circuit(["head.0.0"], total=25))
    with pytest.raises(InputError, match="same members"):
        overlap(circuit(["head.0.0"]), circuit(["embed->logits"]))
    with pytest.raises(InputError, match="permutations"):
        overlap(circuit(["embed->logits"]), circuit(["embed->logits"]), permutations=5)
    for sizes in ((1, 5, 3, 4), (-1, 1, 1, 4)):
        with pytest.raises(InputError):
            hypergeometric(*sizes)


def test_members_stages_and_nodes() -> None:
    found = Circuit({"one": ("head.0.0", "head.1.1"), "two": ("head.1.1", "head.2.0")}, {}, 24)
    assert found.members == ("head.0.0", "head.1.1", "head.2.0")
    assert len(found) == 3
    assert "head.1.1" in found
    assert "one 2, two 2" in repr(found)
    assert not found.is_edges
    assert found.without(["head.1.1"]).stages == {"one": ("head.0.0",), "two": ("head.2.0",)}
    with pytest.raises(InputError, match="no edges"):
        _ = found.edges
    edges = Circuit.of_edges(
        {"embed->head.0.1.v": 3.0, "head.0.1->mlp.2": -1.0, "mlp.2->logits": 2.0}, model=identity(), total=99
    )
    assert edges.nodes == ("head.0.1", "mlp.2")
    assert edges.edges[0] == ("embed", "head.0.1.v")
    for wrong in (
        {"stages": {"a": ("head.0.0", "embed->logits")}, "total": 9},
        {"stages": {"a": ("head.0.0",)}, "total": 0},
        {"stages": {"a": ("head.0.0",)}, "total": 9, "scores": {"head.1.0": 1.0}},
    ):
        with pytest.raises(InputError):
            Circuit(**wrong)


def test_shared_keys_stand_for_all_heads_that_read_them(tiny_llama: Any) -> None:
    found = Circuit.of_edges(
        ["embed->head.0.1.k", "embed->head.1.1.q", "head.0.3->head.2.0.v"], model=tiny_llama, total=99
    )
    assert found.nodes == ("head.0.2", "head.0.3", "head.1.1", "head.2.0", "head.2.1")


def test_unit_sets_bring_their_scores(tiny_gpt2: Any) -> None:
    movers = UnitSet.of(tiny_gpt2, ["head.2.1", "head.1.0"], [3.0, 9.0])
    again = UnitSet.of(tiny_gpt2, ["head.2.1"], [7.0])
    found = Circuit.of_heads({"movers": movers, "keys": again})
    assert found.scores == {"head.2.1": 7.0, "head.1.0": 9.0}
    assert found.total == 12
    assert found.model["fingerprint"] == tiny_gpt2.fingerprint


def test_a_file_gives_the_circuit_back(tmp_path: Path) -> None:
    found = Circuit({"a": ("head.0.0",), "b": ("head.1.1",)}, {"head.0.0": 2.5}, 24, identity(), "movers")
    back = Circuit.load(found.save(tmp_path / "c.json"))
    assert (back.stages, back.scores, back.total, back.name) == (found.stages, {"head.0.0": 2.5}, 24, "movers")
    assert overlap(found, back).share == 1
    data = json.loads((tmp_path / "c.json").read_text())
    for broken in ({**data, "stages": 3}, {**data, "total": 1}, {k: v for k, v in data.items() if k != "model"}):
        (tmp_path / "bad.json").write_text(json.dumps(broken))
        with pytest.raises(DamagedError):
            Circuit.load(tmp_path / "bad.json")
