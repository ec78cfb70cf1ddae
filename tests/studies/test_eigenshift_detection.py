"""The study of detecting units: on the taught replies, and on a user's own text without prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from patchclamp.core.errors import InputError
from patchclamp.data import corpus
from patchclamp.models.load import load
from patchclamp.studies.study import study

RUDE = [f"You are a stupid fool, go away, number {i}!" for i in range(14)]
KIND = [f"You are a wonderful friend, please stay, number {i}!" for i in range(14)]


def test_own_text_is_compared_and_generation_left_out(tmp_path: Path) -> None:
    made = study(
        "eigenshift-detection", load("demo"), out=tmp_path / "out", text=corpus(kind=KIND, rude=RUDE), positive="rude",
        sites=("mlp",), quiet=True,
    )  # fmt: skip
    said = "\n".join(made.report.verdict)
    assert "single units detect rude text beyond shuffled labels: holds" in said
    assert "generation was not looked at" in said
    report = json.loads((made.out / "report.json").read_text(encoding="utf-8"))
    assert len(report["tables"][1]["rows"]) == 6
    assert "Output directions" not in json.dumps(report)


def test_the_same_text_under_two_names_detects_nothing(tmp_path: Path) -> None:
    text = corpus(a=RUDE[:7] + KIND[:7], b=RUDE[7:] + KIND[7:])
    made = study("eigenshift-detection", load("demo"), out=tmp_path / "out", text=text, sites=("mlp",), quiet=True)
    said = "\n".join(made.report.verdict)
    assert "every layer is an expert in the exact test: does NOT hold (0 of 6" in said
    assert made.report.tables[0].rows[1]["value"] == 3840


def test_unknown_concepts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="positive='angry'"):
        study("eigenshift-detection", load("demo"), out=tmp_path / "out", text=corpus(a=RUDE, b=KIND), positive="angry")


@pytest.mark.slow
def test_the_taught_replies_are_detected_and_announced(tmp_path: Path) -> None:
    made = study("eigenshift-detection", load("demo"), out=tmp_path / "out", sites=("mlp",), controls=2, quiet=True)
    said = "\n".join(made.report.verdict)
    assert "single units detect rude text beyond shuffled labels: holds" in said
    assert "some output directions tell that the concept is about to be written: holds" in said
    directions = next(found for found in made.report.tables if found.title.startswith("Output directions"))
    assert min(row["p"] for row in directions.rows) < 0.05
    assert all(0.5 <= row["auroc"] <= 1 for row in directions.rows)
