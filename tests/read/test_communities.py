"""The reading end to end: planted networks through files and charts, a hand-wired model, comparisons, the demo model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score
from tests.read.planted_modules import planted_model, planted_tasks
from tests.read.planted_networks import planted_blocks

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.data.task_sources import generated
from patchclamp.models import load
from patchclamp.read.communities import communities, compare, datasets_of, network_of
from patchclamp.read.communities_result import Communities
from patchclamp.read.pruning_importance import PruningResponse

QUICK: dict[str, Any] = {"runs": 5, "nulls": 9, "permutations": 99}


def response_of(b_dm: np.ndarray, *, fingerprint: str = "f") -> PruningResponse:
    """A response whose matrix is b_dm, scaled by row."""
    datasets, modules = b_dm.shape
    nothing = np.full(datasets, np.nan)
    return PruningResponse(
        tuple(f"{'qkvo'[m % 4]}.{m // 4}" for m in range(modules)), tuple(m // 4 for m in range(modules)),
        ("attention",) * modules, tuple(f"d{d}" for d in range(datasets)), (0.2,), b_dm[None, None], b_dm[None], nothing,
        nothing[None, None], {"name": "planted", "fingerprint": fingerprint}, {},
    )  # fmt: skip


def planted(seed: int = 0, **how: Any) -> Communities:
    b_ds, b_dm, _, skill_group = planted_blocks(seed=seed)
    skills = [f"s{number}" for number in range(b_ds.shape[1])]
    categories = {name: f"c{group}" for name, group in zip(skills, skill_group, strict=True)}
    return network_of(response_of(b_dm), b_ds, skills, categories=categories, **{**QUICK, **how})


@pytest.fixture(scope="module")
def found() -> Communities:
    return planted(nulls=19)


def test_planted_groups_come_back_with_their_skills_and_datasets(found: Communities) -> None:
    assert adjusted_rand_score(found.partition.labels, np.repeat(np.arange(4), 10)) == 1.0
    assert found.skill_members == [["s0", "s1"], ["s2", "s3"], ["s4", "s5"], ["s6", "s7"]]
    assert found.tests["modules"]["p"] == found.tests["skills"]["p"] == pytest.approx(1 / 20)
    assert found.alignment["skills"]["ami"] == pytest.approx(1.0)
    assert found.alignment["skills"]["p_ami"] < 0.05
    assert found.contrast["p"] == pytest.approx(0.05)
    for number, row in enumerate(found.community_rows()):
        assert set(found.top_skills(number, 2)) == {f"s{2 * number}", f"s{2 * number + 1}"}
        assert all(int(name[1:]) // 10 == number for name in row["datasets"])
    assert not found.notes


def test_rows_are_plain_and_complete(found: Communities) -> None:
    rows, skills = found.rows(), found.skill_rows()
    assert (len(rows), len(skills)) == (40, 8)
    assert {row["community"] for row in rows} == {0, 1, 2, 3}
    assert all(0 <= row["participation"] < 0.75 for row in rows)
    assert skills[3]["category"] == "c1"
    json.dumps([rows, skills, found.community_rows()])
    assert found.to_dict()["central"]["strength"][0]["node"] in found.modules


def test_modules_of_a_skill_are_ranked_with_intervals(found: Communities) -> None:
    ranked = found.ranked("s2")
    assert {row["community"] for row in ranked[:10]} == {1}
    assert all(row["low"] <= row["weight"] <= row["high"] for row in ranked)
    assert ranked[9]["low"] > ranked[10]["high"]
    by_hand = found.datasets_skills[:, 2] @ found.datasets_modules / found.datasets_skills[:, 2].sum()
    assert ranked[0]["weight"] == pytest.approx(by_hand.max())
    with pytest.raises(InputError, match="no skill is called"):
        found.ranked("juggling")


def test_a_saved_reading_is_the_same_reading(found: Communities, tmp_path: Path) -> None:
    path = found.save(tmp_path / "modules.json")
    again = Communities.load(path)
    assert again.to_dict() == json.loads(json.dumps(found.to_dict()))
    np.testing.assert_array_equal(again.response.matrix(), found.response.matrix())
    assert again.partition.members(again.modules) == found.members
    data = json.loads(path.read_text())
    assert (data["format"], data["reading"]) == ("patchclamp.reading/1", "communities")
    del data["partitions"]
    path.write_text(json.dumps(data))
    with pytest.raises(DamagedError, match="not a complete reading"):
        Communities.load(path)


def test_it_draws_itself_and_escapes_names(found: Communities, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    Console(width=200).print(found)
    shown = capsys.readouterr().out
    assert "4 of 40 modules" in shown
    assert "adjusted mutual information 1.00" in shown
    b_ds, b_dm, _, _ = planted_blocks(groups=2, each=3)
    html = network_of(response_of(b_dm), b_ds, ["<b>", "b", "c", "d"], **QUICK)._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;" in html
    assert "<svg" in html
    for kind in ("network", "skills", "importance"):
        assert found.chart(kind).to_dict()["$schema"]
    with pytest.raises(InputError, match="network, skills, importance"):
        found.chart("pie")


def test_equal_modules_have_no_communities_and_the_notes_say_so() -> None:
    b_ds = planted_blocks(groups=2, each=4)[0]
    rng = np.random.default_rng(0)
    noise = network_of(response_of(rng.random((8, 12))), b_ds, list("abcd"), **QUICK)
    assert noise.tests["modules"]["p"] > 0.05
    assert any("no more modular than at random" in note for note in noise.notes)
    flat = network_of(response_of(np.full((8, 12), 0.8)), b_ds, list("abcd"), **QUICK)
    assert not flat.datasets_modules.any()
    assert any("treats all modules alike" in note for note in flat.notes)
    assert flat.partition.modularity == 0
    assert flat.chart().to_dict()


def test_a_shared_need_hides_communities_until_it_is_subtracted() -> None:
    b_ds, b_dm, module_group, _ = planted_blocks()
    shared = np.concatenate([0.2 * b_dm, np.full((len(b_dm), 8), 1.0), np.zeros((len(b_dm), 1))], 1)
    plain, sharp = (
        network_of(response_of(shared), b_ds, [str(n) for n in range(8)], sharpen=sharpen, **QUICK)
        for sharpen in (False, True)
    )
    assert plain.partition.modularity < 0.1
    assert adjusted_rand_score(sharp.partition.labels[:40], module_group) == 1.0


def test_a_sparse_network_warns_in_its_notes() -> None:
    assert any("communities rarely survive" in note for note in planted(sparse=0.01).notes)


def test_a_hand_wired_model_falls_into_the_modules_of_its_skills() -> None:
    found = communities(
        planted_model(), planted_tasks(), modules="block", ratio=0.85, repeats=2, prompts=6, sharpen=True, quiet=True, **QUICK
    )  # fmt: skip
    labels = dict(zip(found.modules, found.partition.labels.tolist(), strict=True))
    assert labels["mlp.0"] != labels["mlp.1"]
    assert found.ranked("first")[0]["module"] == "mlp.0"
    assert found.ranked("second")[0]["module"] == "mlp.1"
    assert found.provenance["call"] == "read.communities"


def test_tasks_are_split_by_label() -> None:
    tasks = {"dates": generated("dates", count=40), "first": planted_tasks()["first"]}
    found = datasets_of(tasks, ("kind",))
    assert set(found) == {f"dates/{kind}" for kind in tasks["dates"].values("kind")} | {"first"}
    assert set(datasets_of(tasks)) == set(tasks)
    with pytest.raises(InputError, match="colour"):
        datasets_of(tasks, ("colour",))


def test_a_model_agrees_with_itself_and_not_with_another_network(found: Communities) -> None:
    same = compare(found, planted(seed=1), permutations=199)
    assert same["modules"]["ari"] == same["skills"]["ari"] == pytest.approx(1.0)
    assert same["importance"]["p"] == same["module_network"]["p"] == pytest.approx(1 / 200)
    b_ds, b_dm, _, _ = planted_blocks()
    rng = np.random.default_rng(0)
    other = network_of(response_of(rng.permutation(b_dm.T).T), b_ds, list(found.skills), **QUICK)
    different = compare(found, other, permutations=199)
    assert different["modules"]["p_ari"] > 0.01
    assert different["importance"]["correlation"] < 0.5
    with pytest.raises(InputError, match="in common"):
        compare(found, network_of(response_of(b_dm), b_ds, [f"x{n}" for n in range(8)], **QUICK))


def test_what_does_not_fit_is_refused() -> None:
    b_ds, b_dm, _, _ = planted_blocks()
    with pytest.raises(InputError, match="40 datasets and 3 skills"):
        network_of(response_of(b_dm), b_ds, list("abc"))
    with pytest.raises(InputError, match="curveball, strengths"):
        network_of(response_of(b_dm), b_ds, [str(n) for n in range(8)], null="none")
    with pytest.raises(InputError, match="NaN"):
        network_of(response_of(np.where(b_dm > 1.02, np.nan, b_dm)), b_ds, [str(n) for n in range(8)])


@pytest.mark.slow
def test_the_demo_model_gives_a_reading() -> None:
    tasks = {name: generated(name, count=60) for name in ("arithmetic", "binding")}
    found = communities(
        load("demo"), tasks, by=("operation", "kind"), prompts=4, repeats=1, items=8, sharpen=True, quiet=True, **QUICK
    )  # fmt: skip
    assert found.categories["addition"] == "arithmetic"
    assert found.categories["ioi"] == "binding"
    assert len(found.modules) == 42
    assert 1 <= found.partition.n_communities < 42
    assert (found.response.pruned <= 1).all()
