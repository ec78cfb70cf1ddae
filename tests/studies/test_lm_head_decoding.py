"""The study of LM-head decoding: on a few words, on the default words, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patchclamp.core.errors import InputError
from patchclamp.models.load import load
from patchclamp.studies.study import study


def test_a_few_words_are_found_clamped_and_compared(tmp_path: Path) -> None:
    given = {"words": ("blue", "king", "zqxwv"), "strengths": (1.0,), "generate": 0, "steps": 1, "prompts": ("The",)}
    made = study("lm-head-decoding", load("demo"), out=tmp_path / "out", quiet=True, **given)
    said = "\n".join(made.report.verdict)
    assert "clamping units that point at a word makes it likelier" in said
    assert "zqxwv" in made.report.tables[0].note
    report = json.loads((made.out / "report.json").read_text(encoding="utf-8"))
    assert report["beside"]["rows"][1]["paper"] == 0.754
    again = study("lm-head-decoding", load("demo"), out=tmp_path / "out", resume=True, quiet=True, **given)
    assert again.report.verdict == made.report.verdict


def test_the_model_agrees_with_itself(tmp_path: Path) -> None:
    made = study("lm-head-decoding", load("demo"), out=tmp_path / "out", words=("blue",), strengths=(1.0,), generate=0,
                 tuned="demo", prompts=("The",), quiet=True)  # fmt: skip
    rows = next(table for table in made.report.tables if table.title.startswith("Labels of")).rows
    assert {row["same"] for row in rows} == {1.0}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"controls": 5}, "20 controls"),
        ({"words": ("zqxwv",)}, "none of the words"),
        ({"site": "nowhere"}, "no site"),
        ({"strengths": ()}, "strength"),
    ],
)
def test_bad_requests_are_refused(tmp_path: Path, given: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        study("lm-head-decoding", load("demo", check=False), out=tmp_path / "out", quiet=True, **given)


@pytest.mark.slow
def test_most_taught_words_are_raised_by_their_units(tmp_path: Path) -> None:
    made = study(
        "lm-head-decoding", load("demo"), out=tmp_path / "out", strengths=(1.0, -1.0), generate=0, steps=5, quiet=True
    )
    said = "\n".join(made.report.verdict)
    assert "makes it likelier than clamping random units does: holds" in said
    rows = next(table for table in made.report.tables if table.title.startswith("Clamping each word")).rows
    assert sum(row["p"] <= 0.05 for row in rows) >= 30
