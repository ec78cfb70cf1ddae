"""The finder on recordings made of counts: parameters, notes, degenerate and bad input."""

from __future__ import annotations

import typing
from typing import Any

import numpy as np
import pytest
from tests.find.counted import CountedRecording, recording_of

import patchclamp.find
from patchclamp.core.errors import InputError
from patchclamp.find import Finding
from patchclamp.find.language_selection import code_lambda


def planted(**options: Any) -> CountedRecording:
    """2 specific units for each of 3 labels, one related, one general, 60 faint, the rest dead; 400 units."""
    p = np.zeros((3, 400))
    for at in range(3):
        p[at, [at, 10 + at]] = 1
    p[:2, 20] = 1
    p[:, 30] = 1
    p[:, 100:160] = 0.1
    return recording_of(p, labels=["en", "fr", "de"], **options)


def language(*args: Any, **kwargs: Any) -> Finding:
    return patchclamp.find.language(*args, **{"shuffles": 0, **kwargs})


def test_planted_counts_are_sorted_exactly() -> None:
    found = language(planted(), rate=7 / 400)
    assert found.class_counts() == {"specific": 6, "related": 1, "general": 1, "unassigned": 60, "dead": 332}
    assert found.sets["fr"].names() == ["mlp.0.1", "mlp.0.11", "mlp.0.20"]
    assert found.details["served"] == {"selected": [0, 6, 1, 0], "all": [392, 6, 1, 1]}
    assert found.details["by_label"]["de"] == {"specific": 2, "related": 0, "general": 1}
    assert found.details["tau"] == pytest.approx(0.1)
    assert found.details["tokens"] == {"en": 800, "fr": 800, "de": 800}


@pytest.mark.parametrize("lam", [None, 0.0, 0.05, 0.2, 1.0, 10.0])
def test_labels_equal_the_plant_for_any_lambda(lam: float | None) -> None:
    found = language(planted(), rate=7 / 400, lam=lam)
    assert found.class_counts()["specific"] == 6
    assert found.class_counts()["related"] == 1


def test_a_rate_too_large_for_the_plant_still_keeps_general_units_apart() -> None:
    found = language(planted(), rate=0.1)
    assert found.class_counts() == {"specific": 6, "related": 1, "general": 1, "unassigned": 60, "dead": 332}


def test_lape_names_the_same_units_here() -> None:
    found = language(planted(), method="lape", rate=7 / 400)
    assert found.sets["en"].names() == ["mlp.0.0", "mlp.0.10", "mlp.0.20"]
    assert found.parameters.keys() & {"lambda"} == set()
    assert found.details["lambda_search"] is None


def test_both_forms_of_lambda_mean_the_same() -> None:
    code = language(planted(), lam=0.1, rate=0.05)
    paper = language(planted(), lam=code.parameters["lambda_paper"], lam_form="paper", rate=0.05)
    np.testing.assert_allclose(code.unit_score, paper.unit_score, atol=1e-12)
    assert paper.parameters["lambda"] == pytest.approx(0.1)
    assert code_lambda(code.parameters["lambda_paper"], 3) == pytest.approx(0.1)
    assert code.parameters["lambda_searched"] is False


def test_lambda_search_is_on_record() -> None:
    search = language(planted(), rate=7 / 400).details["lambda_search"]
    assert search["works"]
    assert search["first_failure"] is None
    assert search["failure_above"] is False


def test_a_label_without_units_has_an_empty_set() -> None:
    p = np.zeros((3, 400))
    p[0, :4] = 1
    found = language(recording_of(p), rate=0.01)
    assert [len(units) for units in found.sets.values()] == [4, 0, 0]


def test_all_dead_is_said() -> None:
    found = language(recording_of(np.zeros((2, 100))))
    assert found.class_counts()["dead"] == 100
    assert any("all are dead" in note for note in found.notes)


def test_a_bar_that_nothing_passes_is_said() -> None:
    found = language(recording_of(np.ones((2, 100))))
    assert found.details["tau"] == 1
    assert any("lower bar" in note for note in found.notes)


def test_one_label_is_refused() -> None:
    with pytest.raises(InputError, match="one label, l0"):
        language(recording_of(np.zeros((1, 10))))


def test_labels_with_no_or_few_tokens_are_named() -> None:
    recording = planted()
    recording.get("firing", "fr").state()["n"][:] = 0
    recording.get("firing", "fr").state()["counts"][:] = 0
    with pytest.raises(InputError, match=r"label 'fr' has 0 tokens; at least 100"):
        language(recording)
    few = recording_of(np.zeros((2, 100)), tokens=80)
    with pytest.raises(InputError, match=r"label 'l0' has 80 tokens"):
        language(few)
    assert language(few, min_tokens=80).details["tokens"]["l0"] == 80


def test_impossible_counts_are_refused() -> None:
    recording = planted()
    recording.get("firing", "de").state()["counts"][0, 5] = 10_000
    with pytest.raises(InputError, match="unit 5: fired at 10000 of 800"):
        language(recording)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"method": "entropy"}, "ternary and lape"),
        ({"site": "attn"}, "not recorded"),
        ({"lam_form": "book"}, "code and paper"),
        ({"method": "lape", "lam": 0.1}, "no lambda"),
        ({"rate": 0.0001}, "selects none"),
        ({"min_tokens": 0}, "min_tokens"),
    ],
)
def test_wrong_arguments_are_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        language(planted(), **asked)


def test_any_site_can_be_searched() -> None:
    found = language(planted(site="gate"), rate=7 / 400, site="gate")
    assert found.sets["fr"].names() == ["gate.0.1", "gate.0.11", "gate.0.20"]


def test_a_gated_mlp_says_what_was_counted() -> None:
    assert any("gate" in note for note in language(planted(forms=("gated",), signal="value")).notes)
    for options in ({"forms": ("gated",)}, {"signal": "value"}):
        assert not any("gate" in note for note in language(planted(**options)).notes)


def test_layers_that_were_not_recorded_take_no_part() -> None:
    p = np.zeros((3, 400))
    for at in range(3):
        p[at, [at, 10 + at]] = 1
    p[:2, 20] = 1
    p[:, 30] = 1
    p[:, 100:160] = 0.1
    wide = np.concatenate([p, np.zeros((3, 500))], axis=1)
    recorded = np.arange(900) < 400
    options = {"labels": ["en", "fr", "de"], "widths": (400, 500)}
    found = language(recording_of(wide, **options, recorded=recorded), rate=7 / 400, shuffles=2)
    plain = language(recording_of(p, labels=["en", "fr", "de"]), rate=7 / 400, shuffles=2)
    assert found.class_counts() == {**plain.class_counts(), "unrecorded": 500}
    assert {label: units.names() for label, units in found.sets.items()} == {
        label: units.names() for label, units in plain.sets.items()
    }
    np.testing.assert_array_equal(found.p_values[:, :400], plain.p_values)
    assert found.details["stages"] is None
    assert any("not recorded" in note for note in found.notes)
    assert "svg" in found._repr_html_()


def test_folds_do_not_change_the_result() -> None:
    eight, one = language(planted(), shuffles=3), language(planted(folds=1))
    np.testing.assert_array_equal(eight.chosen, one.chosen)
    np.testing.assert_array_equal(eight.scores, one.scores)


def test_unequal_tokens_are_divided_out() -> None:
    rng = np.random.default_rng(0)
    row = np.rint(rng.random(50) * 100)
    cells = {"a": (row[None] * 2, [200]), "b": (row[None] * 6, [600])}
    found = language(CountedRecording(cells, (50,)), rate=0.1)
    assert found.class_counts()["specific"] == found.class_counts()["related"] == 0


def test_the_room_is_callable_and_its_annotations_resolve() -> None:
    # the command line builds its options from these
    hints = typing.get_type_hints(patchclamp.find.finders["language"])
    assert hints["lam"] == float | None
    assert callable(patchclamp.find.language)
    assert callable(patchclamp.find.compare)
    with pytest.raises(AttributeError):
        patchclamp.find.nothing  # noqa: B018
