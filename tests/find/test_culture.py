"""Culture neurons: the planted ones are found and sorted, closed forms hold, noise gives nothing, and clamping is causal."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.find.planted_culture import GROUPS, CulturePlant, plant_culture

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data.tasks import Task
from patchclamp.find import Finding, finders
from patchclamp.find.culture import culture, general, z_of
from patchclamp.find.culture_selection import general_units, pools, specific_units, z_scores
from patchclamp.find.culture_sums import contributions
from patchclamp.intervene.clamp import clamp
from patchclamp.models.load import LanguageModel, load
from patchclamp.models.units import Layout

LAYOUTS = (Layout("pre", (30, 30)), Layout("q", (10, 10)), Layout("v", (5, 5)))


@pytest.fixture(scope="module")
def plant() -> CulturePlant:
    return plant_culture()


def found(plant: CulturePlant, **given: Any) -> Finding:
    how: dict[str, Any] = {"sites": ("pre",), "share_mlp": 0.14, "share_specific": 0.14, "remove": 0.04, "quiet": True}
    return culture(plant.model, plant.task, **(how | given))


def test_the_planted_model_answers_as_wired(plant: CulturePlant) -> None:
    sums = contributions(plant.model, plant.task, sites=("pre",))
    assert (sums.probability / sums.group_rows > 0.9).all()
    blind = contributions(plant.model, plant.control, sites=("pre",))
    assert (blind.probability / blind.group_rows < 0.26).all()
    with clamp(plant.model, list(plant.names["A"]), to=0.0):
        knows_not = contributions(plant.model, plant.task, sites=("pre",))
    assert (knows_not.probability / knows_not.group_rows < 0.5).all()


def test_raw_then_without_task_units_then_without_name_units(plant: CulturePlant) -> None:
    a, b, c, d = (plant.names[kind] for kind in "ABCD")
    raw = found(plant, shuffles=0)
    assert set(raw.sets["general"].names()) == a | b | c | d
    without_task = found(plant, control=plant.control, shuffles=0)
    assert set(without_task.sets["general"].names()) == a | b | d
    clean = found(plant, control=plant.control, names=plant.passages, shuffles=0)
    assert set(clean.sets["general"].names()) == a | b


def test_a_groups_set_holds_its_own_knowledge_alone(plant: CulturePlant) -> None:
    clean = found(plant, control=plant.control, names=plant.passages)
    knowledge = sorted(plant.names["A"], key=lambda name: int(name.split(".")[-1]))
    for g in range(GROUPS):
        assert set(clean.sets[f"g{g}"].names()) == set(knowledge[2 * g : 2 * g + 2])
    z = z_of(clean)
    general_unit = clean.position(next(iter(plant.names["B"])))
    assert np.abs(z[:, general_unit]).max() < 0.5
    assert z[0, clean.position(knowledge[0])] == pytest.approx(np.sqrt(GROUPS - 1), rel=1e-3)
    null = clean.null["specific"]  # each D stands out for its group in both questions; exchanged, for one group in each
    assert null["observed"] == 12
    assert 12 <= null["mean"] <= 16
    p = dict(zip(clean.names(range(clean.total)), clean.p_values[0].tolist(), strict=True))
    assert all(p[name] < 1e-3 for name in plant.names["B"])  # in every cell of group and question
    assert all(p[name] > 0.05 for name in plant.names["A"])  # in one cell of eight: that can't be told from chance


def test_scores_are_the_sums_by_hand(plant: CulturePlant) -> None:
    """General and group scores from single prompts, each attributed by itself."""
    from patchclamp.find.attribution import attribute

    total = plant.model.layouts["pre"].total
    score = {name: np.zeros((GROUPS, total)) for name in ("main", "control")}
    for name, task in (("main", plant.task), ("control", plant.control)):
        for item in task:
            ((_, values, p),) = attribute(plant.model, [item.prompt], [item.answers[0]], sites=("pre",))
            mine = values[0].double().numpy() * float(p[0])
            score[name][int(item.labels["country"][1])] += mine if name == "main" else np.maximum(mine, 0)
    groups = (score["main"] - score["control"]) / (len(plant.task) / GROUPS)
    clean = found(plant, control=plant.control, means="group", shuffles=0)
    np.testing.assert_allclose(clean.scores[1:], groups, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(clean.scores[0], groups.mean(0), rtol=1e-4, atol=1e-9)
    paper = found(plant, control=plant.control, means="total", shuffles=0)
    np.testing.assert_allclose(paper.scores[1:], groups / GROUPS, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(paper.scores[0], groups.mean(0), rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("m", "z"), [(1, 3.873), (2, 2.646), (8, 1.0), (12, 0.577), (13, 0.480)])
def test_z_of_a_unit_shared_by_m_of_16_groups(m: int, z: float) -> None:
    scores = np.zeros((16, 3))
    scores[:m, 0] = 0.7
    scores[:, 1] = 0.4  # shared by all: no spread
    standing = z_scores(scores)
    assert standing[0, 0] == pytest.approx(z, abs=5e-4)
    assert (standing[:, 1:] == 0).all()
    kept = specific_units(scores[0], None, standing[0], share=0.99, remove=0.0, least=0.5)
    assert kept.tolist() == [m <= 12, False, False]


def test_parts_of_a_task_add_up_to_the_whole(plant: CulturePlant) -> None:
    whole = contributions(plant.model, plant.task, sites=("pre", "v"))
    cut = [Task.of(plant.task.items[:11]), Task.of(plant.task.items[11:])]
    merged = contributions(plant.model, cut[0], sites=("pre", "v")).merge(
        contributions(plant.model, cut[1], sites=("pre", "v"))
    )
    np.testing.assert_allclose(merged.sums, whole.sums, rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(merged.rows, whole.rows)
    np.testing.assert_array_equal(merged.positive, whole.positive)
    np.testing.assert_allclose(merged.probability, whole.probability)
    assert (merged.groups, merged.blocks) == (whole.groups, whole.blocks)
    with pytest.raises(MismatchError, match="other units"):
        whole.merge(contributions(plant.model, plant.task, sites=("pre",)))


def test_a_task_twice_changes_no_mean(plant: CulturePlant) -> None:
    once = found(plant, control=plant.control, shuffles=0)
    twice = culture(
        plant.model, Task.of([*plant.task, *plant.task]), control=plant.control, sites=("pre",), shuffles=0, quiet=True
    )
    np.testing.assert_allclose(twice.scores, once.scores, rtol=1e-5, atol=1e-12)


def test_unequal_groups_are_averaged_by_themselves(plant: CulturePlant) -> None:
    fewer = Task.of([item for number, item in enumerate(plant.task) if item.labels["country"] != "g0" or number % 2])
    uneven = culture(plant.model, fewer, sites=("pre",), shuffles=0, quiet=True)
    assert uneven.parameters["means_used"] == "group"
    assert any("unequal" in note for note in uneven.notes)
    even = found(plant, shuffles=0)
    assert even.parameters["means_used"] == "total"
    a = next(iter(sorted(plant.names["A"])))
    assert uneven.scores[1, uneven.position(a)] == pytest.approx(GROUPS * even.scores[1, even.position(a)], rel=0.05)


def test_padding_in_the_papers_form_differs(plant: CulturePlant) -> None:
    longer = Task.of([*plant.task, *({**item.to_dict(), "prompt": "said " + item.prompt} for item in plant.task)])
    ours = culture(plant.model, longer, sites=("pre", "v"), shuffles=0, quiet=True)
    theirs = culture(plant.model, longer, sites=("pre", "v"), shuffles=0, quiet=True, pad_zero=True)
    assert (theirs.scores >= ours.scores - 1e-12).all()


@given(
    st.integers(0, 2**32 - 1), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 0.4), st.floats(0, 0.4), st.booleans()
)
@settings(max_examples=25, deadline=None)
def test_selection_invariants(seed: int, mlp: float, attention: float, less: float, more: float, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    total = sum(layout.total for layout in LAYOUTS)
    score, names = rng.normal(size=(2, total)).round(0 if ties else 9)
    less, more = sorted((less, more))
    kept = {r: general_units(score, names, LAYOUTS, mlp=mlp, attention=attention, remove=r) for r in (0.0, less, more)}
    assert not (kept[more] & ~kept[less]).any()  # raising r only removes
    assert not (kept[less] & ~kept[0.0]).any()
    np.testing.assert_array_equal(
        kept[0.0], general_units(score, None, LAYOUTS, mlp=mlp, attention=attention, remove=0.3)
    )
    for where, share in zip(pools(LAYOUTS), (mlp, attention), strict=True):
        assert kept[0.0][where].sum() <= int(share * len(where))
        chosen = where[kept[0.0][where]]
        expected = sorted(where.tolist(), key=lambda at: (-score[at], at))[: int(share * len(where))]
        assert chosen.tolist() == sorted(at for at in expected if score[at] > 0)
        top = sorted(where.tolist(), key=lambda at: (-names[at], at))[: int(more * len(where))]
        assert not kept[more][[at for at in top if names[at] > 0]].any()  # disjoint from the name units
    assert not general_units(score, names, LAYOUTS, mlp=0, attention=0, remove=less).any()


def test_the_general_set_at_other_shares(plant: CulturePlant) -> None:
    clean = found(plant, control=plant.control, names=plant.passages, shuffles=0)
    assert general(clean, share_mlp=0.14, share_attention=0.0) == clean.sets["general"]
    assert len(general(clean, share_mlp=0.0, share_attention=0.0)) == 0
    assert len(general(clean, share_mlp=0.08, share_attention=0.0, remove=0.0)) == 8
    with pytest.raises(InputError, match="share_mlp"):
        general(clean, share_mlp=1.0, share_attention=0.0)


def test_a_finding_over_several_sites_survives_its_file(plant: CulturePlant, tmp_path: Path) -> None:
    first = found(plant, sites=("v", "pre", "q"), control=plant.control, names=plant.passages, share_attention=0.05)
    again = Finding.load(first.save(tmp_path / "culture.json"))
    assert again.layouts == first.layouts
    assert again.sites == ("v", "pre", "q")
    with pytest.raises(InputError, match="spans the sites v, pre, q"):
        _ = first.layout
    for name in ("scores", "unit_score", "member", "p_values", "chosen"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert again.sets == first.sets
    assert again.null == first.null
    assert again.summary()["per_site"] == first.summary()["per_site"]


@pytest.mark.slow
def test_noise_names_units_at_the_stated_rate(tiny_llama: LanguageModel) -> None:
    """Random prompts and answers, groups dealt at random: few or no discoveries at a false-discovery rate of 5%."""
    hits = {"general": 0, "groups": 0}
    for seed in range(6):
        rng = np.random.default_rng(seed)

        def items(n: int = 120, rng: np.random.Generator = rng) -> Task:
            made = []
            for number in range(n):
                words = " ".join("abcdefghij"[k] for k in rng.integers(0, 10, 6))
                labels = {"country": f"g{number % 4}", "relation": f"r{number // 4 % 6}"}
                made.append({"prompt": words, "answer": f" {'abcdefghij'[rng.integers(10)]}", "labels": labels})
            return Task.of(made)

        finding = culture(tiny_llama, items(), control=items(), shuffles=40, seed=seed, quiet=True)
        chosen = finding.select(fdr=0.05)
        hits["general"] += len(chosen["general"]) > 0
        hits["groups"] += sum(len(chosen[f"g{g}"]) for g in range(4)) > 0
        null = finding.null["specific"]
        assert abs(null["observed"] - null["mean"]) <= max(4.0, 0.6 * null["mean"])
    assert hits["general"] <= 1
    assert hits["groups"] <= 1


def test_the_same_seed_gives_the_same_finding(plant: CulturePlant) -> None:
    first, second = (found(plant, control=plant.control, shuffles=20, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.p_values, second.p_values)
    assert first.null == second.null
    before = plant.model.logits(np_ids(plant, "g0 q0 v00 v10 v20 v30 answer"))
    assert (before == plant.model.logits(np_ids(plant, "g0 q0 v00 v10 v20 v30 answer"))).all()


def np_ids(plant: CulturePlant, text: str) -> Any:
    import torch

    return torch.tensor([plant.model.tokenize(text)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": "land"}, "no label 'land'"),
        ({"share_mlp": 1.0}, "share_mlp=1.0"),
        ({"remove": -0.1}, "remove=-0.1"),
        ({"share_specific": 1.5}, "share_specific=1.5"),
        ({"means": "median"}, "means='median'"),
        ({"sites": ("pre", "moe")}, "moe"),
        ({"sites": ("pre", "resid")}, "site resid is neither"),
        ({"shuffles": -1}, "shuffles=-1"),
        ({"tokens": 0}, "tokens=0"),
        ({"task": "one group"}, "at least two groups"),
        ({"task": "unknown answer"}, "doesn't know the answer"),
        ({"control": "strange group"}, "control has items of g9"),
        ({"control": "lacking"}, "no items of the country 'g0'"),
        ({"control": "other block"}, "block="),
        ({"names": "strange group"}, "names has items of g9"),
    ],
)
def test_bad_input_is_named(plant: CulturePlant, change: dict[str, Any], message: str) -> None:
    def relabelled(task: Task, **labels: str) -> Task:
        return Task.of([{**item.to_dict(), "labels": {**item.labels, **labels}} for item in task])

    broken = {
        "one group": plant.task.where(country="g0"),
        "unknown answer": Task.of([{"prompt": "g0 q0 answer", "answer": "wine", "labels": {"country": "g0"}}] * 2),
        "strange group": relabelled(plant.control, country="g9"),
        "lacking": plant.control.where(country=["g1", "g2", "g3"]),
        "other block": relabelled(plant.control, relation="q7"),
    }
    given = {key: broken.get(value, value) if isinstance(value, str) else value for key, value in change.items()}
    task = given.pop("task", plant.task)
    with pytest.raises(InputError, match=message):
        culture(plant.model, task, **({"sites": ("pre",), "quiet": True} | given))


def test_answers_that_the_model_never_gives_are_refused(plant: CulturePlant) -> None:
    hf = copy.deepcopy(plant.model.hf)
    hf.lm_head.weight.data *= 8
    sure = load(hf, tokenizer=plant.model.tokenizer, check=False)
    wrong = Task.of([{**item.to_dict(), "answers": [" said"], "choices": []} for item in plant.task])
    with pytest.raises(InputError, match="below 1e-6"):
        culture(sure, wrong, sites=("pre",), quiet=True)


def test_without_controls_and_shuffles_the_notes_say_so(plant: CulturePlant) -> None:
    bare = found(plant, shuffles=0)
    assert any("without a control" in note for note in bare.notes)
    assert any("without a task of names" in note for note in bare.notes)
    assert bare.p_values is None
    assert bare.null["available"] is False
    with pytest.raises(InputError, match="shuffles=0"):
        bare.select(fdr=0.05)
    alone = found(plant, block="country")
    assert "block=" in alone.null["why"]
    assert "culture" in finders


@pytest.mark.slow
def test_clamping_the_general_set_of_the_demo_model_hurts_held_out_culture() -> None:
    """Found on breakfasts, dishes and sports; measured on drinks, dresses and festivals, and on capitals."""
    from patchclamp.data.generate.culture_controls import culture_choices, culture_control
    from patchclamp.data.task_sources import generated
    from patchclamp.measure import effect

    model = load("demo")
    kinds = {"attributes": ("breakfast", "dish", "sport"), "languages": ("en", "zh"), "count": 120}
    finding = culture(
        model,
        Task.of(culture_choices(**kinds)),
        control=Task.of(culture_control(**kinds)),
        shuffles=10,
        quiet=True,
    )
    held_out = Task.of(culture_choices(attributes=("drink", "dress", "festival"), languages=("en", "zh"), count=50))
    other = generated("facts", count=50, relations=("capital",))
    effects = effect(
        model, finding.sets["general"], on={"culture": held_out, "facts": other}, how="loss", controls=3, quiet=True
    )
    culture_row, other_row = effects.row("units", "culture"), effects.row("units", "facts")
    assert culture_row["effect"] > 0.1
    assert culture_row["effect"] > 5 * max(culture_row["control_mean"], 0.0)
    assert culture_row["p_holm"] < 0.01
    assert culture_row["effect"] > 2 * other_row["effect"]
