"""`patchclamp generate` and `patchclamp fit`: what they print and write, together with the commands that take their files."""

from __future__ import annotations

import inspect
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tests.cli.program import program

import patchclamp as pc
from patchclamp.cli.signatures import Signature
from patchclamp.intervene import intervention
from patchclamp.intervene.fits import fits

ASKED = [
    {"prompt": f"The cat {n}", "answer": " sat", "choices": [" sat", " lune"], "labels": {"tone": "ab"[n % 2]}}
    for n in range(24)
]


@pytest.fixture(scope="module")
def folder(tiny_llama: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("fit")
    tiny_llama.hf.save_pretrained(place / "model")
    tiny_llama.tokenizer.save_pretrained(place / "model")
    (place / "asked.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ASKED))
    model = pc.load(place / "model")
    intervention(model, ["mlp.0.3", "mlp.1.7"], to=[2.0, -3.0]).__add__(
        intervention(model, ["head.1.2"], scale=-2.0, scope="generated")
    ).save(place / "clamp.json")
    return place


def test_texts_stand_beside_each_other(folder: Path) -> None:
    call = ("generate", folder / "model", "The cat sat", "moon", "--max-new-tokens", 6)
    ran = program(*call, "--with", folder / "clamp.json", "--plain", "--json")
    assert ran.code == 0, ran.err
    rows = ran.json["rows"]
    assert [row["prompt"] for row in rows] == ["The cat sat", "moon"]
    model, items = pc.load(folder / "model"), pc.Interventions.load(folder / "clamp.json")
    assert [row["plain"] for row in rows] == model.generate(["The cat sat", "moon"], max_new_tokens=6)
    with items.applied(model):
        assert [row["written"] for row in rows] == model.generate(["The cat sat", "moon"], max_new_tokens=6)
    assert ran.json["changes"] == [item.describe() for item in items]
    shown = program(*call, "--with", folder / "clamp.json", "--plain")
    assert "under interventions" in shown.out
    assert program(*call, "--json").json["rows"][0]["written"] == rows[0]["plain"]
    assert program(*call).out.startswith("The cat sat")


def test_several_files_are_applied_in_order_and_draws_repeat(folder: Path, tmp_path: Path) -> None:
    model = pc.load(folder / "model")
    add = pc.Interventions([intervention(model, ["mlp.0.3"], add=5.0)]).save(tmp_path / "add.json")
    call = ("generate", folder / "model", "The cat", "--max-new-tokens", 5, "--sample", "--temperature", 2.0, "--json")
    both = program(*call, "--with", folder / "clamp.json", "--with", add, "--seed", 3)
    assert len(both.json["changes"]) == 3
    assert both.json == program(*call, "--with", folder / "clamp.json", "--with", add, "--seed", 3).json
    assert both.json["rows"] != program(*call, "--seed", 4).json["rows"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--plain"], "--plain compares with --with FILE"),
        (["--top-p", 0.5], "need --sample"),
        (["--with", "missing.json"], "no file at"),
        (["--with", "model/config.json"], "has format None"),
        (["--sample", "--top-p", 2], "top_p=2"),
        (["--max-new-tokens", 80], "more than the 64"),
        (["--chat"], "no chat template"),
    ],
)
def test_bad_requests_are_one_line_and_exit_two(folder: Path, more: list[Any], said: str) -> None:
    more = [folder / part if str(part).endswith("config.json") else part for part in more]
    ran = program("generate", folder / "model", "The cat", *more)
    assert ran.code in (1, 2)
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert ran.out == ""


def test_interventions_of_another_model_are_refused(folder: Path, tiny_gpt2: Any, tmp_path: Path) -> None:
    other = pc.Interventions([intervention(tiny_gpt2, ["mlp.0.3"], to=0.0)]).save(tmp_path / "other.json")
    ran = program("generate", folder / "model", "The cat", "--with", other)
    assert (ran.code, ran.out) == (2, "")
    assert "belong to model" in ran.err


def test_a_fit_writes_interventions_that_other_commands_take(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "shift.json"
    call = (
        "fit",
        "eigenshift",
        folder / "model",
        "--task",
        folder / "asked.jsonl",
        "--label",
        "tone",
        "--positive",
        "a",
    )
    ran = program(*call, "--k", 3, "--out", out, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["fit"] == "eigenshift"
    assert [(row["kind"], row["n_units"], row["scope"]) for row in ran.json["changes"]] == [("eigenshift", 3, "all")]
    assert f"wrote {out}" in ran.err
    stored = json.loads(out.read_text())
    assert stored["provenance"]["call"] == "fit.eigenshift"
    assert stored["provenance"]["arguments"]["k"] == 3
    assert program("replay", out).code == 0
    assert program("generate", folder / "model", "The cat", "--with", out, "--max-new-tokens", 4).code == 0
    shown = program(*call, "--k", 3, "--out", out)
    assert "3 directions" in shown.out


def test_units_with_scores_come_from_a_finding(folder: Path, tmp_path: Path) -> None:
    model = pc.load(folder / "model")
    text = {label: [f"{word} {n} {word}" for n in range(12)] for label, word in (("en", "cat"), ("fr", "lune"))}
    recording = pc.record(model, pc.corpus(text), statistics=("pooled",), quiet=True)
    found = pc.find.experts(recording, positive="fr", fdr=1, shuffles=0)
    found.save(tmp_path / "experts.json")
    ran = program(
        "fit",
        "aura",
        folder / "model",
        "--units",
        f"{tmp_path / 'experts.json'}:fr",
        "--out",
        tmp_path / "a.json",
        "--json",
    )
    assert ran.code == 0, ran.err
    assert ran.json["n_units"] == len(found.sets["fr"]) > 10
    assert program("replay", tmp_path / "a.json").code == 0


def test_a_fit_of_the_wrong_subject_or_target_is_one_line(folder: Path, tmp_path: Path) -> None:
    ran = program("fit", "neuron-adjust", folder / "model", "--forget", "fr", "--out", tmp_path / "x.json")
    assert ran.code == 2
    assert ran.err.startswith("patchclamp: ")
    ran = program("fit", "det0", folder / "model", "--units", "mlp.0.3", "--out", tmp_path / "no" / "x.json")
    assert ran.code == 2
    assert "does not exist" in ran.err
    assert not list(tmp_path.glob("*.json"))


OWN = [entry.name for entry in fits if entry.target.__module__.startswith("patchclamp.")]


@pytest.mark.parametrize("name", OWN)
def test_every_fit_explains_its_options_and_its_example_parses(name: str) -> None:
    from typer.main import get_command

    from patchclamp.cli.main import app
    from patchclamp.cli.registered import EXAMPLE

    signature = Signature.of(fits[name])
    assert {option for option in signature.kinds if not signature.helps.get(option)} <= {"quiet"}
    group: Any = get_command(app)
    for word in ("fit", name):
        group = group.get_command(None, word)
    example = EXAMPLE.search(inspect.getdoc(fits[name]) or "")
    assert example, f"the docstring of {name} has no line with Example: `patchclamp fit {name} ...`"
    words = shlex.split(example[1])
    assert words[:3] == ["patchclamp", "fit", name]
    group.make_context(name, words[3:])


def test_fits_and_kinds_are_listed() -> None:
    listed = {row["name"] for row in program("list", "fit", "--json").json["entries"]}
    assert {"aura", "eigenshift", "neuron-adjust"} <= listed
    kinds = {row["name"] for row in program("list", "intervention", "--json").json["entries"]}
    assert {"units", "eigenshift", "neuron-adjust"} <= kinds


def test_a_single_word_of_a_list_keeps_its_leading_space() -> None:

    def fits_tokens(model: Any, *, tokens: tuple[str, ...] = (), layers: tuple[int, ...] = ()) -> None:
        """Nothing."""

    values = Signature.of(fits_tokens).values
    assert values({"tokens": [" river", "sea, lake"], "layers": [" 3", "4,5"]}) == {
        "tokens": (" river", "sea", "lake"),
        "layers": (3, 4, 5),
    }
    assert values({"tokens": ["", " "]}) == {"tokens": ()}
