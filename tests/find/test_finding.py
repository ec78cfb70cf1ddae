"""Findings: choosing, files that read back whole, damage, and how they look."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.find.counted import CountedRecording

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import read_json
from patchclamp.find import Finding, finders
from patchclamp.find.finding_file import _letters, _packed, _unpacked
from patchclamp.find.language import language
from patchclamp.models.units import Layout, UnitSet, load_sets

WIDTHS = (50, 0, 150)


@pytest.fixture(scope="module")
def finding() -> Finding:
    """Three labels on layers of 50, 0 and 150 units: 4 specific units each, 3 related ones, 4 general ones, some dead."""
    rng = np.random.default_rng(0)
    tokens = 400
    p = np.tile(rng.random(200) * 0.1, (3, 1))
    p[:, 190:] = 0
    for at in range(3):
        p[:, at * 4 : at * 4 + 4] = 0
        p[at, at * 4 : at * 4 + 4] = 0.9
    p[:, 60:63] = [[0.7], [0.8], [0]]
    p[:, 70:74] = 0.95
    counts = rng.binomial(tokens, np.broadcast_to(p[:, None], (3, 4, 200)))
    cells = {label: (counts[at], np.full(4, tokens)) for at, label in enumerate(("en", "fr", "<b>ja</b>"))}
    return language(CountedRecording(cells, WIDTHS), rate=0.075, shuffles=5)


def test_sets_are_the_specific_and_related_units(finding: Finding) -> None:
    assert finding.sets["en"].names() == [
        "mlp.0.0",
        "mlp.0.1",
        "mlp.0.2",
        "mlp.0.3",
        "mlp.2.10",
        "mlp.2.11",
        "mlp.2.12",
    ]
    assert finding.sets["<b>ja</b>"].names() == ["mlp.0.8", "mlp.0.9", "mlp.0.10", "mlp.0.11"]
    assert finding.class_counts() == {
        "specific": 12,
        "related": 3,
        "general": 4,
        "unassigned": 171,
        "dead": 10,
    }
    assert finding.class_of("mlp.2.20") == "general"
    assert finding.sets["en"].score_list() == finding.scores[0, finding.chosen[0]].tolist()


def test_per_layer_adds_up(finding: Finding) -> None:
    layers = finding.per_layer()
    assert layers["specific"].tolist() == [12, 0, 0]
    assert layers["related"].tolist() == [0, 0, 3]
    assert sum(layers.values()).tolist() == list(WIDTHS)


def test_select_by_top_share_and_class(finding: Finding) -> None:
    top = finding.select(top=4)
    assert {label: units.names() for label, units in top.items()} == {
        label: units.names() for label, units in finding.select(classes=["specific"]).items()
    }
    assert {len(units) for units in finding.select(share=0.05).values()} == {10}
    assert {len(units) for units in finding.select(top=0).values()} == {0}
    general = finding.select(classes=["general"])
    assert general["en"] == general["fr"]
    assert len(general["en"]) == 4
    both = finding.select(top=2, classes=["related", "general"])
    assert all(len(units) == 2 for units in both.values())


def test_select_breaks_ties_by_position(finding: Finding) -> None:
    en = finding.select(top=200)["en"]
    assert len(en) == 200  # dead units too: they are the last ones
    order = sorted(range(200), key=lambda at: (-finding.scores[0, at], at))
    silent = int((finding.scores[0] == 0).sum())
    short = finding.select(top=200 - silent + 1)["en"]  # one unit of score 0: the first one
    assert set(short.positions["mlp"].tolist()) == set(order[: 200 - silent + 1])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "give one of"),
        ({"top": 3, "share": 0.1}, "give one of"),
        ({"top": -1}, "at least 0"),
        ({"share": 1.5}, "between 0 and 1"),
        ({"fdr": 0.0}, "between 0 and 1"),
        ({"classes": ["special"]}, "specific, related"),
        ({"classes": "specific"}, "list"),
        ({"classes": []}, "list"),
    ],
)
def test_select_refuses_nonsense(finding: Finding, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        finding.select(**asked)


def test_saved_file_keeps_the_contract(finding: Finding, tmp_path: Path) -> None:
    path = finding.save(tmp_path / "neurons.json")
    data = json.loads(path.read_text())
    assert data["format"] == "patchclamp.sets/1"
    assert data["model"] == finding.model
    assert data["method"] == "ternary"
    assert data["parameters"]["rate"] == 0.075
    assert set(data["sets"]) == {"en", "fr", "<b>ja</b>"}
    assert data["sets"]["fr"]["units"] == finding.sets["fr"].names()
    assert len(data["sets"]["fr"]["scores"]) == len(finding.sets["fr"])
    assert data["classes"] == finding.class_counts()
    assert data["null"]["shuffles"] == 5
    assert data["provenance"]["call"] == "find.language"
    assert data["provenance"]["inputs"]["recording"]["fingerprint"] == "f0"
    # every unit's class, decoded by hand
    legend, layers = data["unit_classes"]["legend"], data["unit_classes"]["layers"]
    assert layers[0].startswith("12s")
    assert layers[1] == ""
    assert set(legend.values()) == {"specific", "related", "general", "unassigned", "dead"}
    assert load_sets(path) == finding.sets


def test_a_loaded_finding_is_the_same_and_selects_the_same(finding: Finding, tmp_path: Path) -> None:
    again = Finding.load(finding.save(tmp_path / "neurons.json"))
    for name in ("scores", "unit_score", "member", "p_values", "classes", "chosen"):
        np.testing.assert_array_equal(getattr(again, name), getattr(finding, name))
        assert getattr(again, name).dtype == getattr(finding, name).dtype
    assert again.sets == finding.sets
    assert again.select(top=7) == finding.select(top=7)
    assert again.select(fdr=0.2) == finding.select(fdr=0.2)
    assert (again.labels, again.layout, again.method, again.notes) == (
        finding.labels,
        finding.layout,
        finding.method,
        finding.notes,
    )
    assert again.summary() == json.loads(json.dumps(finding.summary()))
    assert repr(again) == repr(finding)


def test_classes_narrow_and_widen_the_file(finding: Finding, tmp_path: Path) -> None:
    narrow = Finding.load(finding.save(tmp_path / "narrow.json", classes=["specific"]))
    assert narrow.sets == finding.select(classes=["specific"])
    assert narrow.parameters["classes"] == ["specific"]
    assert narrow.class_counts() == finding.class_counts()
    wide = Finding.load(finding.save(tmp_path / "wide.json", classes=["specific", "related", "general"]))
    assert len(wide.sets["en"]) == 11
    with pytest.raises(InputError, match="classes"):
        finding.save(tmp_path / "none.json", classes=["special"])
    assert not (tmp_path / "none.json").exists()


def test_without_the_scores_file_only_other_choices_are_refused(finding: Finding, tmp_path: Path) -> None:
    path = finding.save(tmp_path / "neurons.json", scores=False)
    assert [file.name for file in tmp_path.iterdir()] == ["neurons.json"]
    again = Finding.load(path)
    assert again.scores is None
    assert again.sets["en"].score_list() == finding.sets["en"].score_list()
    assert again.select(classes=["specific"]) == finding.select(classes=["specific"])
    with pytest.raises(InputError, match=r"scores\.safetensors"):
        again.select(top=3)
    with pytest.raises(InputError, match=r"scores\.safetensors"):
        again.select(classes=["general"])
    with pytest.raises(InputError, match="scores file"):
        again.select(fdr=0.1)
    assert Finding.load(again.save(tmp_path / "copy.json")).sets == finding.sets


def test_a_foreign_or_altered_scores_file_is_named(finding: Finding, tmp_path: Path) -> None:
    path = finding.save(tmp_path / "neurons.json")
    beside = tmp_path / "neurons.scores.safetensors"
    beside.write_bytes(beside.read_bytes()[:-5])
    with pytest.raises(DamagedError, match=r"neurons\.scores\.safetensors"):
        Finding.load(path)
    beside.unlink()
    assert Finding.load(path).scores is None


@pytest.mark.parametrize("damage", ["layers", "letters", "labels", "unit", "truncated", "layout", "format"])
def test_damaged_files_are_refused(finding: Finding, tmp_path: Path, damage: str) -> None:
    path = finding.save(tmp_path / "neurons.json", scores=False)
    data = read_json(path)
    if damage == "layers":
        data["unit_classes"]["layers"].pop()
    elif damage == "letters":
        data["unit_classes"]["layers"][0] = "12s37u"
    elif damage == "labels":
        del data["sets"]["fr"]
    elif damage == "unit":
        data["sets"]["fr"]["units"][0] = "mlp.9.9"
    elif damage == "layout":
        data["layout"]["widths"][0] = 51
    elif damage == "format":
        data["format"] = "other"
    text = json.dumps(data)
    path.write_text(text[:-9] if damage == "truncated" else text)
    with pytest.raises(DamagedError, match=r"neurons\.json"):
        Finding.load(path)


def test_a_plain_set_file_is_no_finding(finding: Finding, tmp_path: Path) -> None:
    path = finding.sets["en"].save(tmp_path / "en.json")
    with pytest.raises(InputError, match=r"UnitSet\.load"):
        Finding.load(path)
    assert UnitSet.load(path) == finding.sets["en"]


@given(st.lists(st.lists(st.integers(0, 4), max_size=30), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_unit_classes_survive_packing(layers: list[list[int]]) -> None:
    names = ("specific", "related", "general", "unassigned", "dead")
    layout = Layout("mlp", tuple(len(layer) for layer in layers))
    flat = np.array([value for layer in layers for value in layer], dtype=np.int8)
    packed = json.loads(json.dumps(_packed(flat, names, [layout])))
    again, legend = _unpacked(packed, [layout])
    np.testing.assert_array_equal(again, flat)
    assert legend == names


def test_packing_is_readable_and_short() -> None:
    flat = np.array([4] * 1000 + [0, 0, 1], dtype=np.int8)
    packed = _packed(flat, ("specific", "related", "general", "unassigned", "dead"), [Layout("mlp", (1003,))])
    assert packed["layers"] == ["1000d2sr"]
    assert _letters(("sad", "sat", "ss", "a")) == ["s", "a", "b", "c"]


def test_it_shows_itself(finding: Finding) -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(finding)
    text = console.export_text()
    assert "<b>ja</b>" in text
    assert "on shuffled labels" in text
    assert repr(finding).startswith("Finding(ternary: 15 of 200 mlp units of counted")
    html = finding._repr_html_()
    assert "<svg" in html
    assert "<b>ja</b>" not in html
    assert "&lt;b&gt;ja&lt;/b&gt;" in html
    assert "http" not in html.replace("http://www.w3.org/", "")  # only the SVG namespaces
    assert finding.plot().to_dict()["vconcat"]


def test_finders_are_listed_with_summary_and_parameters() -> None:
    entry = {entry.name: entry for entry in finders}["language"]
    assert entry.summary
    assert {"rate", "bar", "lam", "method", "site", "seed"} <= set(entry.parameters)
