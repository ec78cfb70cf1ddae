"""What can't be used is refused in one clear line with exit code 1 or 2; nothing is left half-written, nothing is lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.conftest import Chain, made_chain
from tests.cli.program import Ran, contents, program


def refused(ran: Ran, code: int, *words: str) -> None:
    """One line that begins with `patchclamp:` and says the words; warnings may stand before it."""
    lines = ran.err.splitlines()
    said = [line for line in lines if not line.startswith("patchclamp: warning: ")]
    assert (ran.code, ran.out, len(said)) == (code, "", 1), ran
    assert said[0].startswith("patchclamp: ")
    for word in words:
        assert word in said[0]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Another model with its own recording and sets."""
    return made_chain("gpt2", tmp_path_factory.mktemp("other"), labels=("en", "fr"), n_layers=1, width=501, seed=5)


@pytest.fixture
def record(small: Chain, tmp_path: Path) -> Callable[..., Ran]:
    """Record into tmp_path/rec; `text` replaces the labelled text."""

    def run(*extra: Any, text: list[str] | None = None, model: Any = small.model) -> Ran:
        before = contents(tmp_path)
        ran = program("record", model, *(small.texts if text is None else text), "--out", tmp_path / "rec", *extra)
        assert contents(tmp_path) == before
        assert not (tmp_path / "rec").exists()
        return ran

    return run


def test_text_that_cannot_be_read(record: Callable[..., Ran], small: Chain, tmp_path: Path) -> None:
    good, bad = f"en={small.folder / 'en.txt'}", tmp_path / "bad.txt"
    refused(record(text=["--text", good, "--text", f"fr={tmp_path / 'none.txt'}"]), 2, "no file at", "none.txt")
    bad.write_bytes(b"")
    refused(record(text=["--text", good, "--text", f"fr={bad}"]), 2, "fr", "empty")
    bad.write_bytes(b" \n\n \n")
    refused(record(text=["--text", good, "--text", f"fr={bad}"]), 2, "no text", "blank")
    bad.write_bytes(b"en1 en2\nen3 \xff\xfe en4\n")
    refused(record(text=["--text", good, "--text", f"fr={bad}"]), 2, "bad.txt, line 2", "0xff", "UTF-8")


@pytest.mark.parametrize("given", ["en.txt", "=en.txt", "en="])
def test_text_options_that_are_no_label_and_file(record: Callable[..., Ran], given: str) -> None:
    refused(record(text=["--text", given]), 2, f"'{given}' is not LABEL=FILE", "fr=french.txt")


def test_a_label_given_twice_and_the_demo_beside_files(record: Callable[..., Ran], small: Chain) -> None:
    twice = [*small.texts, "--text", f"en={small.folder / 'fr.txt'}"]
    refused(record(text=twice), 2, "label 'en' twice")
    refused(record(text=[*small.texts, "--text", "demo"]), 2, "--text demo", "don't mix")
    refused(record(text=["--text", "demo:half"]), 2, "split 'half'", "find")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sites", "mlp,brain"], ["site 'brain'", "mlp"]),
        (["--layers", "0-3"], ["layer 1", "has 1 (0-0)"]),
        (["--layers", "one"], ["--layers 'one'", "0-3,7"]),
        (["--statistics", "firing,mood"], ["no statistic is called 'mood'", "moments"]),
        (["--engine", "steam"], ["no engine is called 'steam'", "local"]),
        (["--select", "response"], ["no tokens that count inside 'response'"]),
        (["--dtype", "int3"], ["dtype 'int3'", "bfloat16"]),
        (["--unit", "page"], ["unit 'page'", "block"]),
    ],
)
def test_options_out_of_range(record: Callable[..., Ran], options: list[str], words: list[str]) -> None:
    refused(record(*options), 2, *words)


def test_numbers_below_one_are_usage_errors(record: Callable[..., Ran]) -> None:
    for option in ("--max-tokens", "--max-documents", "--batch-tokens", "--workers"):
        ran = record(option, 0)
        assert (ran.code, ran.out) == (2, "")
        assert option in ran.err
        assert "Traceback" not in ran.err


def test_an_existing_folder_is_refused_and_kept(small: Chain, tmp_path: Path) -> None:
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / "mine.txt").write_text("mine")
    before = contents(tmp_path)
    options = (*small.texts, "--out", tmp_path / "rec")
    refused(program("record", small.model, *options), 2, "exists already", "--resume")
    refused(program("record", small.model, *options, "--resume"), 2, "no manifest.json", "no recording to go on with")
    assert contents(tmp_path) == before


def test_resume_refuses_another_corpus_model_or_argument(small: Chain, other: Chain) -> None:
    before = contents(small.recording)
    out = ("--out", small.recording, "--resume")
    refused(program("record", other.model, *small.texts, *out), 2, "holds a recording of model")
    swapped = [part.replace("fr.txt", "de.txt") for part in small.texts]
    refused(program("record", small.model, *swapped, *out), 2, "the text of label 'fr' is not the one")
    refused(program("record", small.model, *small.texts[:4], *out), 2, "labels en, fr, de")
    refused(program("record", small.model, *small.texts, *out, "--threshold", "0.5"), 2, "statistics")
    assert contents(small.recording) == before


@pytest.fixture
def broken(small: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the model to break."""
    return Path(shutil.copytree(small.model, tmp_path_factory.mktemp("broken") / "model"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(record: Callable[..., Ran], broken: Path, value: float) -> None:
    weights = load_file(broken / "model.safetensors")
    weights["transformer.h.0.mlp.c_fc.weight"][0, 3] = value
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    refused(record(model=broken), 2, "h.0.mlp.c_fc.weight", "1 NaN or infinite")


def test_a_checkpoint_that_would_have_to_be_unpickled(record: Callable[..., Ran], broken: Path) -> None:
    torch.save(load_file(broken / "model.safetensors"), broken / "pytorch_model.bin")
    (broken / "model.safetensors").unlink()
    refused(record(model=broken), 2, "pytorch_model.bin", "unpickled", "safetensors")


def test_a_truncated_checkpoint_a_folder_that_is_none_and_no_model(
    record: Callable[..., Ran], broken: Path, tmp_path: Path
) -> None:
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(record(model=broken), 2, "can't load")
    refused(record(model=tmp_path), 2, "no config.json")
    refused(record(model=tmp_path / "nothing" / "here"), 2, "no model folder at")


@pytest.fixture
def damaged(small: Chain, tmp_path: Path) -> Path:
    """A copy of the recording to damage."""
    return Path(shutil.copytree(small.recording, tmp_path / "rec"))


def found_in(recording: Path, *options: Any) -> Ran:
    """Find in a recording; nothing may be written."""
    out = recording.parent / "sets.json"
    ran = program("find", "language", recording, "--out", out, *options)
    assert not list(recording.parent.glob("*.json"))
    assert not list(recording.parent.glob("*.safetensors"))
    assert not list(recording.parent.glob(".*"))
    return ran


def test_truncated_altered_missing_and_foreign_shards_are_named(damaged: Path, other: Chain) -> None:
    shard = sorted(damaged.glob("shard-*"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    refused(found_in(damaged), 1, shard.name)
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(found_in(damaged), 1, shard.name)
    shutil.copyfile(sorted(other.recording.glob("shard-*"))[1], shard)
    refused(found_in(damaged), 1, shard.name)
    shard.unlink()
    refused(found_in(damaged), 1, shard.name)
    shard.write_bytes(whole)
    foreign = damaged / "shard-9-00000.safetensors"
    shutil.copyfile(sorted(other.recording.glob("shard-*"))[0], foreign)
    refused(found_in(damaged), 1, foreign.name, "doesn't belong")


def test_a_manifest_that_is_none(damaged: Path, tmp_path: Path) -> None:
    manifest = damaged / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole[: len(whole) // 2])
    refused(found_in(damaged), 1, "manifest.json is not valid JSON", "truncated")
    manifest.write_text(whole.replace('"complete": true', '"complete": false'))
    refused(found_in(damaged), 2, "isn't finished", "--resume")
    manifest.unlink()
    refused(found_in(damaged), 2, "no manifest.json")
    refused(found_in(tmp_path / "nothing"), 2, "no such folder")


def test_too_few_labels_and_too_few_tokens(small: Chain, tmp_path: Path) -> None:
    one = tmp_path / "one"
    assert program("record", small.model, *small.texts[:2], "--out", one).code == 0
    refused(found_in(one), 2, "label")
    few, line = tmp_path / "few", tmp_path / "fr.txt"
    line.write_text("fr1 fr2 fr3\n")
    assert program("record", small.model, *small.texts[:2], "--text", f"fr={line}", "--out", few).code == 0
    refused(found_in(few), 2, "'fr'", "3 tokens")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "guess"], ["method 'guess'", "lape"]),
        (["--rate", "2"], ["rate"]),
        (["--site", "attn"], ["site 'attn'"]),
        (["--classes", "rare"], ["'rare'", "specific"]),
        (["--lambda", "0.1", "--method", "lape"], ["lape has no lambda"]),
    ],
)
def test_finder_options_out_of_range(small: Chain, tmp_path: Path, options: list[str], words: list[str]) -> None:
    ran = program("find", "language", small.recording, "--out", tmp_path / "sets.json", *options)
    refused(ran, 2, *words)
    assert not list(tmp_path.iterdir())


def test_unknown_commands_finders_and_options_are_usage_errors(small: Chain, tmp_path: Path) -> None:
    for arguments in (["sing"], ["find", "mood", "rec"], ["find", "language", "rec", "--volume", "3"], ["record"]):
        ran = program(*arguments)
        assert (ran.code, ran.out) == (2, ""), arguments
        assert "Usage: " in ran.err
        assert "Traceback" not in ran.err
    refused(program("find", "language", small.recording, "--out", tmp_path / "no" / "s.json"), 2, "does not exist")
    refused(program("list", "song"), 2, "no kind 'song'", "finder")
    refused(program("models", "check", "song"), 2, "'song'")


@pytest.fixture
def sets(small: Chain, tmp_path: Path) -> Path:
    """A copy of the sets file to change."""
    return Path(shutil.copyfile(small.sets, tmp_path / "sets.json"))


def clamped(small: Chain, sets: Any, *options: Any, model: Any = None) -> Ran:
    return program("effect", model or small.model, sets, *small.texts, "--controls", 1, *options)


def test_sets_of_another_model_and_sets_that_are_damaged(small: Chain, other: Chain, sets: Path) -> None:
    refused(clamped(small, other.sets), 2, "belong to model")
    whole = json.loads(sets.read_text())
    sets.write_text(small.sets.read_text()[:-200])
    refused(clamped(small, sets), 1, "sets.json is not valid JSON", "truncated")
    sets.write_text(json.dumps({"format": "something/1"}))
    refused(clamped(small, sets), 1, "something/1", "patchclamp.sets/1")
    sets.write_text(json.dumps({key: value for key, value in whole.items() if key != "model"}))
    refused(clamped(small, sets), 1, "not a complete")
    for wrong, words in (
        ("mlp.0.500", ["mlp.0.500"]),
        ("mlp.7.1", ["layer 7"]),
        ("brain.0.1", ["brain"]),
        ("x", ["'x'"]),
    ):
        whole["sets"]["fr"] = {"units": [wrong]}
        sets.write_text(json.dumps(whole))
        refused(clamped(small, sets), 2, *words)
    refused(clamped(small, sets.with_name("none.json")), 2, "no file at")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--set", "fr,xx"], ["holds no set 'xx'", "en, fr, de"]),
        (["--to", "nothing"], ["--to 'nothing'", "mean"]),
        (["--to", "mean"], ["recording"]),
        (["--scale", "2", "--add", "1"], ["one of to=, scale=, add="]),
        (["--scope", "some"], ["scope='some'", "prompt"]),
        (["--scope", "generated"], ["--select", "generated"]),
        (["--out", "/nowhere/e.json"], ["/nowhere does not exist"]),
        (["--column", "colour=red"], ["'colour=red'", "response"]),
    ],
)
def test_effect_options_out_of_range(small: Chain, options: list[str], words: list[str]) -> None:
    refused(clamped(small, small.sets, *options), 2, *words)


def test_edits_that_cannot_be_made(small: Chain, tmp_path: Path) -> None:
    out = tmp_path / "edited"
    start = ("edit", small.model, small.sets, "--out", out)
    refused(program(*start, "--set", "xx"), 2, "no set 'xx'", "en, fr, de")
    refused(program(*start, "--set", "fr", "--mode", "melt"), 2, "mode 'melt'", "ablate")
    refused(program(*start, "--set", "fr", "--mode", "mean"), 2, "recording")
    assert not list(tmp_path.iterdir())
    out.mkdir()
    refused(program(*start, "--set", "fr"), 2, "exists already")
    assert [path.name for path in tmp_path.iterdir()] == ["edited"]


def test_atlases_that_are_none(small: Chain, tmp_path: Path) -> None:
    atlas = tmp_path / "a.duckdb"
    refused(program("atlas", "build", atlas), 2, "nothing to put into an atlas")
    refused(program("atlas", "query", atlas), 2, str(atlas))
    atlas.write_text("not a database, not at all")
    refused(program("atlas", "query", atlas), 1, "a.duckdb")
    assert program("atlas", "build", atlas, "--recording", small.recording, "--overwrite").code == 0
    refused(program("atlas", "query", atlas, "--unit", "mlp.9.9"), 2, "layer 9")
    refused(program("atlas", "query", atlas, "SELECT nothing FROM nowhere"), 2, "nowhere")
    refused(program("atlas", "query", atlas, "DROP TABLE units"), 2)
    refused(program("atlas", "query", atlas, "SELECT 1", "--unit", "mlp.0.1"), 2, "not both")


def test_results_that_cannot_be_replayed(small: Chain, tmp_path: Path) -> None:
    refused(program("replay", tmp_path / "none.json"), 2, "no file at")
    refused(program("replay", tmp_path), 2, "no recording")
    (tmp_path / "x.json").write_text("[1, 2]")
    refused(program("replay", tmp_path / "x.json"), 2, "no result that can be replayed")


def test_two_labels_with_the_same_text_are_warned_of_not_refused(small: Chain, tmp_path: Path) -> None:
    again = Path(shutil.copyfile(small.folder / "en.txt", tmp_path / "again.txt"))
    for path in (again, small.folder / "en.txt"):  # the same bytes, the same file
        out = tmp_path / f"rec-{path.stem}"
        ran = program("record", small.model, *small.texts[:2], "--text", f"xx={path}", "--out", out, "--json")
        assert ran.code == 0
        assert ran.json["labels"]["xx"] == ran.json["labels"]["en"]
        assert len(ran.warnings) == len(ran.err.splitlines()) == 1
        assert "labels 'en' and 'xx' hold the same text" in ran.warnings[0]
