"""The EigenShift study: every method and control in its table, resumed from its stages, honest on a concept that isn't there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from patchclamp.core.errors import InputError
from patchclamp.data.tasks import Task
from patchclamp.measure.concepts import Words
from patchclamp.models.load import load
from patchclamp.studies.eigenshift_view import FEWER, PAPER
from patchclamp.studies.eigenshift_words import INSULTS
from patchclamp.studies.study import Outcome, study

pytestmark = pytest.mark.slow
SMALL: dict[str, Any] = {
    "languages": ("en",), "shares": (0.05, 0.25), "alphas": (0.5,), "experts_shares": (0.02,), "samples": 2, "documents": 2,
    "seeds": 1, "new_tokens": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return study("eigenshift", load("demo"), out=tmp_path_factory.mktemp("study") / "out", quiet=True, **SMALL)


def table(made: Outcome, start: str) -> list[dict[str, Any]]:
    return [dict(row) for found in made.report.tables if found.title.startswith(start) for row in found.rows]


def test_every_method_and_control_is_in_the_table(made: Outcome) -> None:
    names = [row["name"] for row in table(made, "Every setting")]
    assert {"none", "EigenShift/10", "EigenShift/48", "EigenShift/48 alpha 0.5", "EigenShift by logit/10"} <= set(names)
    assert {"random directions/10#0", "smallest |delta|/10", "AurA/all", "Damp/all", "Det-0/all"} <= set(names)
    assert {"layers by clusters/3", "layers by labels/3 removed", "layers by labels/3 as without"} <= set(names)
    assert sum(name.startswith("Det-0/") for name in names) == 2
    assert len(names) == len(set(names))
    for row in table(made, "Every setting"):
        assert 0 <= row["rate"] <= 1
        assert row["perplexity"] > 1


def test_each_family_is_shown_at_its_best_beside_what_other_replies_lose(made: Outcome) -> None:
    every, best = table(made, "Every setting"), table(made, "Each method")
    for row in best[1:]:
        assert row["tph"] == max(other["tph"] for other in every if other["family"] == row["family"])
    assert best[0]["concept"] == best[0]["others"] == 0
    assert made.report.beside is not None
    assert len(made.report.beside.rows) == len(PAPER)


def test_damping_what_enters_the_head_leaves_detection_alone(made: Outcome) -> None:
    kept = {row["name"]: row for row in table(made, "Is the concept still told")}
    shift = next(row for name, row in kept.items() if name.startswith("EigenShift/"))
    assert {at: shift[at] for at in "012345"} == {at: kept["none"][at] for at in "012345"}
    assert any("detection is kept" in line and ": holds" in line for line in made.report.verdict)
    assert any(line.startswith(FEWER) for line in made.report.verdict)


def test_a_resumed_run_reads_its_stages(made: Outcome) -> None:
    again = study("eigenshift", load("demo"), out=made.out, resume=True, quiet=True, **SMALL)
    assert again.report.to_dict() == made.report.to_dict()
    assert json.loads((made.out / "report.json").read_text(encoding="utf-8"))["verdict"] == made.report.verdict
    assert "EigenShift/48" in (made.out / "report.html").read_text(encoding="utf-8")


def test_own_prompts_need_words(tmp_path: Path) -> None:
    prompts = Task.of([{"prompt": f"The king said number {n}", "answer": " x"} for n in range(30)])
    with pytest.raises(InputError, match="give words="):
        study("eigenshift", load("demo"), out=tmp_path / "a", prompts=prompts, quiet=True)
    for more in ({"shares": ()}, {"seeds": 0}, {"layers": 0}):
        with pytest.raises(InputError, match="at least one of each"):
            study("eigenshift", load("demo"), out=tmp_path / str(len(list(tmp_path.iterdir()))), quiet=True, **more)
    with pytest.raises(InputError, match="are flagged"):
        study(
            "eigenshift", load("demo"), out=tmp_path / "b", prompts=prompts, words=("xylophone",), quiet=True, **SMALL
        )


def test_insults_are_found_in_every_rude_reply_and_in_no_polite_one() -> None:
    from patchclamp.data.generate.manners import WORDS

    judge = Words(INSULTS)
    for words in WORDS.values():
        for opening, closing in zip(*words.rude, strict=True):
            assert judge(f"{opening} {closing}").spans
        assert not any(judge(text).spans for part in words.polite for text in part)
