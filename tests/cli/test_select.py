"""`patchclamp select`: what it prints and writes, and one line for what can't be done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.train.planted_topics import VARIANTS, latents, planted_model, texts
from typer.testing import CliRunner

from patchclamp.cli.main import app
from patchclamp.core.errors import InputError


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("select")
    model = planted_model()
    model.hf.save_pretrained(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    latents().save(folder / "latents")
    for topic in "abc":
        (folder / f"{topic}.txt").write_text("\n".join(texts(topic, 8, range(12, VARIANTS), 0)), encoding="utf-8")
    (folder / "target.txt").write_text("\n".join(texts("a", 4, range(12), 1)), encoding="utf-8")
    return folder


def arguments(files: Path) -> list[str]:
    return [f"--pool=a={files / 'a.txt'}", f"--pool=b={files / 'b.txt'}", f"--pool=c={files / 'c.txt'}"]


def test_features_choose_and_the_samples_are_written_for_training(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "chosen.jsonl"
    call = ["select", "features", str(files / "model"), "--dictionary", str(files / "latents"), *arguments(files)]
    call += [f"--target=t={files / 'target.txt'}", "--budget", "8", "--out", str(out), "--json"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["counts"] == {"a": 8}
    assert found["provenance"]["arguments"]["dictionary"]["fingerprint"] == latents().fingerprint
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in lines] == [row["text"] for row in found["rows"]]


def test_ways_without_a_model_need_none(files: Path) -> None:
    call = [
        "select",
        "bm25",
        *arguments(files),
        f"--target=t={files / 'a.txt'}",
        "--budget",
        "0.1",
        "--k1",
        "1.2",
        "--json",
    ]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n"] == 3
    one, two = (
        json.loads(CliRunner().invoke(app, ["select", "random", *arguments(files), f"--seed={k}", "--json"]).stdout)
        for k in (1, 2)
    )
    assert one["rows"] != two["rows"]


def test_tokens_are_counted_by_the_model_that_is_named(files: Path) -> None:
    call = [
        "select",
        "bm25",
        *arguments(files),
        f"--target=t={files / 'a.txt'}",
        "--budget",
        "30",
        "--counting",
        "tokens",
    ]
    done = CliRunner().invoke(app, [*call, "--model", str(files / "model"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n"] == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "many"], "neither a number nor a share"),
        (["--budget", "100"], "a budget of 100 samples asked for, but the pool has 24"),
        (["--out", "nowhere/x.json"], "the folder nowhere does not exist"),
        (["--counting", "tokens"], "needs a tokenizer"),
    ],
)
def test_what_cant_be_done_is_said(files: Path, more: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["select", "bm25", *arguments(files), f"--target=t={files / 'a.txt'}", *more])
    assert isinstance(done.exception, InputError) or done.exit_code == 2
    assert message in (str(done.exception) + done.output)
