"""The temporal-cognition study runs end to end, resumes, and concludes what its numbers say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import patchclamp as pc
from patchclamp.core.errors import InputError
from patchclamp.measure import Effects
from patchclamp.studies.study import studies, study
from patchclamp.studies.temporal_cognition import TemporalCognition, thinned
from patchclamp.studies.temporal_cognition_verdict import verdict

SMALL = {"years": "1700-2020:8", "fitted": 21, "judged": 3, "probed": 12, "controls": 2}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Any:
    text = pc.corpus(en=["In 1900 a war, in 1908 a peace."] * 3)
    out = tmp_path_factory.mktemp("study") / "run"
    return study("temporal-cognition", "demo", out=out, quiet=True, text=text, **SMALL)


@pytest.mark.slow
def test_the_study_writes_its_report_and_every_table(outcome: Any) -> None:
    report = json.loads((outcome.out / "report.json").read_text())
    titles = [table["title"] for table in report["tables"]]
    for title in ("Which law of distance", "Reference point", "Units that prefer years", "Log coding", "Probes", "Clamping",
                  "What the model answers", "Years in the text"):  # fmt: skip
        assert any(found.startswith(title) for found in titles), title
    assert len(report["verdict"]) >= 12
    assert report["beside"]["rows"][-1]["model"] == "demo"
    page = (outcome.out / "report.html").read_text()
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_a_finished_run_is_read_back_and_another_one_is_refused(outcome: Any) -> None:
    text = pc.corpus(en=["In 1900 a war, in 1908 a peace."] * 3)
    again = study("temporal-cognition", "demo", out=outcome.out, resume=True, quiet=True, text=text, **SMALL)
    assert again.report.to_dict() == outcome.report.to_dict()
    with pytest.raises(InputError, match="reference"):
        study(
            "temporal-cognition", "demo", out=outcome.out, resume=True, quiet=True, text=text, reference=1900.0, **SMALL
        )


def test_too_few_years_and_unknown_languages_are_refused_before_any_work(tiny_llama: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 40"):
        study("temporal-cognition", tiny_llama, out=tmp_path / "a", years="1990-2000", quiet=True)
    with pytest.raises(InputError, match="one of en"):
        study("temporal-cognition", tiny_llama, out=tmp_path / "b", language="it", quiet=True)


def test_thinning_keeps_the_ends() -> None:
    assert thinned(range(1700, 2021), 5) == [1700, 1780, 1860, 1940, 2020]
    assert thinned([1, 2, 3], 9) == [1, 2, 3]


def test_the_study_is_registered_with_its_paper() -> None:
    assert "2507.15851" in (studies["temporal-cognition"].__doc__ or "")


def made(*, good: bool) -> TemporalCognition:
    """Invented numbers of a model that does all that the paper claims, or nothing of it."""
    fit = {"layer": 2, "condition": "year", "law": "reference", "r2": 0.9, "p": 0.001 if good else 0.7}
    probes = [
        {"split": "years", "layer": 1, "target": "log", "r2": 0.8, "p": 0.05},
        {"split": "years", "layer": 3, "target": "reference", "r2": 0.9 if good else -0.2, "p": 0.05},
    ]
    side = {"best": "log" if good else "linear", "slope": 0.4 if good else -0.4}
    tuning = {
        "best": {"past": side, "future": side},
        "trough": {"smoothed": 2010.0 if good else 1910.0, "border": False},
    }
    finding = SimpleNamespace(
        null={
            "mirror": {"observed": 9, "mirrored": 1 if good else 12},
            "labels": {"year": {"mean": 0.1, "max": 0 if good else 9}},
        },
        details={"tuning": tuning, "share": 0.01},
    )
    row = {"set": "mlp", "control_mean": 0.1, "p_holm": 0.001 if good else 0.8}
    effects = Effects(
        [{**row, "text": "years", "effect": 0.9 if good else 0.1}, {**row, "text": "other", "effect": 0.2}]
    )
    points = [{"condition": "year", "found": good, "layer": 2, "grid": 2010.0}, {"condition": "number", "found": False}]
    return TemporalCognition(
        values=list(range(1900, 2100)), reference=2010.0, reference_from="given",
        geometry={"fits": [fit], "points": points, "years": 50}, judgements={"year": {"rating_mass": 0.9 if good else 0.0}},
        findings={"mlp_out": finding}, probes=probes, effects=effects, text=None, n_layers=4, model={"name": "made"},
    )  # type: ignore[arg-type]  # fmt: skip


def test_the_verdict_follows_the_numbers() -> None:
    claims, denials = verdict(made(good=True)), verdict(made(good=False))
    assert all(": holds" in line for line in claims)
    assert all("does NOT hold" in line for line in denials)
    assert len(claims) == 10


def test_a_set_that_hurts_less_than_random_units_is_said_not_to_hurt() -> None:
    good = made(good=True)
    rows = [{**row, "control_mean": 2.0} for row in good.effects.rows]
    lines = verdict(replace(good, effects=Effects(rows)))
    assert any("mlp units hurts" in line and "does NOT hold" in line for line in lines)


def test_a_model_without_any_defined_fit_gets_no_claim() -> None:
    empty = made(good=True)
    lines = verdict(replace(empty, geometry={"fits": [], "points": [], "years": 0}, probes=[]))
    assert sum("can't be told" in line for line in lines) == 2
    assert np.all([isinstance(line, str) for line in lines])
