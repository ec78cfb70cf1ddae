"""Effects of interventions of any kind: the same numbers as sets clamped alike, controls by kind, mixed tables, replay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.measure.planted import NEURONS, D, documents, loss, planted

import patchclamp as pc
from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data import Selection, Task, corpus
from patchclamp.data.documents import Document
from patchclamp.intervene import Direction, Intervention, Interventions, clamp, edit, intervention
from patchclamp.intervene.kinds import Change
from patchclamp.measure import Effects, effect, perplexity
from patchclamp.measure.effect_subjects import given_again
from patchclamp.measure.permutation import sign_flip
from patchclamp.models.units import UnitSet
from patchclamp.replay import replay

CHEAP: dict[str, Any] = {"controls": 3, "permutations": 999, "resamples": 100, "quiet": True}
TEXT = {
    "en": ["The cat sat on the mat.", "Two and two make four.", "The moon"],
    "fr": ["Le chat est assis.", "Il regarde la lune."],
}


class Louder(Change):
    """A kind without a random control: every logit is multiplied by a factor."""

    def __init__(self, identity: Mapping[str, Any], n_layers: int, factor: float) -> None:
        self.identity, self.last, self.factor = identity, n_layers - 1, factor

    @property
    def model(self) -> Mapping[str, Any]:
        return self.identity

    def check_model(self, model: Any) -> None:
        if model.fingerprint != self.identity["fingerprint"]:
            raise MismatchError("of another model")

    def compiled(self, model: Any) -> list[tuple[Any, Callable[[Any], torch.Tensor]]]:
        return [(("logits", self.last), lambda seen: seen.values * self.factor)]

    def lowest_block(self) -> int:
        return self.last

    @property
    def n_units(self) -> int:
        return 1

    def describe(self) -> str:
        return f"logits times {self.factor}"

    def to_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], model: Any) -> Louder:
        raise AssertionError("never read in this test")


@pytest.fixture(scope="module")
def wired() -> Any:
    return planted()


@pytest.fixture(scope="module")
def wired_text() -> Any:
    return corpus(a=documents("a", 20), b=documents("b", 15))


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def written(language: str, value: float) -> float:
    """Perplexity of a planted language's text with its neuron held at a value, by the closed form."""
    texts = documents(language, 20 if language == "a" else 15)
    tokens = sum(len(text.split()) - 1 for text in texts)
    return math.exp(sum(loss(text, clamped={language: value}) for text in texts) / tokens)


def test_an_intervention_on_planted_neurons_does_what_the_closed_form_says(wired: Any, wired_text: Any) -> None:
    held = {name: intervention(wired, UnitSet.of(wired, [unit]), to=2.5) for name, unit in NEURONS.items()}
    found = effect(wired, {**held, "both": held["a"] + held["b"]}, on=wired_text, **CHEAP)
    for name in "ab":
        row = found.row(name, name)
        assert row["clamped"] == pytest.approx(written(name, 2.5), rel=1e-5)
        assert (row["n_units"], row["control_mean"]) == (1, 0)
        assert row["p_controls"] == 1 / 4
    assert found.row("both", "a")["n_units"] == 2
    assert "interventions" in repr(found)


def test_removing_a_planted_direction_equals_silencing_the_neuron_that_writes_it(wired: Any, wired_text: Any) -> None:
    axis = np.eye(D)[10]  # nothing but neuron mlp.1.5 writes this dimension
    gone = Intervention(Direction.of(wired, "resid", 1, axis), "project")
    found = effect(wired, {"direction": gone, "neuron": UnitSet.of(wired, [NEURONS["a"]])}, on=wired_text, **CHEAP)
    for text in "ab":
        direction, neuron = found.row("direction", text), found.row("neuron", text)
        for key in ("plain", "clamped", "effect", "low", "high"):
            assert direction[key] == pytest.approx(neuron[key], rel=1e-5, abs=1e-6)
    assert found.row("direction", "a")["effect"] > 0.5


def test_a_set_and_the_intervention_that_clamps_it_have_the_same_row(model: Any) -> None:
    units = UnitSet.of(model, ["mlp.1.3", "mlp.2.4", "mlp.2.7"])
    text = corpus(TEXT)
    for how in ({"to": 0.0}, {"scale": -1.0}, {"add": 2.0}):
        by_set = effect(model, units, on=text, **how, **CHEAP)
        by_change = effect(model, intervention(model, units, **how), on=text, **CHEAP)
        assert by_change.rows == by_set.rows
        assert by_change.documents == by_set.documents


def test_rows_of_a_list_equal_plain_computation_with_all_of_its_changes(model: Any) -> None:
    text = corpus(TEXT)
    low, high = UnitSet.of(model, ["mlp.0.3", "head.1.2"]), UnitSet.of(model, ["mlp.2.4"])
    change = intervention(model, high, scale=3.0) + intervention(model, low, to=1.0)
    found = effect(model, change, on=text, **CHEAP)
    plain = perplexity(model, text)
    others = [change.matched_random(seed) for seed in range(3)]
    measured = []
    for one in (change, *others):
        with one.applied(model):
            measured.append(perplexity(model, text))
    for label in text.labels:
        row = found.row("units", label)
        assert row["plain"] == pytest.approx(plain[label].value, rel=1e-6)
        assert row["clamped"] == pytest.approx(measured[0][label].value, rel=1e-5)
        controls = [one[label].value - plain[label].value for one in measured[1:]]
        assert row["control_mean"] == pytest.approx(np.mean(controls), rel=1e-3, abs=1e-3)
        gaps = measured[0][label].totals - np.mean([one[label].totals for one in measured[1:]], 0)
        assert row["p"] == pytest.approx(sign_flip(np.round(gaps, 3), permutations=999))


def test_a_direction_has_random_directions_as_controls(model: Any) -> None:
    rng = np.random.default_rng(0)
    steered = Intervention(Direction.of(model, "resid", [1, 2], rng.standard_normal(32)), "add", 3.0)
    found = effect(model, {"steered": steered}, on=corpus(TEXT), **CHEAP)
    row = found.row("steered", "en")
    assert row["control_sd"] > 0
    kept = found.documents["en"]["control_effects"]["steered"]
    with steered.matched_random(1).applied(model):
        second = perplexity(model, corpus(TEXT))["en"].value
    assert kept[1] == pytest.approx(second - row["plain"], rel=1e-4)
    assert row["n_units"] == 2


def test_a_kind_without_a_control_is_tested_by_itself_and_says_so(model: Any) -> None:
    text = corpus(TEXT)
    louder = Louder(model.identity, model.anatomy.n_layers, 2.0)
    units = UnitSet.of(model, ["mlp.1.3"])
    with pytest.warns(UserWarning, match=r"'louder' has no random controls .*logits times 2"):
        found = effect(model, {"louder": louder, "units": units}, on=text, **CHEAP)
    for label, texts in TEXT.items():
        row = found.row("louder", label)
        gaps = []
        for line in texts:
            ids = torch.tensor([model.tokenizer(line)["input_ids"]])
            logits = model.logits(ids)[0, :-1].double()
            plain, changed = (
                torch.log_softmax(one, -1)[range(len(one)), ids[0, 1:]].sum() for one in (logits, 2 * logits)
            )
            gaps.append(float(plain - changed))
        assert found.documents[label]["clamped"]["louder"] == pytest.approx(
            (np.array(found.documents[label]["plain"]) + gaps).tolist(), rel=1e-4
        )
        assert (row["control_mean"], row["control_sd"], row["p_controls"]) == (None, None, None)
        assert row["p"] == pytest.approx(sign_flip(gaps, permutations=999))
        assert found.row("units", label)["control_mean"] is not None


def test_reuse_and_batch_size_do_not_change_the_numbers(model: Any) -> None:
    text = corpus(TEXT)
    changes = {
        "set": UnitSet.of(model, ["mlp.2.4"]),
        "list": intervention(model, UnitSet.of(model, ["mlp.2.4"]), to=1.0)
        + intervention(model, UnitSet.of(model, ["mlp.1.9"]), to=-1.0),
    }
    whole = effect(model, changes, on=text, **CHEAP)
    assert effect(model, changes, on=text, reuse=False, **CHEAP).rows == whole.rows
    for one, other in zip(effect(model, changes, on=text, batch_tokens=1, **CHEAP).rows, whole.rows, strict=True):
        assert one["effect"] == pytest.approx(other["effect"], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("how", ["loss", "generation"])
def test_interventions_are_measured_on_tasks(tiny_llama: Any, how: str) -> None:
    questions = Task.of([{"prompt": "The cat sat", "answer": " on the mat."}, {"prompt": "Le chat", "answer": " est"}])
    change = intervention(tiny_llama, UnitSet.at(tiny_llama, "mlp", range(0, 144, 2)), to=1.0, scope="generated")
    found = effect(tiny_llama, change, on=questions, how=how, **CHEAP)
    with change.applied(tiny_llama):
        expected = pc.measure.score(tiny_llama, questions, how, quiet=True)
    assert found.rows[0]["clamped"] == pytest.approx(expected.value, rel=1e-4)


def test_a_scope_of_an_intervention_needs_a_selection_on_text(tiny_llama: Any) -> None:
    texts = ["The cat sat on the mat.", "Two and two make four."]
    units = UnitSet.at(tiny_llama, "mlp", range(0, 144, 3))
    change = intervention(tiny_llama, units, to=1.0, scope="generated")
    with pytest.raises(InputError, match="inside='response'"):
        effect(tiny_llama, change, on=corpus(en=texts), **CHEAP)
    spans = [Document(text, {"response": ((8, len(text)),)}) for text in texts]
    select = Selection(inside="response")
    by_change = effect(tiny_llama, change, on=corpus(en=spans), select=select, **CHEAP)
    by_set = effect(tiny_llama, units, on=corpus(en=spans), to=1.0, scope="generated", select=select, **CHEAP)
    assert by_change.rows == by_set.rows


def test_an_empty_list_does_nothing(tiny_llama: Any) -> None:
    with pytest.warns(UserWarning, match="'units' is empty"):
        row = effect(tiny_llama, Interventions(), on=corpus(TEXT), **CHEAP).rows[0]
    assert (row["effect"], row["p"], row["n_units"], row["control_mean"]) == (0, 1, 0, None)


def test_what_cannot_be_measured_is_refused(tiny_llama: Any, tiny_gpt2: Any) -> None:
    text, units = corpus(TEXT), UnitSet.of(tiny_llama, ["mlp.1.3"])
    change = intervention(tiny_llama, units, to=0.0)
    for keywords, message in (
        ({"to": 1.0}, "to= says"),
        ({"scale": 2.0}, "scale= says"),
        ({"scope": "prompt"}, "scope= says"),
    ):
        with pytest.raises(InputError, match=message):
            effect(tiny_llama, change, on=text, **keywords, **CHEAP)
    with pytest.raises(MismatchError, match="belong to model"):
        effect(tiny_gpt2, change, on=text, **CHEAP)
    for other in (tiny_llama, edit(tiny_llama, units)):
        with pytest.raises(InputError, match=r"measure\.side_effects\(model, edited=\.\.\.\)"):
            effect(tiny_llama, {"x": other}, on=text, **CHEAP)
    mixed = effect(
        tiny_llama, {"set": units, "change": change}, on=text, scale=3.0, **CHEAP
    )  # scale= is of the set alone
    assert mixed.row("change", "en") == {**effect(tiny_llama, {"change": change}, on=text, **CHEAP).row("change", "en"),
                                         "p_holm": mixed.row("change", "en")["p_holm"]}  # fmt: skip


def test_a_shuffle_is_warned_of(tiny_llama: Any) -> None:
    change = intervention(tiny_llama, UnitSet.of(tiny_llama, ["mlp.1.3"]), shuffle=1)
    with pytest.warns(UserWarning, match="depend on batch_tokens"):
        effect(tiny_llama, change, on=corpus(TEXT), **CHEAP)


def test_a_list_on_more_than_half_a_layer_shares_units_with_its_controls(tiny_llama: Any) -> None:
    change = intervention(tiny_llama, UnitSet.at(tiny_llama, "mlp", range(40)), to=0.0)
    with pytest.warns(UserWarning, match="share units"):
        effect(tiny_llama, change, on=corpus(TEXT), **CHEAP)


def test_a_mixed_table_is_kept_with_its_interventions_and_replays(tiny_llama: Any, tmp_path: Path) -> None:
    tiny_llama.hf.save_pretrained(tmp_path / "model")
    tiny_llama.tokenizer.save_pretrained(tmp_path / "model")
    model = pc.load(tmp_path / "model")
    for label, lines in TEXT.items():
        (tmp_path / f"{label}.txt").write_text("\n".join(lines) + "\n")
    text = corpus({label: tmp_path / f"{label}.txt" for label in TEXT})
    units = UnitSet.of(model, ["mlp.1.3", "mlp.2.5"])
    direction = Direction.of(model, "resid", 1, np.arange(1.0, 33.0))
    change = intervention(model, units, scale=[2.0, -1.0]) + Intervention(direction, "project")
    found = effect(model, {"set": units, "list": change}, on=text, **CHEAP)
    path = found.save(tmp_path / "effects.json")
    stored = Effects.load(path).provenance["inputs"]["sets"]
    assert set(stored["set"]) == {"units"}
    assert [entry["operation"] for entry in stored["list"]["interventions"]] == ["scale", "project"]
    again = given_again(stored["list"], model)
    assert again.to_dict() == change.to_dict()
    report = replay(path)
    assert (report.agrees, report.worst) == (True, 0.0)


def test_a_mask_that_is_a_function_is_measured_but_cannot_be_kept(tiny_llama: Any) -> None:
    units = UnitSet.of(tiny_llama, ["mlp.1.3"])
    change = intervention(tiny_llama, units, to=4.0, mask=lambda step: torch.ones(step.batch, step.seq))
    text = corpus(TEXT)
    found = effect(tiny_llama, change, on=text, **CHEAP)
    assert found.rows[0]["effect"] == effect(tiny_llama, units, on=text, to=4.0, **CHEAP).rows[0]["effect"]
    kept = found.provenance["inputs"]["sets"]["units"]
    assert kept["interventions"] is None
    with pytest.raises(InputError, match="could not be kept as data"):
        given_again(kept, tiny_llama)


def test_the_model_is_unchanged_afterwards_and_measured_under_the_clamps_that_are_on(tiny_llama: Any) -> None:
    ids = torch.tensor([[1, 5, 9, 12]])
    before = tiny_llama.logits(ids)
    text = corpus(TEXT)
    change = intervention(tiny_llama, UnitSet.of(tiny_llama, ["mlp.2.4"]), to=0.0)
    with clamp(tiny_llama, ["mlp.0.1"], to=2.0):
        found = effect(tiny_llama, change, on=text, **CHEAP)
        plain = perplexity(tiny_llama, text)
    assert found.row("units", "en")["plain"] == pytest.approx(plain["en"].value, rel=1e-6)
    assert torch.equal(tiny_llama.logits(ids), before)


def test_a_change_with_a_row_for_each_prompt_is_refused(wired: Any) -> None:
    """It would meet the wrong texts: batches are sorted by length."""
    masked = intervention(wired, ["mlp.0.1"], to=0.0, mask=np.eye(3, dtype=bool))
    with pytest.raises(InputError, match="a row for each of 3 prompts"):
        effect(wired, {"masked": masked + masked}, on=corpus(TEXT), **CHEAP)
