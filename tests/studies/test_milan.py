"""The study of descriptions on a tiny random model: what it writes, that it resumes, that bad wishes are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from patchclamp.core.errors import InputError
from patchclamp.data import corpus
from patchclamp.read.exemplar_store import ExemplarStore
from patchclamp.studies.study import Outcome, study

PLACES = ("mat", "roof", "hill", "moon", "lake", "tree", "door", "path", "wall", "road", "sea", "sky")
EN = [f"The cat number {n} sat on the {place} and looked at the {PLACES[n - 1]}." for n, place in enumerate(PLACES)]
RU = [f"Кошка {n} сидела там и смотрела на {place} весь день." for n, place in enumerate(PLACES)]
OPTIONS = {"units": 4, "k": 4, "lams": (0.0, 1.0), "controls": 3, "random_sets": 1, "documents": 4}


@pytest.fixture(scope="module")
def text() -> Any:
    return corpus(en=EN, ru=RU)


@pytest.fixture(scope="module")
def made(tiny_gpt2: Any, text: Any, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("study") / "milan"
    return study("milan", tiny_gpt2, out=out, quiet=True, text=text, measure=corpus(en=EN[6:], ru=RU[6:]), **OPTIONS)


def table(made: Outcome, start: str) -> list[dict[str, Any]]:
    return next(list(found.rows) for found in made.report.tables if found.title.startswith(start))  # type: ignore[arg-type]


def test_every_drawn_unit_is_described_and_scored(made: Outcome) -> None:
    rows = table(made, "Every unit")
    assert len(rows) == len({row["unit"] for row in rows}) == 3 * 4
    store = ExemplarStore.load(made.out / "exemplars.json")
    assert store.units == tuple(row["unit"] for row in rows)
    assert {row["describer"] for row in table(made, "Do descriptions")} == {
        "words, combined", "one concept of a list", "the text's label",
    }  # fmt: skip


def test_the_verdict_says_what_the_numbers_say(made: Outcome) -> None:
    said = "\n".join(made.report.verdict)
    explained = sum(row["explains"] for row in table(made, "Every unit"))
    assert f"{explained} of 12 units have a description" in said
    for row in table(made, "Do descriptions"):
        if row["describer"] == "words, combined" and row["metric"] == "Pearson":
            held = row["gain"] > 0 and row["p"] < 0.05
            line = next(line for line in made.report.verdict if "held-out passages (Pearson" in line)
            assert (": holds" in line) == held
    for row in table(made, "Audit"):
        assert row["right"] <= row["units"]


def test_the_sweep_holds_the_weights_asked_for_and_the_used_one(made: Outcome) -> None:
    rows = table(made, "The weight of the prior")
    assert [row["lam"] for row in rows] == [0.0, 0.2, 1.0]
    assert rows[0]["log_prior"] >= rows[-1]["log_prior"]  # the more weight, the rarer what is said
    assert all(0 <= row["specificity"] <= 1 for row in rows)


def test_the_report_is_plain_data_and_a_page(made: Outcome) -> None:
    report = json.loads((made.out / "report.json").read_text(encoding="utf-8"))
    assert report["study"] == "milan"
    assert len(report["beside"]["rows"]) == 4
    assert "<svg" in (made.out / "report.html").read_text(encoding="utf-8")


def test_resuming_reads_what_was_made(made: Outcome, tiny_gpt2: Any, text: Any) -> None:
    again = study(
        "milan", tiny_gpt2, out=made.out, resume=True, quiet=True, text=text, measure=corpus(en=EN[6:], ru=RU[6:]), **OPTIONS
    )  # fmt: skip
    assert list(again.report.verdict) == list(made.report.verdict)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text": True}, "both text"),
        ({"share": 0.4}, "share=0.4"),
        ({"units": 1}, "units=1"),
        ({"site": "x"}, "site 'x' asked for"),
    ],
)
def test_bad_wishes_are_refused(tiny_gpt2: Any, text: Any, tmp_path: Path, options: Any, said: str) -> None:
    given = {**options, "text": text} if "text" in options else {**options, "text": text, "measure": text}
    with pytest.raises(InputError, match=said):
        study("milan", tiny_gpt2, out=tmp_path / "out", quiet=True, **given)
