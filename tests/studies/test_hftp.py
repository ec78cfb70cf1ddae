"""The frequency-tagging study: runs and resumes on the demo model and on a user's sentences; its verdict follows the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.find import tagging

from patchclamp.core.errors import InputError
from patchclamp.data.corpora import corpus
from patchclamp.find import Finding
from patchclamp.find.syntax import chosen_by
from patchclamp.measure import Effects
from patchclamp.studies.hftp import loss_verdict, unions, verdict
from patchclamp.studies.study import study

SMALL: dict[str, Any] = {"n_streams": 4, "groups": 2, "controls": 2, "pairs": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("hftp") / "run"
    return out, study("hftp", out=out, quiet=True, languages=("en", "zh"), sentences=8, **SMALL)


@pytest.mark.slow
def test_it_writes_a_report_a_page_and_its_parts(run: tuple[Path, Any]) -> None:
    out, _ = run
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["study"] == "hftp"
    assert len(report["verdict"]) == 9
    assert len(report["tables"]) == 7
    finding = Finding.load(out / "tagged.sets.json")
    assert finding.labels[:3] == ("en:sentence", "en:phrase", "en:shared")
    effects = Effects.load(out / "clamped.effects.json")
    assert {row["metric"] for row in effects.rows} == {"pair accuracy"}
    assert effects.sets == effects.texts == ("en", "zh")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 3
    assert "untrained" in page


@pytest.mark.slow
def test_a_resumed_run_reports_the_same(run: tuple[Path, Any]) -> None:
    out, first = run
    again = study("hftp", out=out, quiet=True, resume=True, languages=("en", "zh"), sentences=8, **SMALL)
    assert again.report.to_dict() == first.report.to_dict()


@pytest.mark.slow
def test_the_sets_of_the_study_are_those_of_the_papers_rule(run: tuple[Path, Any]) -> None:
    finding = Finding.load(run[0] / "tagged.sets.json")
    for label, units in chosen_by(finding, "reference").items():
        assert units.names() == finding.sets[label].names()
    total = unions(finding, "reference")["en"]
    assert len(total) == sum(len(finding.sets[f"en:{kind}"]) for kind in ("sentence", "phrase", "shared"))
    assert set(chosen_by(finding, "fdr")) == set(finding.labels)
    with pytest.raises(InputError, match="method='best'"):
        chosen_by(finding, "best")


@pytest.mark.slow
def test_a_users_sentences_are_split_and_clamping_tagged_units_breaks_their_order(tmp_path: Path) -> None:
    model = tagging.trained_model()
    text = corpus(x=tagging.sentences(60))
    outcome = study(
        "hftp", model, out=tmp_path / "run", quiet=True, text=text, n_streams=10, groups=5, pairs=15, controls=3
    )
    by_claim = {line.partition(":")[0]: line for line in outcome.report.verdict}
    assert (
        ": holds"
        in by_claim["more units are tagged than in the same architecture untrained (absolute test over words)"]
    )
    counts = {table.title: table for table in outcome.report.tables}["The same by absolute tests"].rows[0]
    assert counts["absolute"] > 100
    assert counts["untrained"] <= 5
    assert counts["absolute_floor"] <= 5


def test_the_verdict_follows_the_numbers() -> None:
    row = {"reference": 100, "reference_floor": 90, "absolute": 50, "absolute_floor": 0, "untrained": 3, "by_orders": 900,
           "untrained_by_orders": 800}  # fmt: skip
    overlap = [{"languages": "a, b", "dice": 0.3, "by_chance": 0.1}]
    good = verdict([row], overlap, effects(own=-0.4, other=-0.05, p=0.001))
    assert [": holds" in line for line in good] == [True, False, True, True, True, True, True, True]
    bad = verdict(
        [{**row, "absolute": 5, "absolute_floor": 4, "reference": 80}],
        [{**overlap[0], "dice": 0.05}],
        effects(own=0.0, other=-0.1, p=0.5),
    )
    assert not any(": holds" in line for line in bad)
    assert all("does NOT hold" in line for line in bad)


def test_the_loss_must_rise_beyond_random_sets() -> None:
    assert ": holds" in loss_verdict(effects(own=0.4, other=0.0, p=0.001))[0]
    for sized in (effects(own=-0.4, other=0.0, p=0.001), effects(own=0.4, other=0.0, p=0.2)):
        assert "does NOT hold" in loss_verdict(sized)[0]


def effects(*, own: float, other: float, p: float) -> Effects:
    """Effects of two sets on two tasks."""
    rows = []
    for name in "ab":
        for text in "ab":
            size = own if name == text else other
            rows.append(
                {"set": name, "text": text, "metric": "pair accuracy", "plain": 0.9, "clamped": 0.9 + size, "effect": size,
                 "low": size - 0.1, "high": size + 0.1, "control_mean": -0.02, "control_sd": 0.01, "p": p, "p_holm": p,
                 "p_controls": 0.1, "n_documents": 40, "n_tokens": 300, "n_units": 9}
            )  # fmt: skip
    return Effects(rows, {}, [], {})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"languages": ("xx",)}, "xx"),
        ({"sentences": 3}, "at least 8"),
        ({"sentences": 2500}, "different train sentences"),
    ],
)
def test_unfit_options_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        study("hftp", out=tmp_path / "run", quiet=True, **{"languages": ("zh",), **options})
