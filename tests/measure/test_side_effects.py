"""Reports on side effects: planted truth, plain recomputation, edited models, verdicts from numbers, files, the page, replay."""

from __future__ import annotations

import copy
import itertools
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.measure.planted import NEURONS, WORDS, documents, planted

import patchclamp as pc
from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.data import Selection, Task, corpus
from patchclamp.data.documents import Document
from patchclamp.intervene import clamp, edit, intervention
from patchclamp.measure import SideEffects, effect, perplexity, score, side_effects
from patchclamp.measure.effect_table import ROW
from patchclamp.measure.harm import harm
from patchclamp.measure.holm import holm
from patchclamp.measure.permutation import sign_flip
from patchclamp.measure.side_effect_report import OWN
from patchclamp.measure.side_effect_verdict import ALPHA
from patchclamp.models.load import load
from patchclamp.models.units import UnitSet
from patchclamp.replay import replay

CHEAP: dict[str, Any] = {"controls": 3, "permutations": 999, "resamples": 100, "max_new_tokens": 4, "quiet": True}
pytestmark = pytest.mark.filterwarnings("ignore:.*permutations=.*:UserWarning", "ignore:too few items:UserWarning")


@pytest.fixture(scope="module")
def wired() -> Any:
    return planted()


def words(language: str, n: int = 16) -> Task:
    """Prompts of two words of a language; the choices are a word of each language, the right one of the prompt's."""
    rng = np.random.default_rng(ord(language))
    own, other = (WORDS[:4], WORDS[4:]) if language == "a" else (WORDS[4:], WORDS[:4])
    rows = []
    for number in range(n):
        answer = " " + own[rng.integers(4)]
        rows.append(
            {
                "prompt": f"{own[rng.integers(4)]} {own[number % 4]}",
                "answer": answer,
                "choices": [f" {other[0]}", answer],
            }
        )
    return Task.of(rows, name=f"next {language}")


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """What is measured on the wired model: two texts and two tasks."""
    text = corpus(a=documents("a", 20), b=documents("b", 15))
    return {"text": text, "tasks": {f"next {language}": words(language) for language in "ab"}}


@pytest.fixture(scope="module")
def selective(wired: Any, measured: dict[str, Any]) -> SideEffects:
    """The neuron of language a silenced, language a being the target."""
    units = UnitSet.of(wired, [NEURONS["a"]])
    return side_effects(wired, units, target=["a", "next a"], seed=1, **measured, **CHEAP)


def test_silencing_a_planted_neuron_hits_its_language_and_nothing_beside_it(selective: SideEffects) -> None:
    assert [row["text"] for row in selective.rows] == ["a", "next a", "next b", "b"]
    assert [row["role"] for row in selective.rows] == ["target", "target", "beside", "beside"]
    for row in selective.rows[:2]:
        assert row["harm"] > 0.2
        assert row["harm_low"] <= row["harm"] <= row["harm_high"]
        assert (row["said"], row["control_mean"]) == ("worse", 0)
        assert row["p_change_holm"] < ALPHA
    for row in selective.rows[2:]:
        assert (row["harm"], row["harm_low"], row["harm_high"], row["p_change"]) == (0, 0, 0, 1)
        assert row["said"] == "no change shown"
    first, *others = selective.verdict
    assert first == "Selective: the target changes, harm beside it is not shown."
    assert any(line.startswith("Target a: perplexity") and "beyond random changes" in line for line in others)
    assert "Beside it, none of 2 measures changed beyond chance." in others
    assert "No item of next b, b changed at all; with 15 items, a change in up to 20% can go unseen." in others


def test_silencing_both_neurons_is_a_side_effect_on_the_other_language(wired: Any, measured: dict[str, Any]) -> None:
    change = intervention(wired, UnitSet.of(wired, list(NEURONS.values())), to=0.0)
    found = side_effects(wired, change, target="a", **measured, **CHEAP)
    assert found.verdict[0] == "Acts on the target, with side effects on next a, next b, b."
    assert found.row("b")["said"] == "worse"
    without = side_effects(wired, change, **measured, **CHEAP)
    assert without.verdict[0] == "Changed beyond chance: next a, next b, a, b."
    assert {row["role"] for row in without.rows} == {"beside"}


def test_a_change_that_does_nothing_is_called_so(wired: Any, measured: dict[str, Any]) -> None:
    idle = UnitSet.of(wired, ["mlp.0.3"])  # writes nothing
    found = side_effects(wired, idle, target="a", **measured, **CHEAP)
    assert found.verdict[0] == "No effect on the target a is shown."
    assert found.affected == []
    assert all(sample["changed"] == sample["plain"] for sample in found.samples)
    empty = UnitSet.of(wired, [])
    with pytest.warns(UserWarning, match="is empty"):
        found = side_effects(wired, empty, **measured, **CHEAP)
    assert found.verdict[0] == "No change beyond chance is shown anywhere."
    assert {sample["control"] for sample in found.samples} == {None}


def test_rows_equal_measurements_made_one_by_one(tiny_llama: Any) -> None:
    text = corpus(
        en=["The cat sat on the mat.", "Two and two make four.", "The moon is up"], fr=["Le chat", "La lune est"]
    )
    rows = [("The cat sat on", " the mat", " moon"), ("Two and", " two", " three"), ("Le", " chat", " lune")]
    tasks = {
        "choose": Task.of([{"prompt": p, "answer": a, "choices": [a, o]} for p, a, o in rows], name="choose"),
        "say": Task.of([{"prompt": p, "answer": a} for p, a, _ in rows], name="say"),
    }
    change = intervention(tiny_llama, UnitSet.at(tiny_llama, "mlp", range(90, 110)), scale=4.0)
    found = side_effects(tiny_llama, change, text=text, tasks=tasks, **CHEAP)
    assert {row["text"]: row["metric"] for row in found.rows} == {
        "choose": "choice accuracy", "say": "answer loss", "en": "perplexity", "fr": "perplexity",
    }  # fmt: skip

    def plainly(under: Any) -> dict[str, Any]:
        with under.applied(tiny_llama) if under else clamp(tiny_llama, [], to=0.0):
            two = {
                name: score(tiny_llama, tasks[name], how, quiet=True)
                for name, how in (("choose", "choice"), ("say", "loss"))
            }
            return {**two, **perplexity(tiny_llama, text)}

    plain, changed = plainly(None), plainly(change)
    controls = [plainly(change.matched_random(seed)) for seed in range(3)]
    for row in found.rows:
        name = row["text"]
        assert row["plain"] == pytest.approx(plain[name].value, rel=1e-5)
        assert row["clamped"] == pytest.approx(changed[name].value, rel=1e-4)
        assert row["control_mean"] == pytest.approx(
            np.mean([one[name].value for one in controls]) - plain[name].value, rel=1e-2, abs=1e-3
        )
        gaps = np.round(changed[name].totals - plain[name].totals, 3)
        assert row["p_change"] == pytest.approx(sign_flip(gaps, permutations=999))
        assert row["harm"] == pytest.approx(harm(row["metric"], row["plain"], row["clamped"]))
    assert [row["p_change_holm"] for row in found.rows] == holm([row["p_change"] for row in found.rows])
    assert [row["p_holm"] for row in found.rows] == holm([row["p"] for row in found.rows])
    with change.applied(tiny_llama):
        assert [sample["changed"] for sample in found.samples] == [
            tiny_llama.generate([sample["prompt"]], max_new_tokens=4)[0] for sample in found.samples
        ]
    with change.matched_random(0).applied(tiny_llama):
        assert found.samples[0]["control"] == tiny_llama.generate([found.samples[0]["prompt"]], max_new_tokens=4)[0]


def test_batch_size_changes_nothing(tiny_llama: Any) -> None:
    text = corpus(
        en=["The cat sat on the mat.", "Two and two make four.", "The moon"], fr=["Le chat est assis.", "La lune"]
    )
    change = intervention(tiny_llama, UnitSet.at(tiny_llama, "mlp", range(60, 100)), scale=3.0)
    one, many = (
        side_effects(tiny_llama, change, text=text, target="fr", batch_tokens=size, **CHEAP) for size in (1, 4096)
    )
    assert one.samples == many.samples
    for left, right in zip(one.rows, many.rows, strict=True):
        assert left["effect"] == pytest.approx(right["effect"], rel=1e-3, abs=1e-3)
        assert left["p_change"] == right["p_change"]


def test_the_items_that_changed_most_are_those_of_the_largest_change_per_token(selective: SideEffects) -> None:
    kept = selective.documents["a"]
    gaps = [
        abs(after - before) / tokens
        for before, after, tokens in zip(kept["plain"], kept["clamped"]["change"], kept["tokens"], strict=True)
    ]
    expected = sorted(range(20), key=lambda number: -gaps[number])[:3]
    shown = [item for item in selective.affected if item["text"] == "a"]
    assert [item["number"] for item in shown] == expected
    assert [item["item"] for item in shown] == [documents("a", 20)[number] for number in expected]
    assert shown[0]["changed"] - shown[0]["plain"] == pytest.approx(gaps[expected[0]])
    assert {item["text"] for item in selective.affected} == {"a", "next a"}


# --- edited models -------------------------------------------------------------------------------------------------


def test_an_edit_has_the_rows_and_controls_of_the_clamp_that_it_was_made_from(
    wired: Any, measured: dict[str, Any], selective: SideEffects
) -> None:
    edited = edit(wired, UnitSet.of(wired, [NEURONS["a"]]))
    found = side_effects(wired, edited=edited, target=["a", "next a"], seed=1, **measured, **CHEAP)
    for row, clamped in zip(found.rows, selective.rows, strict=True):
        for key in ("plain", "clamped", "effect", "control_mean", "p_controls", "p_change"):
            assert row[key] == pytest.approx(clamped[key], rel=1e-5, abs=1e-6)
    assert found.verdict[0] == selective.verdict[0]
    assert found.what.startswith("edited weights: 1 units (mlp.1.5) set to 0")
    assert [sample["changed"] for sample in found.samples] == [sample["changed"] for sample in selective.samples]


def test_models_that_cannot_be_controlled_or_compared(tiny_llama: Any, tiny_gpt2: Any, wired: Any) -> None:
    text = corpus(en=["The cat sat on the mat.", "Two and two."])
    with pytest.warns(UserWarning, match="no random controls .*only one of the two models has the weight"):
        found = side_effects(tiny_llama, edited=tiny_gpt2, text=text, **CHEAP)  # of one vocabulary
    assert found.rows[0]["control_mean"] is None
    assert "not beyond" not in found.verdict[0]
    assert found.rows[0]["effect"] == pytest.approx(
        perplexity(tiny_gpt2, text)["en"].value - perplexity(tiny_llama, text)["en"].value, rel=1e-5
    )
    with pytest.warns(UserWarning, match="the same weights"):
        found = side_effects(tiny_llama, edited=tiny_llama, text=text, **CHEAP)
    assert found.rows[0]["effect"] == 0
    with pytest.raises(MismatchError, match="another vocabulary"):
        side_effects(tiny_llama, edited=wired, text=text, **CHEAP)
    with pytest.raises(MismatchError, match="edit of model"):
        side_effects(tiny_gpt2, edited=edit(tiny_llama, ["mlp.0.1"]), text=text, **CHEAP)
    with pytest.raises(InputError, match="leave every block"), clamp(tiny_llama, ["mlp.0.1"], to=0.0):
        side_effects(tiny_llama, edited=edit_outside(tiny_llama), text=text, **CHEAP)


def edit_outside(model: Any) -> Any:
    """Another model of the same weights, made without touching the one that is clamped."""
    return load(copy.deepcopy(model.hf), tokenizer=model.tokenizer, check=False)


# --- requests -------------------------------------------------------------------------------------------------------


def test_bad_requests_say_what_to_do(tiny_llama: Any) -> None:
    units, text = UnitSet.of(tiny_llama, ["mlp.0.1"]), corpus(en=["The cat sat.", "Two and two."])
    task = Task.of([{"prompt": "The cat", "answer": " sat"}], name="task")
    for keywords, message in [
        ({}, "either a change"),
        ({"change": units, "edited": tiny_llama, "text": text}, "either a change"),
        ({"change": units}, "brings no tasks and no text of its own"),
        ({"change": units, "target": "en"}, "brings no tasks and no text of its own"),
        ({"change": units, "text": text, "target": "fr"}, "'fr' is neither a task nor a label; there are en"),
        ({"change": units, "text": text, "tasks": {"en": task}}, "'en' names two things"),
        ({"change": units, "text": ["no"]}, "give labelled text"),
        ({"change": units, "tasks": "generate:facts"}, "name -> task"),
        ({"change": units, "tasks": {"x": text}}, "a Task is needed"),
        ({"change": units, "tasks": task, "how": {"other": "loss"}}, "'other', which is no task"),
        ({"change": units, "tasks": task, "how": "melt"}, "melt"),
        ({"change": units, "tasks": task, "options": {"choice": {}}}, "measured by loss"),
        ({"change": units, "text": text, "max_new_tokens": 0}, "max_new_tokens=0"),
        ({"change": units, "text": text, "examples": -1}, "examples=-1"),
        ({"change": units, "text": text, "controls": -1}, "controls=-1"),
        ({"change": ["mlp.0.1"], "text": text}, "a UnitSet is needed"),
        ({"edited": tiny_llama, "text": text, "to": 0.0}, "belong to a change"),
        ({"edited": 3, "text": text}, "edited= is a int"),
        ({"change": units, "text": text, "prompts": ["The cat " * 40]}, "room that 4 new ones leave"),
    ]:
        with pytest.raises(InputError, match=message):
            side_effects(tiny_llama, **{**CHEAP, **keywords})


def test_targets_may_be_tasks_and_text_of_their_own(
    wired: Any, measured: dict[str, Any], selective: SideEffects
) -> None:
    units = UnitSet.of(wired, [NEURONS["a"]])
    tasks = measured["tasks"]
    by_task = side_effects(wired, units, target=tasks["next a"], tasks={"next b": tasks["next b"]}, **CHEAP)
    assert [(row["text"], row["role"]) for row in by_task.rows] == [("next a", "target"), ("next b", "beside")]
    by_text = side_effects(
        wired, units, target=corpus(a=documents("a", 20)), text=corpus(b=documents("b", 15)), seed=1, **CHEAP
    )
    assert [(row["text"], row["role"]) for row in by_text.rows] == [("a", "target"), ("b", "beside")]
    assert by_text.row("a")["effect"] == selective.row("a")["effect"]
    how = side_effects(
        wired, units, tasks=tasks, how={"next a": "loss"}, options={"loss": {"normalise": "tokens"}}, **CHEAP
    )
    assert [row["metric"] for row in how.rows] == ["answer loss", "choice accuracy"]


def test_few_items_are_warned_of_and_no_prompt_gives_no_sample(wired: Any) -> None:
    with pytest.warns(
        UserWarning, match=r"too few items, or permutations, for any p .* 2 measures .*: a \(4\), b \(1\)"
    ):
        found = side_effects(
            wired,
            UnitSet.of(wired, [NEURONS["a"]]),
            text=corpus(a=documents("a", 4), b=documents("b", 1)),
            prompts=[],
            **CHEAP,
        )
    assert found.samples == []
    assert found.row("b")["harm_low"] is None
    assert {row["said"] for row in found.rows} == {"too few items"}
    assert found.verdict[0] == "There are too few items to tell whether anything changed."
    assert "Too few items to tell of a, b." in found.verdict[1]
    page = found.html()
    assert "Samples" not in page
    assert "Warnings" in page


def test_without_controls_the_verdict_and_the_page_say_so(wired: Any, measured: dict[str, Any]) -> None:
    found = side_effects(wired, UnitSet.of(wired, [NEURONS["a"]]), target="a", **measured, **{**CHEAP, "controls": 0})
    assert "no random changes to compare with" in found.verdict[1]
    assert "no random changes to compare with" in found.html()
    assert "p random" not in found.html().partition("p: sign flips")[0]


# --- files and pages ------------------------------------------------------------------------------------------------


class Outside(HTMLParser):
    """What a page would fetch: attributes that name another place."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.places: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.places += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]


def test_the_page_is_one_file_that_fetches_nothing_and_escapes_what_models_write(wired: Any) -> None:
    text = corpus({"<i>a</i>": documents("a", 8), "b": documents("b", 8)})
    found = side_effects(
        wired,
        UnitSet.of(wired, [NEURONS["a"]]),
        text=text,
        target="<i>a</i>",
        prompts=["a0 <script>alert(1)</script>"],
        **CHEAP,
    )
    page = found.html()
    parser = Outside()
    parser.feed(page)
    assert parser.places == []
    assert not {"script", "link", "iframe", "img", "i"} & set(parser.tags)
    assert "svg" in parser.tags
    assert "url(" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;i&gt;a&lt;/i&gt;" in page
    assert "<i>" not in found._repr_html_()
    for line in found.verdict:
        assert line.replace("'", "&#39;").replace("<i>a</i>", "&lt;i&gt;a&lt;/i&gt;") in page


def test_a_report_is_saved_loaded_and_shown(selective: SideEffects, tmp_path: Path) -> None:
    path = selective.save(tmp_path / "report.json")
    data = json.loads(path.read_text())
    assert data["format"] == "patchclamp.side-effects/1"
    assert data["verdict"] == selective.verdict
    loaded = SideEffects.load(path)
    assert loaded.to_dict() == data
    assert all(set(row) == {*ROW, *OWN} for row in loaded.rows)
    assert loaded.html() == selective.html()
    assert selective.save(tmp_path / "report.html").read_text() == selective.html()
    assert selective.effects.row("change", "a")["effect"] == selective.row("a")["effect"]
    assert selective.effects.matrix("harm").shape == (1, 4)
    assert selective.polars()["said"].to_list() == [row["said"] for row in selective.rows]
    assert selective.pandas()["role"].tolist() == [row["role"] for row in selective.rows]
    shown = repr(selective)
    assert shown.startswith("Selective")
    assert "a *" in shown
    with pytest.raises(InputError, match="nothing called 'c'"):
        selective.row("c")
    path.write_text(json.dumps({key: value for key, value in data.items() if key != "rows"}))
    with pytest.raises(DamagedError, match="complete"):
        SideEffects.load(path)
    path.write_text(json.dumps({**data, "rows": [{"text": "a"}]}))
    with pytest.raises(DamagedError, match="complete"):
        SideEffects.load(path)


@pytest.fixture
def folder(tiny_gpt2: Any, tmp_path: Path) -> Path:
    tiny_gpt2.hf.save_pretrained(tmp_path / "model")
    tiny_gpt2.tokenizer.save_pretrained(tmp_path / "model")
    lines = {"en": ["The cat sat on the mat.", "Two and two make four."], "fr": ["Le chat est assis.", "La lune est"]}
    for label, some in lines.items():
        (tmp_path / f"{label}.txt").write_text("\n".join(some) + "\n")
    return tmp_path


def test_reports_on_a_change_an_edit_and_another_model_replay(folder: Path) -> None:
    model = load(folder / "model")
    text = corpus({label: folder / f"{label}.txt" for label in ("en", "fr")})
    change = intervention(model, UnitSet.of(model, ["mlp.1.3", "mlp.2.5"]), scale=5.0)
    edited = edit(model, change)
    edited.save(folder / "edited")
    keywords: dict[str, Any] = {"text": text, "target": "fr", **CHEAP}
    reports = {
        "change": side_effects(model, change, **keywords),
        "units": side_effects(model, change.target, add=1.0, **keywords),
        "edit": side_effects(model, edited=edited, **keywords),
        "model": side_effects(model, edited=folder / "edited", **keywords),
        "own": side_effects(model, change, target=text.subset(["fr"]), text=text.subset(["en"]), **CHEAP),
    }
    for (one, left), (other, right) in itertools.combinations(reports.items(), 2):
        if {one, other} <= {"change", "edit", "model", "own"}:
            assert left.row("fr")["clamped"] == pytest.approx(right.row("fr")["clamped"], rel=1e-5), (one, other)
    for name, report in reports.items():
        path = report.save(folder / f"{name}.json")
        again = replay(path)
        assert (again.agrees, again.differences) == (True, []), name
        assert again.compared > 60
    reports["change"].effects.save(folder / "part.json")
    with pytest.raises(InputError, match="taken from a result of side_effects"):
        replay(folder / "part.json")
    altered = json.loads((folder / "edit.json").read_text())
    altered["provenance"]["inputs"]["sets"]["change"]["edited"]["fingerprint"] = "0"
    (folder / "edit.json").write_text(json.dumps(altered))
    with pytest.raises(MismatchError, match="other weights now"):
        replay(folder / "edit.json")
    live = side_effects(model, edited=edit_outside(model), **keywords).save(folder / "live.json")
    with pytest.raises(InputError, match="a live model"):
        replay(live)


@pytest.mark.parametrize("scope", ["prompt", "generated"])
def test_a_change_of_some_positions_is_measured_on_the_second_half_of_documents(tiny_llama: Any, scope: str) -> None:
    lines = ["The cat sat on the mat.", "Two and two make four.", "Dreiunddreißig"]
    change = intervention(tiny_llama, UnitSet.at(tiny_llama, "mlp", range(0, 144, 3)), to=1.0, scope=scope)
    with pytest.warns(UserWarning, match=f"for {scope} positions: the first half"):
        found = side_effects(tiny_llama, change, text=corpus(en=lines), prompts=["The"], **CHEAP)
    spans = []
    for line in lines:
        middle = line.find(" ", len(line) // 2)
        spans.append(Document(line, {"rest": ((middle if middle >= 0 else len(line) // 2, len(line)),)}))
    expected = effect(
        tiny_llama, change, on=corpus(en=spans), select=Selection(inside="rest"),
        controls=3, permutations=999, resamples=100, quiet=True,
    )  # fmt: skip
    for key in ("plain", "clamped", "effect", "p", "n_tokens", "control_mean"):
        assert found.row("en")[key] == expected.rows[0][key]
    assert [item["item"] for item in found.affected] == [lines[item["number"]] for item in found.affected]
    given = side_effects(
        tiny_llama, change, text=corpus(en=spans), select=Selection(inside="rest"), prompts=[], **CHEAP
    )
    assert given.row("en")["clamped"] == expected.rows[0]["clamped"]


@pytest.mark.slow
def test_the_demo_model_needs_no_data_of_yours() -> None:
    model = pc.load("demo")
    units = UnitSet.of(model, ["mlp.5.1", "mlp.5.2"])
    found = side_effects(
        model, units, target="fr", controls=0, permutations=99, resamples=20, max_new_tokens=3, quiet=True
    )
    assert [row["text"] for row in found.rows if row["role"] == "target"] == ["fr"]
    assert {"facts", "culture", "arithmetic", "code", "dates", "manners", "binding", "sentences"} < {
        row["text"] for row in found.rows
    }
    assert {"en", "de", "ru", "zh", "ja"} < {row["text"] for row in found.rows}
    for row in found.rows:
        if row["metric"] == "choice accuracy":
            assert row["plain"] > 0.45, row  # the model knows the answers, so that there is something to lose
    assert len(found.samples) == 12
