"""The neuron-group study: runs and resumes on the demo model and on a user's text; its verdict follows the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchclamp.core.errors import InputError
from patchclamp.data import corpus, demo_text
from patchclamp.models.features import load_dictionary
from patchclamp.read.snmf import Convergence, Factors
from patchclamp.studies import snmf_view as view
from patchclamp.studies.study import study
from patchclamp.studies.taught_concepts import TAUGHT, taught_concepts

SMALL: dict[str, Any] = {
    "texts": 4, "k": 8, "tokens": 300, "samples": 2, "new_tokens": 4, "targets": (0.3,), "sae_steps": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("snmf") / "run"
    return out, study("snmf", out=out, quiet=True, concepts=("de", "code"), **SMALL)


@pytest.mark.slow
def test_it_writes_a_report_a_page_and_its_parts(run: tuple[Path, Any]) -> None:
    out, _ = run
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["study"] == "snmf"
    assert len(report["verdict"]) == 8
    assert [row["method"] for row in report["tables"][0]["rows"]] == list(view.SAID.values())
    assert len(report["tables"][-1]["rows"]) == 2 * 6
    factors = Factors.load(out / "snmf.json")
    assert factors.k == 8
    assert load_dictionary(out / "snmf.features").n_features == 8
    assert (out / "report.html").read_text(encoding="utf-8").count("<svg") >= 2


@pytest.mark.slow
def test_a_resumed_run_reports_the_same(run: tuple[Path, Any]) -> None:
    out, first = run
    again = study("snmf", out=out, quiet=True, resume=True, concepts=("de", "code"), **SMALL)
    assert again.report.to_dict() == first.report.to_dict()


@pytest.mark.slow
def test_labels_of_a_users_text_are_the_concepts(tmp_path: Path) -> None:
    text = demo_text(labels=("en", "zh"), split="measure").limited(max_documents=8)
    done = study("snmf", out=tmp_path / "run", quiet=True, text=text, levels=(), **SMALL)
    assert [row["concept"] for row in done.report.tables[1].rows] == ["en", "zh"]
    with pytest.raises(InputError, match="at least 4"):
        study("snmf", out=tmp_path / "few", quiet=True, text=corpus(a=["one"], b=["two"]), **SMALL)
    with pytest.raises(InputError, match="only label"):
        study("snmf", out=tmp_path / "one", quiet=True, text=corpus(a=["one", "two", "three", "four"]), **SMALL)


def test_every_taught_concept_has_texts_of_both_kinds_that_no_half_shares() -> None:
    seen, unseen = taught_concepts(texts=6)
    assert tuple(one.name for one in seen) == TAUGHT
    for one, other in zip(seen, unseen, strict=True):
        assert len(one.positives) == len(other.positives) == len(one.neutrals) == 6
        assert not {*one.positives, *one.neutrals} & {*other.positives, *other.neutrals}
        assert not set(one.positives) & set(one.neutrals)
        assert one.description
    assert taught_concepts(texts=6) == (seen, unseen)
    with pytest.raises(InputError, match="klingon"):
        taught_concepts(["klingon"])


def made(scores: dict[str, list[float]], losses: tuple[float, ...] = (3.0, 2.0, 1.0)) -> view.SNMF:
    names = [f"c{number}" for number in range(len(next(iter(scores.values()))))]
    rows = [
        {"concept": name, "dictionary": method, "feature": 0, "auroc": 1.0, "detection": 0.5, "undefined": 0.0, "score": value,
         "best": value, "plain": 0.1, "target": 0.1, "written": "text"}
        for method, values in scores.items() for name, value in zip(names, values, strict=True)
    ]  # fmt: skip
    return view.SNMF(
        rows=rows, sizes=dict.fromkeys(scores, 4), words=[], record=Convergence(losses, 10.0, 5),
        parameters={"keep": 2, "sparsity": 0.1, "k": 4}, neurons=[], levels={"rows": [], "trees": []}, place=("mlp", 1),
        tokens=5, samples=2, model={"name": "demo"},
    )  # fmt: skip


def verdict(**scores: list[float]) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in view.report(made(scores)).verdict)


def test_the_verdict_follows_the_numbers() -> None:
    high, low = [1.0 + 0.01 * n for n in range(10)], [0.2 + 0.01 * n for n in range(10)]
    said = verdict(snmf=high, random=low, sae=[value + 0.5 for value in high])
    assert said["the factorisation steers better than random groups"].startswith("holds")
    assert said["the factorisation steers better than SAE, same size"].startswith("does NOT hold")
    assert said["order on steering"].startswith("SAE, same size 1.54, SNMF 1.04, random")
    equal = verdict(snmf=high, random=high)
    assert equal["the factorisation steers better than random groups"].startswith("does NOT hold")


def test_a_rising_objective_is_said() -> None:
    scores = {"snmf": [1.0, 1.0], "random": [0.5, 0.5]}
    for losses, answer in (((3.0, 2.0), "holds"), ((2.0, 3.0), "does NOT hold")):
        lines = view.report(made(scores, losses)).verdict
        assert lines[0].split(": ", 1)[1].startswith(answer)


def test_a_missing_log_ratio_is_a_gap_not_a_number() -> None:
    one = made({"snmf": [1.0, 1.0], "random": [0.5, 0.5]})
    rows = [dict(row, detection=None) for row in one.rows]
    table = view.report(view.SNMF(**{**vars(one), "rows": rows})).tables[0]
    assert np.isnan(table.rows[0]["detection"])
    assert table.rows[0]["positive"] == 0
