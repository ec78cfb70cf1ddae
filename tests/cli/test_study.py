"""`patchclamp study`, and commands built from signatures: real commands, resumed, replayed, refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from tests.cli.program import contents, program

from patchclamp.cli.signatures import Kind, Signature, kind_of
from patchclamp.core.errors import InputError
from patchclamp.data import Corpus, Task
from patchclamp.find import finders
from patchclamp.studies.study import Report, Run, Table, studies

if TYPE_CHECKING:
    from pandas import DataFrame

SEEN: list[dict[str, Any]] = []


def toy(
    run: Run,
    *,
    task: Task | None = None,
    others: Mapping[str, Task] | None = None,
    text: Corpus | None = None,
    top: int = 3,
    share: float | None = None,
    mode: Literal["a", "b"] = "a",
    mixed: float | str = "mean",
    sites: Sequence[str] = ("mlp", "attn"),
    layers: Sequence[int] | None = None,
    check: Callable[[str], bool] | None = None,
    frame: DataFrame | None = None,
    careful: bool = True,
) -> Report:
    """Toy with a model (Nobody 2020).

    task: what to ask. top: how many. careful: as it says.
    """
    SEEN.append(
        {"task": task, "others": others, "text": text, "top": top, "share": share, "mode": mode, "mixed": mixed}
    )
    SEEN[-1] |= {"sites": sites, "layers": layers, "check": check, "careful": careful, "seed": run.seed}
    total = run.stage("total", lambda: top * 2)
    return Report([Table("Doubled", [{"top": top, "twice": total}])], verdict=["It went well."])


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    SEEN.clear()
    if "toy-of-the-command-line" not in studies:
        studies.add("toy-of-the-command-line")(toy)
    yield
    studies._entries.pop("toy-of-the-command-line", None)


NAME = "toy-of-the-command-line"


def test_a_study_runs_with_its_own_options_and_writes_its_report(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "2 + 2 =", "answer": " 4"}\n')
    text = tmp_path / "en.txt"
    text.write_text("A line.\nAnother.\n")
    ran = program(
        "study", "run", NAME, "--out", tmp_path / "run", "--seed", 7, "--top", 5, "--mixed", "0.5", "--sites", "resid,mlp",
        "--layers", "0,2", "--task", f"mine={tmp_path / 'one.jsonl'}", "--others", "generate:facts,language=en,count=4",
        "--others", f"two={tmp_path / 'one.jsonl'}", "--text", f"en={text}", "--no-careful", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    seen = SEEN[0]
    assert (seen["top"], seen["mixed"], seen["sites"], seen["layers"]) == (5, 0.5, ("resid", "mlp"), (0, 2))
    assert (seen["careful"], seen["seed"], seen["share"], seen["mode"], seen["check"]) == (False, 7, None, "a", None)
    assert (seen["task"].name, len(seen["task"])) == ("mine", 1)
    assert {name: len(task) for name, task in seen["others"].items()} == {"facts": 4, "two": 1}
    assert seen["text"].labels == ("en",)
    assert ran.json["tables"][0]["rows"] == [{"top": 5, "twice": 10}]
    assert json.loads((tmp_path / "run" / "report.json").read_text())["study"] == NAME
    assert "It went well." in (tmp_path / "run" / "report.html").read_text()


def test_defaults_are_the_studys_own(tmp_path: Path) -> None:
    ran = program("study", "run", NAME, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert "It went well." in ran.out
    expected = {"task": None, "others": None, "text": None, "top": 3, "share": None, "mode": "a", "mixed": "mean"}
    assert SEEN[0] == {
        **expected, "sites": ("mlp", "attn"), "layers": None, "check": None, "careful": True, "seed": 0
    }  # fmt: skip


def test_resuming_reads_and_a_used_folder_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert program("study", "run", NAME, "--out", out, "--top", 4).code == 0
    stages = contents(out / "stages")
    for options, words in (
        (["--top", 4], ["--resume"]),
        (["--top", 5, "--resume"], ["top (4 then, 5 now)"]),
        (["--top", 4, "--seed", 1, "--resume"], ["seed (0 then, 1 now)"]),
    ):
        ran = program("study", "run", NAME, "--out", out, *options)
        assert (ran.code, ran.out) == (2, "")
        assert len(ran.err.splitlines()) == 1
        assert all(word in ran.err for word in words)
    ran = program("study", "run", NAME, "--out", out, "--top", 4, "--resume", "--json")
    assert ran.code == 0
    assert ran.json["tables"][0]["rows"] == [{"top": 4, "twice": 8}]
    assert contents(out / "stages") == stages


def test_list_and_show_tell_what_there_is() -> None:
    rows = {row["name"]: row["summary"] for row in program("study", "list", "--json").json["studies"]}
    assert {"language-neurons", "word-class-emergence", NAME} <= set(rows)
    assert rows[NAME] == "Toy with a model (Nobody 2020)."
    shown = program("study", "show", NAME)
    assert "Toy with a model" in shown.out
    assert "How many." in shown.out
    options = {row["option"]: row["default"] for row in program("study", "show", NAME, "--json").json["options"]}
    assert options["top"] == "3"
    assert options["task"] == "bundled"
    assert "check" not in options
    listed = program("list", "study", "--json").json["entries"]
    assert {entry["kind"] for entry in listed} == {"study"}
    refused = program("study", "show", "nothing")
    assert refused.code == 2
    assert "no study is called 'nothing'" in refused.err


@pytest.mark.parametrize("entry", [entry.name for entry in finders])
def test_every_finder_is_a_command_whose_help_names_all_its_options(entry: str) -> None:
    ran = program("find", entry, "--help")
    assert ran.code == 0, ran.err
    signature = Signature.of(finders[entry])
    for name in signature.kinds:
        assert f"--{ {'lam': 'lambda', 'lam_form': 'lambda-form'}.get(name, name).replace('_', '-') }" in ran.out


def test_every_study_is_a_command(tmp_path: Path) -> None:
    for entry in studies:
        ran = program("study", "run", entry.name, "--help")
        assert ran.code == 0, ran.err
        assert "--resume" in ran.out
        assert entry.summary.split(":")[0].split()[0] in ran.out


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int, Kind("plain", (int,))),
        (float | None, Kind("plain", (float,))),
        (str | tuple[str, ...], Kind("list", (str,))),
        (Literal["a"], Kind("plain", (str,))),
        (float | str | Callable[[str], bool], Kind("plain", (float, str))),
        (Task | None, Kind("task")),
        (Task | Mapping[str, Task], Kind("tasks")),
        (Corpus | None, Kind("texts")),
        (Callable[[str], bool], None),
        (Mapping[str, float], None),
    ],
)  # fmt: skip
def test_types_become_options(hint: Any, expected: Kind | None) -> None:
    assert kind_of(hint) == expected


def test_what_a_command_cannot_give_is_said_when_it_is_built() -> None:
    def finder(model: Any, check: Callable[[str], bool]) -> None:
        """Never."""

    with pytest.raises(InputError, match="needs check, which can't be given"):
        Signature.of(finder)


CONLLU = "\n".join(
    "\n".join(["# text = The cat sees a dog .", *[
        f"{number}\t{form}\t_\t{tag}\t_\t_\t0\t_\t_\t_" for number, (form, tag) in enumerate(
            [("The", "DET"), ("cat", "NOUN"), ("sees", "VERB"), ("a", "DET"), ("dog", "NOUN"), (".", "PUNCT")], 1)
    ], ""]) for _ in range(12)
)  # fmt: skip


def test_a_finder_on_a_model_and_text_runs_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "en.conllu").write_text(CONLLU + "\n")
    out = tmp_path / "classes.json"
    ran = program(
        "find", "discrimination", "demo", "--text", f"en={tmp_path / 'en.conllu'}", "--out", out, "--per-class", 12,
        "--min-per-class", 6, "--permutations", 19, "--resamples", 1, "--layers", "0,5", "--points", 0, "--top", 3,
        "--no-random-weights", "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = json.loads(out.read_text())
    assert found["labels"] == ["NOUN", "VERB", "DET"] or set(found["labels"]) == {"NOUN", "VERB", "DET"}
    assert [(row["site"], row["layer"]) for row in found["details"]["layers"]] == [
        ("embed", 0),
        ("resid", 0),
        ("resid", 5),
    ]
    missing = program("find", "discrimination", "demo", "--out", out)
    assert missing.code == 2
    assert "--text" in missing.err
    wrong = program("find", "discrimination", "demo", "--text", "demo:find", "--out", out)
    assert wrong.code == 2
    assert "upos=CLASS" in wrong.err


def test_a_finding_of_a_model_and_a_text_is_replayed(tmp_path: Path) -> None:
    text, out = tmp_path / "en.conllu", tmp_path / "classes.json"
    text.write_text(CONLLU + "\n")
    few = ("--per-class", 10, "--min-per-class", 6, "--permutations", 9, "--resamples", 1, "--layers", 0, "--points", 0)
    assert (
        program(
            "find", "discrimination", "demo", "--text", f"en={text}", "--out", out, *few, "--no-random-weights"
        ).code
        == 0
    )
    again = program("replay", out, "--json")
    assert again.code == 0, again.err
    assert again.json["call"] == "find.discrimination"
    assert again.json["agrees"]
    text.write_text(CONLLU.replace("dog", "bird") + "\n")
    assert program("replay", out).code == 2
