"""A study's frame: stages are made once and survive a kill, a folder belongs to one run, the report is whole in all forms."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import patchclamp as pc
from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.studies.study import Outcome, Report, Run, Table, described, judged, studies, study

MADE: list[str] = []


def toy(run: Run, *, text: pc.Corpus | None = None, top: int = 3, names: tuple[str, ...] = ("a", "b")) -> Report:
    """Count to a number (Nobody 2020, arXiv 0000.00000).

    text: anything. top: how far. names: of the rows.
    """

    def counted() -> dict[str, Any]:
        MADE.append("count")
        return {"numbers": tuple(range(top)), "nan": float("nan"), 1: "key"}

    def squared() -> list[int]:
        MADE.append("square")
        return [number**2 + run.seed for number in count["numbers"]]

    count = run.stage("count", counted)
    squares = run.stage("square", squared)
    rows = [{"name": name, "square": square, "own": name == "a"} for name, square in zip(names, squares, strict=False)]
    return Report(
        tables=[Table("Squares <of> numbers", rows, ("name", "square"), note="A note.", strong="own")],
        charts=[("Squares <of> numbers", _chart(rows)), ("Alone", _chart(rows))],
        verdict=[
            judged("squares grow", squares[-1] > squares[0], f"{squares[0]} to {squares[-1]}"),
            judged("odd", None),
        ],
        beside=Table("The paper's squares", [{"what": "last", "paper": 9, "ours": squares[-1]}]),
        differs=["model", "data"],
        commands=["patchclamp list"],
    )


def _chart(rows: list[dict[str, Any]]) -> Any:
    import altair as alt

    return alt.Chart(alt.Data(values=rows)).mark_bar().encode(x="name:N", y="square:Q")


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    MADE.clear()
    if "toy" not in studies:
        studies.add("toy")(toy)
    yield
    studies._entries.pop("toy", None)


@pytest.fixture
def done(tiny_gpt2: Any, tmp_path: Path) -> Outcome:
    return study("toy", tiny_gpt2, out=tmp_path / "run", seed=5, quiet=True)


def test_a_stage_is_made_once_and_read_back(done: Outcome, tiny_gpt2: Any) -> None:
    assert MADE == ["count", "square"]
    again = study("toy", tiny_gpt2, out=done.out, seed=5, resume=True, quiet=True)
    assert MADE == ["count", "square"]
    assert again.report.to_dict() == done.report.to_dict()
    kept = json.loads((done.out / "stages" / "count.json").read_text())
    assert kept["data"] == {"numbers": [0, 1, 2], "nan": None, "1": "key"}


def test_an_unfinished_stage_alone_is_made_again(done: Outcome, tiny_gpt2: Any) -> None:
    (done.out / "stages" / "square.json").unlink()
    (done.out / "stages" / ".square.json.x.part").write_text("{")
    again = study("toy", tiny_gpt2, out=done.out, seed=5, resume=True, quiet=True)
    assert MADE == ["count", "square", "square"]
    assert again.report.tables[0].rows == done.report.tables[0].rows
    assert not list((done.out / "stages").glob(".*"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"top": 4}, "top \\(3 then, 4 now\\)"),
        ({"seed": 6}, "seed \\(5 then, 6 now\\)"),
        ({"text": pc.corpus(en=["A text."])}, "text"),
        ({"names": ("a",)}, "names"),
    ],
)
def test_resuming_refuses_other_arguments(done: Outcome, tiny_gpt2: Any, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(MismatchError, match=said):
        study("toy", tiny_gpt2, out=done.out, resume=True, quiet=True, **{"seed": 5, **changed})


def test_resuming_refuses_another_model(done: Outcome, tiny_llama: Any) -> None:
    with pytest.raises(MismatchError, match="the model"):
        study("toy", tiny_llama, out=done.out, seed=5, resume=True, quiet=True)


def test_the_same_text_from_another_place_is_the_same_run(tiny_gpt2: Any, tmp_path: Path) -> None:
    paths = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for path in paths:
        path.write_text("A line.\nAnother line.\n")
    first = study("toy", tiny_gpt2, out=tmp_path / "run", quiet=True, text=pc.corpus(en=paths[0]))
    study("toy", tiny_gpt2, out=first.out, quiet=True, text=pc.corpus(en=paths[1]), resume=True)
    paths[1].write_text("Another line.\n")
    with pytest.raises(MismatchError, match="text"):
        study("toy", tiny_gpt2, out=first.out, quiet=True, text=pc.corpus(en=paths[1]), resume=True)


def test_a_stage_of_another_run_is_refused(done: Outcome, tiny_gpt2: Any, tmp_path: Path) -> None:
    other = study("toy", tiny_gpt2, out=tmp_path / "other", seed=6, quiet=True)
    (other.out / "stages" / "count.json").replace(done.out / "stages" / "count.json")
    with pytest.raises(MismatchError, match=r"count\.json was made with another model or other arguments"):
        study("toy", tiny_gpt2, out=done.out, seed=5, resume=True, quiet=True)


def test_a_damaged_stage_is_named(done: Outcome, tiny_gpt2: Any) -> None:
    (done.out / "stages" / "count.json").write_text("{")
    with pytest.raises(DamagedError, match=r"count\.json"):
        study("toy", tiny_gpt2, out=done.out, seed=5, resume=True, quiet=True)


def test_a_folder_in_use_is_left_alone(done: Outcome, tiny_gpt2: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--resume"):
        study("toy", tiny_gpt2, out=done.out, seed=5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    for resume in (False, True):
        with pytest.raises(InputError, match="holds no run"):
            study("toy", tiny_gpt2, out=tmp_path / "mine", resume=resume)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_unknown_studies_options_and_values_are_named(tiny_gpt2: Any, tmp_path: Path) -> None:
    for name, options, said in (
        ("nothing", {}, "no study is called 'nothing'"),
        ("toy", {"tops": 1}, "no option 'tops'; it has text, top, names"),
        ("toy", {"top": object()}, "type object"),
    ):
        with pytest.raises(InputError, match=said):
            study(name, tiny_gpt2, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_names_are_checked_and_used_once(tiny_gpt2: Any, tmp_path: Path) -> None:
    run = Run(tiny_gpt2, tmp_path, quiet=True)
    assert run.stage("one", lambda: 1) == 1
    for name, said in (("one", "twice"), ("../out", "letters, digits"), ("", "letters, digits")):
        with pytest.raises(InputError, match=said):
            run.stage(name, lambda: 2)
    assert run.folder("rec") == run.file("rec") == tmp_path / "rec"


def test_findings_and_effects_are_kept_and_read_back(tiny_gpt2: Any, tmp_path: Path) -> None:
    text = pc.corpus(en=["The cat sat on the mat."] * 4, fr=["Le chat est assis sur le tapis."] * 4)
    calls: list[str] = []

    def find() -> pc.Finding:
        calls.append("find")
        return pc.find.language(pc.record(tiny_gpt2, text, quiet=True), rate=0.1, min_tokens=1, shuffles=0)

    def measure() -> pc.Effects:
        calls.append("measure")
        sets = first.select(top=5)
        return pc.effect(tiny_gpt2, sets, on=text, controls=2, permutations=99, resamples=50, quiet=True)

    run = Run(tiny_gpt2, tmp_path, quiet=True)
    first = run.finding("language", find)
    effects = run.effects("clamped", measure)
    again = Run(tiny_gpt2, tmp_path, quiet=True)
    assert again.finding("language", find).sets == first.sets
    assert again.effects("clamped", measure).rows == effects.rows
    assert calls == ["find", "measure"]


def test_json_page_and_terminal_say_the_same(done: Outcome) -> None:
    written = json.loads((done.out / "report.json").read_text())
    assert written["format"] == "patchclamp.study/1"
    assert written["study"] == "toy"
    assert written["verdict"] == ["squares grow: holds (5 to 9)", "odd: can't be told"]
    assert written["tables"][0]["rows"][1] == {"name": "b", "square": 6, "own": False}
    assert written["provenance"]["arguments"] == {"text": None, "top": 3, "names": ["a", "b"], "seed": 5}
    assert written["provenance"]["inputs"]["model"]["fingerprint"]
    html = (done.out / "report.html").read_text()
    assert html.count("<svg") == 2
    assert "Squares &lt;of&gt; numbers" in html
    assert "<of>" not in html
    assert 'src="http' not in html
    assert "<script" not in html
    assert '<tr class="strong"><td class="left">a' in html
    console = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(done)
    shown = console.export_text()
    for said in ("Squares <of> numbers", "The paper's squares", "squares grow: holds", "differs: model", "report.html"):
        assert said in shown


def test_judged_never_hides_a_failure() -> None:
    assert judged("it works", False, "0 of 3") == "it works: does NOT hold (0 of 3)"


def test_described_takes_nested_values() -> None:
    text = pc.corpus(en=["A text."])
    found = described({"text": text, "numbers": (1, 2.5, None), "path": Path("/x")})
    assert found == {"text": {"corpus": text.identity}, "numbers": [1, 2.5, None], "path": "/x"}


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.studies.test_study import studies, study
from patchclamp.studies.study import Report, Run, Table

def dying(run: Run) -> Report:
    "Die in the second stage unless told not to."
    first = run.stage("first", lambda: [1, 2, 3])
    def second():
        if not os.environ.get("LIVE"):
            (run.out / "stages" / ".second.json.abc.part").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
        return sum(first)
    return Report([Table("Sum", [{{"sum": run.stage("second", second)}}])])

studies.add("dying")(dying)
study("dying", "demo", out={out!r}, resume=bool(os.environ.get("LIVE")), quiet=True)
"""


def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    code = KILLED.format(tests=str(Path(__file__).parents[2]), out=str(tmp_path / "run"))
    ended: list[int] = []
    before: dict[str, int] = {}
    for live in ("", "1"):
        environment = {**os.environ, "LIVE": live}
        ended.append(subprocess.run([sys.executable, "-c", code], env=environment, timeout=300, check=False).returncode)
        stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "stages").iterdir()}
        assert "first.json" in stamps
        if live:
            assert stamps["first.json"] == before["first.json"]
            assert sorted(stamps) == ["first.json", "second.json"]
        before = stamps
    assert ended == [-signal.SIGKILL, 0]
    assert json.loads((tmp_path / "run" / "report.json").read_text())["tables"][0]["rows"] == [{"sum": 6}]


def test_a_report_is_replayed_and_a_changed_number_shows(done: Outcome, tiny_gpt2: Any) -> None:
    report = done.out / "report.json"
    again = pc.replay(report, model=tiny_gpt2)
    assert again.agrees
    assert again.call == "study.toy"
    assert again.compared > 5
    written = json.loads(report.read_text())
    written["tables"][0]["rows"][1]["square"] = 7
    report.write_text(json.dumps(written))
    changed = pc.replay(report, model=tiny_gpt2)
    assert not changed.agrees
    assert "tables[0].rows[1].square: 7 then, 6 now" in changed.differences


def test_a_report_made_with_text_opens_it_again(tiny_gpt2: Any, tmp_path: Path) -> None:
    path = tmp_path / "en.txt"
    path.write_text("A line.\nAnother line.\n")
    first = study("toy", tiny_gpt2, out=tmp_path / "run", quiet=True, text=pc.corpus(en=path))
    assert pc.replay(first.out / "report.json", model=tiny_gpt2).agrees
    path.write_text("Something else.\n")
    with pytest.raises(MismatchError):
        pc.replay(first.out / "report.json", model=tiny_gpt2)
