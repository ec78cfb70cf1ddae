"""The study of image networks finds, on a network trained here, the shortcut that was planted in its pictures; and resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.studies import milan_vision_view as view
from patchclamp.studies.study import Outcome, study

SMALL: dict[str, Any] = {"pictures": 120, "epochs": 2, "widths": (6, 8, 12), "evaluation": 24, "probe": 60, "k": 5,
                         "terms": 1, "max_units": 3, "trials": 2}  # fmt: skip


@pytest.fixture
def done(tiny_gpt2: Any, tmp_path: Path) -> Outcome:
    return study("milan-vision", tiny_gpt2, out=tmp_path / "run", quiet=True, **SMALL)


def test_a_finished_run_is_whole_and_resumes_to_the_same(done: Outcome, tiny_gpt2: Any) -> None:
    report = json.loads((done.out / "report.json").read_text(encoding="utf-8"))
    assert report["study"] == "milan-vision"
    assert [row["paper"] for row in report["beside"]["rows"]][:2] == ["58.8 %", "80.8 %"]
    assert "<svg" in (done.out / "report.html").read_text(encoding="utf-8")
    titles = [table["title"] for table in report["tables"]]
    assert titles[0] == "Accuracy of the two networks"
    assert len(report["tables"][-1]["rows"]) == 2 * (6 + 8 + 12)
    again = study("milan-vision", tiny_gpt2, out=done.out, resume=True, quiet=True, **SMALL)
    assert again.report.to_dict() == done.report.to_dict()


def test_damaged_weights_are_named(done: Outcome, tiny_gpt2: Any) -> None:
    path = done.out / "shortcut.safetensors"
    (done.out / "clean.safetensors").replace(path)
    with pytest.raises(DamagedError, match="other weights"):
        study("milan-vision", tiny_gpt2, out=done.out, resume=True, quiet=True, **SMALL)
    path.unlink()
    with pytest.raises(DamagedError, match=r"shortcut\.safetensors is missing"):
        study("milan-vision", tiny_gpt2, out=done.out, resume=True, quiet=True, **SMALL)


@pytest.mark.parametrize("wrong", [{"widths": (4, 4)}, {"evaluation": 1}])
def test_wrong_options_are_refused(tiny_gpt2: Any, tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        study("milan-vision", tiny_gpt2, out=tmp_path / "run", quiet=True, **{**SMALL, **wrong})


def made(**changed: Any) -> view.MilanVision:
    """Numbers of a run in which everything holds."""
    scores = {"part_auroc": {"mean": 0.8, "control": 0.6, "gain": 0.2, "low": 0.1, "high": 0.3, "p": 0.001, "n": 9}}
    described = {"descriptions": [{"unit": "channel.0.0", "description": "x", "score": 1.0, "margin": 2.0, "explains": True}],
                 "dead": 0, "scores": scores}  # fmt: skip
    networks = {
        "shortcut": {"validation": 0.9, "without": 0.8, "adversarial": 0.4, "units": 10, "losses": [0.5]},
        "clean": {"validation": 0.9, "without": 0.9, "adversarial": 0.8, "units": 10, "losses": [0.5]},
    }
    curves = [{"criterion": "text", "fraction": 0.2, "units": 2, "accuracy": 0.5, "random": 0.7, "random_low": 0.6,
               "random_high": 0.8, "classes": {}}]  # fmt: skip
    found = {"described": 10, "share": 0.3, "layers": {0: 3}, "auroc": 0.7, "auroc_random": 0.6, "p": 0.01}
    point = {"units": 2, "validation": 0.85, "choosing": 0.6, "test": 0.6, "low": 0.6, "high": 0.6}
    edit = {
        "candidates": ["a", "b", "c"], "units": ["a", "b"], "chosen": {"keywords": 2, "all units": 2, "random": 2},
        "plain": {"validation": 0.9, "choosing": 0.4, "test": 0.4}, "p": 0.001,
        "curve": [{"order": "keywords", **point}], "rows": dict.fromkeys(("keywords", "all units", "random"), point),
        "gains": {"keywords": 0.2, "all units": 0.05, "random": -0.1}, "tolerated": {"units": 1, "gain": 0.1},
        "without": {"plain": 0.8, "edited": 0.79},
    }  # fmt: skip
    rows = [{"network": "shortcut", "units": 3, **found}, {"network": "clean", "units": 1, **found}]
    numbers: dict[str, Any] = {
        "trained": networks, "described": {"shortcut": described, "clean": described}, "layers": [{"layer": "relu1"}],
        "curves": curves, "audit": {"rows": rows}, "edit": edit, "keywords": ("text",),
        "tagger": {"accuracy": 0.6, "chance": 0.2}, "model": {"name": "demo"},
    }  # fmt: skip
    return view.MilanVision(**{**numbers, **changed})


def test_the_verdict_says_what_holds() -> None:
    said = view.report(made()).verdict
    judgements = [line for line in said if "matter less" not in line and "without the units of each kind" not in line]
    assert len(judgements) == 8
    assert all(": holds (" in line for line in judgements)
    assert any("50% of what training with words lost" in line for line in said)


def test_the_verdict_says_what_does_not() -> None:
    numbers = made()
    assert numbers.edit is not None
    edit = {**numbers.edit, "gains": {"keywords": 0.01, "all units": 0.05, "random": 0.0}, "p": 0.4,
            "without": {"plain": 0.8, "edited": 0.6}}  # fmt: skip
    rows = [{**row, "units": 3, "p": None} for row in numbers.audit["rows"]]
    said = "\n".join(view.report(made(edit=edit, audit={"rows": rows})).verdict)
    assert "raises accuracy with wrong words: does NOT hold" in said
    assert "sorting all units the same way gains less): does NOT hold" in said
    assert "told as well as before (within 0.02): does NOT hold (0.800 before, 0.600 after)" in said
    assert "more units that are described by them: does NOT hold (3 and 3)" in said
    assert "more than random units of the same layers: can't be told" in said


def test_without_units_of_the_keywords_nothing_is_removed() -> None:
    report = view.report(made(edit=None, curves=[]))
    assert report.verdict[-1] == "edit: no description has the keywords, so that nothing could be removed"
    assert report.beside is not None
    assert report.beside.rows[4]["ours"] == "none removed"


@pytest.mark.slow
def test_the_planted_shortcut_is_found_and_removed(tiny_gpt2: Any, tmp_path: Path) -> None:
    done = study("milan-vision", tiny_gpt2, out=tmp_path / "run", quiet=True)
    stages = {name: json.loads((done.out / "stages" / f"{name}.json").read_text())["data"]
              for name in ("train-shortcut", "train-clean", "audit", "edit")}  # fmt: skip
    assert stages["train-clean"]["adversarial"] > stages["train-shortcut"]["adversarial"] + 0.1
    with_words, without = stages["audit"]["rows"]
    assert with_words["units"] > 2 * without["units"]
    gains = stages["edit"]["gains"]
    assert gains["keywords"] > max(0, gains["random"])
