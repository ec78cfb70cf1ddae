"""The circuit-reuse study runs on the bundled model, says what it finds, and its tasks are what its stages need."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.core.errors import InputError
from patchclamp.models.load import load
from patchclamp.studies.circuit_reuse_tasks import both_tasks
from patchclamp.studies.study import Outcome, study


@pytest.fixture(scope="module")
def model() -> Any:
    return load("demo", check=False)


@pytest.fixture(scope="module")
def made(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("study") / "reuse"
    return study("circuit-reuse", model, out=out, quiet=True, n=48, controls=2, permutations=50)


def table(made: Outcome, start: str) -> list[dict[str, Any]]:
    return next(list(found.rows) for found in made.report.tables if found.title.startswith(start))  # type: ignore[arg-type]


def test_both_tasks_are_aligned_and_their_early_pairs_differ_before_the_keys(model: Any) -> None:
    how: dict[str, Any] = {"language": "en", "templates": "auto", "shots": None, "n_objects": 3, "seed": 0}
    names, colors = both_tasks(model, 12, **how)
    assert (names.frames, colors.frames) == ("paper", "demo")
    for side in (names, colors):
        pairs, early = (task.encode(model.tokenizer) for task in (side.task, side.earlier))
        keys, values = early.at(side.keys), pairs.at(side.values)
        first = [int(row.nonzero()[0, 0]) for row in early.changed]
        assert all(start <= int(at) for start, at in zip(first, keys, strict=True))
        assert bool(pairs.changed[torch.arange(len(pairs)), values].all())
        right, wrong = side.right(pairs), side.wrong(pairs)
        assert bool((right >= 0).all())
        assert not bool((right == wrong).any())
        hidden = side.question(pairs)
        assert not bool(hidden.gather(1, pairs.end[:, None]).any())
        if side is colors:
            last = values == pairs.end  # some frames ask with their last word
            assert bool((hidden.gather(1, values[:, None])[:, 0] | last).all())
            assert not bool((hidden.gather(1, wrong.clamp(min=0)) & (wrong >= 0)).any())
    one, other = colors.earlier[0], colors.task[0]
    assert sorted(re.findall(r"\w+", one.corrupt)) == sorted(re.findall(r"\w+", one.clean))
    assert one.corrupt != one.clean == other.clean


@pytest.mark.slow
def test_every_stage_is_told_for_both_tasks_and_the_mover_of_colours_is_found(made: Outcome) -> None:
    for task in ("indirect objects", "coloured objects"):
        rows = table(made, f"The circuit of {task}")
        assert rows[0]["receivers"] == "final residual"
        assert rows[0]["together"] > 80
    everything = table(made, "Every head at every stage")
    best = max((row for row in everything if row["task"] == "coloured objects" and "final" in row["stage"]),
               key=lambda row: row["score"])  # fmt: skip
    assert best["part"] == "head.5.5"
    assert best["low"] > 50


@pytest.mark.slow
def test_the_overlap_has_nulls_and_a_sweep(made: Outcome) -> None:
    rows = table(made, "What the circuits share")
    shares = [row["share_of"] for row in rows if row["of"] == "all stages of the paper"]
    assert shares == sorted(shares)
    assert len(shares) >= 4
    for row in rows:
        assert 0 <= row["p"] <= 1
        assert row["shared"] <= min(row["n_first"], row["n_second"])
        assert row["expected"] == pytest.approx(row["n_first"] * row["n_second"] / 36)


@pytest.mark.slow
def test_forcing_is_compared_with_random_heads_and_with_the_right_candidate(made: Outcome) -> None:
    rows = {row["forced"]: row for row in table(made, "Repairing")}
    assert rows["nothing"]["among"] < 1
    onto_wrong, onto_right = (rows[f"own steering heads -> {which} candidates"] for which in ("wrong", "right"))
    assert onto_right["difference"] < rows["nothing"]["difference"] < onto_wrong["difference"]
    assert "head.0.0" in onto_wrong["heads"]
    assert any(name.startswith("random heads") for name in rows)
    hidden = table(made, "Coloured objects with the question hidden")
    assert hidden[-1]["among"] < hidden[-1]["random"]


@pytest.mark.slow
def test_the_verdict_is_computed_and_the_report_is_a_page(made: Outcome) -> None:
    said = "\n".join(made.report.verdict)
    assert "the model solves coloured objects better than by guessing among the candidates: holds" in said
    assert "coloured objects: heads carry at least 10% of the flip to the final heads' queries: does NOT hold" in said
    assert "heads of the other task repair indirect objects: can't be told" in said
    assert "forcing its own steering heads onto the wrong candidates repairs indirect objects" in said
    report = json.loads((made.out / "report.json").read_text(encoding="utf-8"))
    assert [row["paper"] for row in report["beside"]["rows"]][:2] == [384, "25 of 32"]
    assert "<svg" in (made.out / "report.html").read_text(encoding="utf-8")
    assert np.isfinite([row["ours"] for row in report["beside"]["rows"] if isinstance(row["ours"], float)]).all()


@pytest.mark.slow
def test_resuming_reads_what_was_made(made: Outcome, model: Any) -> None:
    how: dict[str, Any] = {"n": 48, "controls": 2, "permutations": 50}
    again = study("circuit-reuse", model, out=made.out, resume=True, quiet=True, **how)
    assert list(again.report.verdict) == list(made.report.verdict)


def test_bad_choices_are_refused(model: Any, tmp_path: Path) -> None:
    for number, (how, what) in enumerate(
        (
            ({"n": 1}, "n=1"),
            ({"share": 0.0}, "share=0.0"),
            ({"controls": 0}, "controls=0"),
            ({"templates": "x"}, "templates"),
        )
    ):
        with pytest.raises(InputError, match=what):
            study("circuit-reuse", model, out=tmp_path / str(number), quiet=True, **how)
