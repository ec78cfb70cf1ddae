"""Effects on tasks: rows equal separately clamped measurements, p-values and controls as for text, many tasks in a table."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.measure.planted import NEURONS, WORDS, loss, planted

from patchclamp import measure
from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data import Selection, Task, corpus, generated, task
from patchclamp.intervene import clamp
from patchclamp.measure import Effects, effect
from patchclamp.measure.effect_table import ROW
from patchclamp.measure.holm import holm
from patchclamp.measure.permutation import rank_p, sign_flip
from patchclamp.models.load import load
from patchclamp.models.units import UnitSet
from patchclamp.record import record
from patchclamp.replay import replay

CHEAP: dict[str, Any] = {"controls": 3, "permutations": 199, "resamples": 100, "quiet": True}
HOWS = ("choice", "completion", "pairs", "generation", "loss")
pytestmark = pytest.mark.filterwarnings("ignore:.*permutations=.*:UserWarning")


@pytest.fixture(scope="module")
def wired() -> Any:
    return planted()


def words(language: str, n: int = 12) -> Task:
    """Prompts of three words of a language; the choices are a word of each language, the right one of the prompt's."""
    rng = np.random.default_rng(ord(language))
    own, other = (WORDS[:4], WORDS[4:]) if language == "a" else (WORDS[4:], WORDS[:4])
    rows = []
    for number in range(n):
        answer = " " + own[rng.integers(4)]
        prompt = f"{' '.join(own[i] for i in rng.integers(4, size=2))} {own[number % 4]}"
        rows.append({"prompt": prompt, "answer": answer, "choices": [f" {other[rng.integers(4)]}", answer]})
    return Task.of(rows, name=language)


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {language: words(language) for language in "ab"}


def test_clamping_a_planted_neuron_hurts_its_own_task_as_the_closed_form_says(
    wired: Any, tasks: dict[str, Task]
) -> None:
    sets = {language: UnitSet.of(wired, [unit]) for language, unit in NEURONS.items()}
    found = effect(wired, sets, on=tasks, how="loss", **CHEAP)
    for name, language in itertools.product("ab", "ab"):
        expected = []
        for item in tasks[language]:
            text = item.prompt + item.answers[0]
            plain, clamped = (
                loss(text, clamped=values) - loss(item.prompt, clamped=values) for values in (None, {name: 0.0})
            )
            expected.append(clamped - plain)
        row = found.row(name, language)
        assert row["effect"] == pytest.approx(np.mean(expected), abs=1e-5)
        assert (row["metric"], row["n_documents"], row["n_tokens"]) == ("answer loss", 12, 12)
        assert set(row) == set(ROW)
        assert (row["p"] <= 0.05) == (name == language)
        assert row["control_mean"] == pytest.approx(0, abs=1e-6)
        assert row["p_controls"] == (0.25 if name == language else row["p_controls"])
    table = found.dominance()
    assert table["dominant"]
    assert table["value"] == "harm"
    accuracy = effect(wired, sets, on=tasks, **CHEAP)
    assert accuracy.dominance()["dominant"]
    assert accuracy.row("a", "a")["effect"] < -0.3
    assert accuracy.matrix("harm")[0, 0] == -accuracy.row("a", "a")["effect"]
    assert "choice accuracy" in repr(accuracy)
    assert "Harm" in accuracy._repr_html_()


@pytest.mark.parametrize("how", HOWS)
def test_rows_equal_separately_clamped_measurements(tiny_llama: Any, how: str) -> None:
    rows = [
        {"prompt": prompt, "answer": f" {answer}", "choices": [f" {answer}", f" {other}"]}
        for prompt, answer, other in [
            ("The cat sat on", "the mat", "moon"),
            ("Two and", "two", "three"),
            ("Le", "chat", "lune"),
        ]
    ]
    questions = Task.of(rows, name="questions")
    sets = {
        "low": UnitSet.of(tiny_llama, ["mlp.0.3", "mlp.1.7"]),
        "high": UnitSet.at(tiny_llama, "mlp", range(96, 120)),
        "heads": UnitSet.of(tiny_llama, ["head.2.1"]),
    }
    options = {"max_new_tokens": 3, "checker": "contains"} if how == "generation" else {}
    found = effect(tiny_llama, sets, on=questions, how=how, options=options, to=1.0, **CHEAP)
    plain = measure.score(tiny_llama, questions, how, quiet=True, **options)
    for name, units in sets.items():
        values = []
        for chosen in (units, *(units.matched_random(seed) for seed in range(3))):
            with clamp(tiny_llama, chosen, to=1.0):
                values.append(measure.score(tiny_llama, questions, how, quiet=True, **options).totals)
        row = found.row(name, "questions")
        assert row["plain"] == pytest.approx(plain.value, rel=1e-5)
        assert row["clamped"] == pytest.approx(values[0].mean(), rel=1e-4)
        controls = [value.mean() - plain.value for value in values[1:]]
        assert row["control_mean"] == pytest.approx(np.mean(controls), rel=1e-2, abs=1e-4)
        assert row["p_controls"] == rank_p(row["effect"], found.documents["questions"]["control_effects"][name])
        kept = found.documents["questions"]
        difference = values[0] - plain.totals - np.mean(values[1:], 0) + plain.totals
        assert row["p"] == pytest.approx(sign_flip(np.round(difference, 4), permutations=199))
        assert kept["clamped"][name] == pytest.approx(values[0].tolist(), rel=1e-4)
    assert [row["p_holm"] for row in found.rows] == holm([row["p"] for row in found.rows])


def test_reusing_the_prefix_gives_the_same_table(tiny_llama: Any) -> None:
    questions = Task.of([{"prompt": "The cat", "answer": " sat"}, {"prompt": "Le chat est", "answer": " assis"}])
    units = UnitSet.of(tiny_llama, ["mlp.2.4", "mlp.2.9"])
    tables = [effect(tiny_llama, units, on=questions, how="loss", reuse=reuse, **CHEAP) for reuse in (True, False)]
    assert tables[0].rows == tables[1].rows
    assert tables[0].documents == tables[1].documents


def test_batch_size_does_not_change_an_effect(tiny_llama: Any) -> None:
    questions = Task.of([{"prompt": "The cat", "answer": " sat"}, {"prompt": "Le chat est", "answer": " assis sur"}])
    units = UnitSet.at(tiny_llama, "mlp", range(20))
    tables = [effect(tiny_llama, units, on=questions, how="loss", batch_tokens=size, **CHEAP) for size in (1, 4096)]
    for one, other in zip(tables[0].rows, tables[1].rows, strict=True):
        assert one["effect"] == pytest.approx(other["effect"], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("scope", ["prompt", "generated"])
@pytest.mark.parametrize("how", ["loss", "generation"])
def test_scopes_need_no_selection_on_tasks(tiny_llama: Any, scope: str, how: str) -> None:
    questions = Task.of([{"prompt": "The cat sat", "answer": " on the mat."}, {"prompt": "Le chat", "answer": " est"}])
    units = UnitSet.at(tiny_llama, "mlp", range(0, 144, 2))
    found = effect(tiny_llama, units, on=questions, how=how, to=1.0, scope=scope, **CHEAP)
    with clamp(tiny_llama, units, to=1.0, scope=scope):
        expected = measure.score(tiny_llama, questions, how, quiet=True)
    assert found.rows[0]["clamped"] == pytest.approx(expected.value, rel=1e-4)
    if how == "loss":
        everywhere = effect(tiny_llama, units, on=questions, how=how, to=1.0, **CHEAP)
        assert found.rows[0]["effect"] != pytest.approx(everywhere.rows[0]["effect"], rel=1e-3)


def test_means_empty_sets_and_single_items(tiny_llama: Any) -> None:
    one = Task.of([{"prompt": "The cat", "answer": " sat"}], name="one")
    recording = record(tiny_llama, corpus(en=["The cat sat.", "Two and two."]), statistics=("moments",), quiet=True)
    sets = {"none": UnitSet.of(tiny_llama, []), "some": UnitSet.of(tiny_llama, ["mlp.1.3"])}
    with pytest.warns(UserWarning, match="'one' has 1 item|'none' is empty") as warned:
        found = effect(tiny_llama, sets, on=one, how="loss", to="mean", recording=recording, **CHEAP)
    assert {str(warning.message) for warning in warned} == {
        "'one' has 1 item: no interval, and p is 1",
        "the set 'none' is empty: its effect is 0 and p is 1",
    }
    assert (found.row("none", "one")["effect"], found.row("none", "one")["p"]) == (0, 1)
    assert found.row("some", "one")["low"] is None
    with clamp(tiny_llama, sets["some"], to="mean", recording=recording):
        clamped = measure.answer_loss(tiny_llama, one, quiet=True)
    assert found.row("some", "one")["clamped"] == pytest.approx(clamped.value, rel=1e-5)


def test_keywords_of_text_and_of_tasks_are_not_mixed(tiny_llama: Any) -> None:
    units, text = UnitSet.of(tiny_llama, ["mlp.0.1"]), corpus(en=["The cat sat.", "Two and two."])
    one = Task.of([{"prompt": "The cat", "answer": " sat"}])
    for on, keywords, message in [
        (text, {"how": "loss"}, "belong to tasks"),
        (text, {"options": {"normalise": "tokens"}}, "belong to tasks"),
        (one, {"select": Selection(inside="response")}, "belong to text"),
        (one, {"max_length": 16}, "belong to text"),
        (one, {"how": "loss", "options": {"tokens": 1}}, "no option 'tokens'"),
        (one, {"batch_tokens": 0}, "batch_tokens=0"),
        ({}, {}, "name -> task"),
        ("generate:facts", {}, "name -> task"),
        ({"x": text}, {}, "a Task is needed"),
        (one, {}, "no choices"),
    ]:
        with pytest.raises(InputError, match=message):
            effect(tiny_llama, units, on=on, quiet=True, **keywords)  # type: ignore[arg-type]


# --- files and replay --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tiny_gpt2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made")
    tiny_gpt2.hf.save_pretrained(made / "model")
    tiny_gpt2.tokenizer.save_pretrained(made / "model")
    return made


def test_an_effect_on_tasks_is_saved_and_replayed(folder: Path) -> None:
    model = load(folder / "model")
    years = generated("arithmetic", count=12, operations=["subtraction"])
    Task.of([{"prompt": item.prompt, "answer": item.answers[0]} for item in years]).save(folder / "sums.jsonl")
    on = {"sums": task(folder / "sums.jsonl").limited(6), "shots": years.limited(4).with_shots(1)}
    units = UnitSet.of(model, ["mlp.1.3", "mlp.2.5"])
    found = effect(model, units, on=on, how="loss", options={"normalise": "tokens"}, **CHEAP)
    path = found.save(folder / "effects.json")
    loaded = Effects.load(path)
    assert loaded.rows == found.rows
    assert set(loaded.provenance["inputs"]["tasks"]) == {"sums", "shots"}
    report = replay(path)
    assert (report.agrees, report.worst) == (True, 0.0)
    assert report.compared > 50
    (folder / "sums.jsonl").write_text('{"prompt": "1 + 1 =", "answer": " 2"}\n' * 6)
    with pytest.raises(MismatchError, match="'sums' has other items"):
        replay(path)
    with pytest.raises(MismatchError, match="'sums' given is not"):
        replay(path, task=on["shots"])
    assert replay(path, task=on).agrees


def test_an_effect_on_live_items_asks_for_them(folder: Path) -> None:
    model = load(folder / "model")
    live = Task.of([{"prompt": "The cat", "answer": " sat"}, {"prompt": "Two", "answer": " and"}], name="live")
    path = effect(model, UnitSet.of(model, ["mlp.1.3"]), on=live, how="loss", **CHEAP).save(folder / "live.json")
    with pytest.raises(InputError, match=r"in memory.*give the task"):
        replay(path)
    assert replay(path, task=live).agrees
