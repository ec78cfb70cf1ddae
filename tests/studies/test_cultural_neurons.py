"""The study of cultural neurons on a hand-wired model whose answer is known, and the numbers that its verdict is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.find.planted_culture import CulturePlant, plant_culture

from patchclamp.core.errors import InputError
from patchclamp.studies.cultural_neurons import kin_of
from patchclamp.studies.cultural_neurons_view import rank_sum_p
from patchclamp.studies.study import Outcome, study


@pytest.fixture(scope="module")
def plant() -> CulturePlant:
    return plant_culture()


@pytest.fixture(scope="module")
def outcome(plant: CulturePlant, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return run(plant, tmp_path_factory.mktemp("study") / "run")


def run(plant: CulturePlant, out: Path, **given: Any) -> Outcome:
    how = {"task": plant.task, "held_out": plant.task, "control": plant.control, "names": plant.passages}
    how |= {"other": plant.passages, "items": 32, "per_group": 8, "controls": 3, "shuffles": 10}
    return study("cultural-neurons", plant.model, out=out, quiet=True, **(how | given))


def test_the_report_holds_tables_verdict_and_the_papers_numbers(outcome: Outcome) -> None:
    data = json.loads((outcome.out / "report.json").read_text())
    assert data["format"] == "patchclamp.study/1"
    titles = [table["title"] for table in data["tables"]]
    assert any("accuracy" in title for title in titles)
    assert any("Threshold sweep" in title for title in titles)
    assert len(data["beside"]["rows"]) == 4
    assert any("held-out culture questions" in line for line in data["verdict"])
    assert "<svg" in (outcome.out / "report.html").read_text()
    assert (outcome.out / "culture.sets.json").exists()


def test_clamping_the_planted_unit_hurts_and_empty_sets_are_told(outcome: Outcome) -> None:
    """At the default shares this small model's general set is one unit of knowledge, and the groups' sets are empty."""
    row = outcome.report.effects["loss"].row("general", "culture, held out")
    assert row["n_units"] == 1
    assert row["effect"] > 0.1
    assert "groups" not in outcome.report.effects
    assert not any("own questions first" in table.title for table in outcome.report.tables)
    assert any("own questions first: can't be told" in line for line in outcome.report.verdict)


def test_a_finished_run_is_read_back(plant: CulturePlant, outcome: Outcome) -> None:
    again = run(plant, outcome.out, resume=True)
    assert again.report.verdict == outcome.report.verdict


def test_tasks_that_do_not_go_together_are_refused(plant: CulturePlant, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="held_out="):
        run(plant, tmp_path / "a", held_out=None)
    with pytest.raises(InputError, match="blend_folder="):
        run(plant, tmp_path / "b", blend_folder=str(tmp_path))
    with pytest.raises(InputError, match="goes with"):
        run(plant, tmp_path / "c", task=None, country_rc_file="rc.json")


def test_kin_are_of_one_continent() -> None:
    kin = kin_of(["jp", "kr", "de", "fr", "et", "Atlantis"])
    assert kin == {"jp": ("kr",), "kr": ("jp",), "de": ("fr",), "fr": ("de",), "et": (), "Atlantis": ()}


def test_rank_p_is_that_of_even_draws() -> None:
    assert rank_sum_p(np.array([1.0, 1.0]), 4) == pytest.approx(1 / 16, abs=0.01)
    assert rank_sum_p(np.array([2.5] * 9), 4) == pytest.approx(0.55, abs=0.08)
    assert rank_sum_p(np.array([4.0] * 3), 4) == 1
