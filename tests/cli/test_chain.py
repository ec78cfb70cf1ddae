"""The whole path through the program, from files: planted truth is found exactly, results are pure JSON and replayable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.cli.conftest import Chain
from tests.cli.program import program, real_program, text_options
from tests.find.planted import plant
from transformers import AutoModelForCausalLM, AutoTokenizer

ROW = {"set", "text", "metric", "plain", "clamped", "effect", "low", "high", "control_mean", "control_sd", "p"}


def test_every_step_prints_pure_json_and_notes_go_to_stderr(chain: Chain) -> None:
    assert {name: ran.code for name, ran in chain.ran.items()} == {"record": 0, "find": 0, "effect": 0}
    assert chain.ran["record"].json["labels"]["fr"] == {"documents": 24, "tokens": 480}
    assert chain.ran["find"].json["classes"] == chain.plant.counts
    assert chain.ran["find"].err == f"wrote {chain.sets}\n"
    assert f"wrote {chain.effects}" in chain.ran["effect"].err
    assert "Traceback" not in "".join(ran.err for ran in chain.ran.values())


def test_the_planted_neurons_are_found_exactly(chain: Chain) -> None:
    stored = json.loads(chain.sets.read_text())
    assert stored["format"] == "patchclamp.sets/1"
    assert stored["model"]["fingerprint"] == chain.ran["record"].json["model"]["fingerprint"]
    assert stored["classes"] == chain.plant.counts
    assert {label: entry["units"] for label, entry in stored["sets"].items()} == chain.plant.sets()
    assert all(len(entry["scores"]) == len(entry["units"]) for entry in stored["sets"].values())
    legend = stored["unit_classes"]["legend"]
    found = {name: set[str]() for name in legend.values()}
    for layer, runs in enumerate(stored["unit_classes"]["layers"]):
        for index, letter in enumerate(spelled_out(runs)):
            found[legend[letter]].add(f"mlp.{layer}.{index}")
    assert found == {kind: set(units) for kind, units in chain.plant.classes.items()}


def spelled_out(runs: str) -> str:
    """`3u2s` -> `uuuss`, by plain reading."""
    letters, number = "", ""
    for sign in runs:
        if sign.isdigit():
            number += sign
        else:
            letters, number = letters + sign * int(number or 1), ""
    return letters


def test_classes_lambda_rate_and_method_narrow_or_change_the_sets(chain: Chain, tmp_path: Path) -> None:
    out = tmp_path / "sets.json"
    assert program("find", "language", chain.recording, "--out", out, "--classes", "specific").code == 0
    stored = json.loads(out.read_text())
    assert {label: entry["units"] for label, entry in stored["sets"].items()} == chain.plant.sets("specific")
    assert stored["classes"] == chain.plant.counts
    ran = program("find", "language", chain.recording, "--out", out, "--lambda", "0.1", "--rate", "0.005", "--json")
    assert ran.json["parameters"]["lambda"] == 0.1
    assert ran.json["parameters"]["rate"] == 0.005
    assert sum(len(set(entry["units"])) for entry in json.loads(out.read_text())["sets"].values()) <= 6
    ran = program("find", "language", chain.recording, "--out", out, "--method", "lape", "--shuffles", 2, "--json")
    assert (ran.json["method"], ran.json["null"]["shuffles"]) == ("lape", 2)


def test_effects_have_the_agreed_rows_and_hit_the_languages_that_were_wired(chain: Chain) -> None:
    rows = chain.ran["effect"].json["rows"]
    assert [(row["set"], row["text"]) for row in rows] == [
        (name, text) for name in chain.plant.labels for text in chain.plant.labels
    ]
    for row in rows:
        assert row.keys() >= ROW
        assert row["metric"] == "perplexity"
        assert row["effect"] == pytest.approx(row["clamped"] - row["plain"])
        assert row["low"] <= row["effect"] <= row["high"]
        if row["set"] == row["text"]:
            assert row["effect"] > 5
            assert row["p_holm"] < 0.05
        else:
            assert row["effect"] < 5
    assert json.loads(chain.effects.read_text())["rows"] == rows


def test_plain_perplexity_is_that_of_plain_transformers(chain: Chain) -> None:
    ran = program("perplexity", chain.model, *chain.texts, "--json")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(chain.model), AutoTokenizer.from_pretrained(chain.model)
    for row in ran.json["rows"]:
        lines = (chain.folder / f"{row['text']}.txt").read_text().splitlines()
        ids = torch.tensor([tokenizer(line)["input_ids"] for line in lines])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss  # all documents are equally long
        assert row["value"] == pytest.approx(float(loss.exp()), rel=1e-5)
        assert row["low"] < row["value"] < row["high"]
    effects = chain.ran["effect"].json["rows"]
    assert {row["text"]: row["plain"] for row in effects} == pytest.approx(
        {row["text"]: row["value"] for row in ran.json["rows"]}
    )


@pytest.mark.parametrize("mode", ["ablate", "mean"])
def test_an_edit_loads_in_plain_transformers_and_does_what_was_measured(
    chain: Chain, tmp_path: Path, mode: str
) -> None:
    out = tmp_path / "edited"
    means = ("--recording", chain.recording) if mode == "mean" else ()
    ran = program("edit", chain.model, chain.sets, "--set", "fr", "--mode", mode, "--out", out, *means, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["mode"] == mode
    assert json.loads((out / "edit.json").read_text())["units_per_layer"] == ran.json["units_per_layer"]
    edited, plain = (AutoModelForCausalLM.from_pretrained(folder) for folder in (out, chain.model))
    for name in chain.plant.sets()["fr"]:
        layer, index = map(int, name.split(".")[1:])
        assert not column(edited, layer, index).any()
        assert column(plain, layer, index).any()
    ids = torch.tensor([AutoTokenizer.from_pretrained(out)((chain.folder / "fr.txt").read_text())["input_ids"][:40]])
    with torch.no_grad():
        assert (edited(ids).logits - plain(ids).logits).abs().max() > 0.1
    measured = program("perplexity", out, *chain.texts, "--json").json["rows"]
    if mode == "ablate":
        effects = {row["text"]: row["clamped"] for row in chain.ran["effect"].json["rows"] if row["set"] == "fr"}
        assert {row["text"]: row["value"] for row in measured} == pytest.approx(effects, rel=1e-4)


def column(model: Any, layer: int, index: int) -> torch.Tensor:
    """What neuron `index` writes."""
    if hasattr(model, "transformer"):
        return model.transformer.h[layer].mlp.c_proj.weight[index]
    return model.model.layers[layer].mlp.down_proj.weight[:, index]


def test_an_atlas_answers_with_the_planted_facts(chain: Chain, tmp_path: Path) -> None:
    atlas, specific = tmp_path / "m.duckdb", chain.plant.classes["specific"][0]
    built = program(
        "atlas",
        "build",
        atlas,
        "--recording",
        chain.recording,
        "--sets",
        chain.sets,
        "--effects",
        chain.effects,
        "--json",
    )
    assert built.code == 0, built.err
    page = program("atlas", "query", atlas, "--unit", specific, "--json").json
    assert [row["class"] for row in page["classes"]] == ["specific"]
    fired = {row["label"]: row["fired"] for row in page["statistics"]}
    assert {label for label, count in fired.items() if count} == set(chain.plant.serves[specific])
    counted = program("atlas", "query", atlas, "SELECT class, count(*) AS n FROM classes GROUP BY class", "--json").json
    assert {row["class"]: row["n"] for row in counted["rows"]} == chain.plant.counts
    assert program("atlas", "query", atlas, "--json").code == 0
    exported = program("atlas", "export", atlas, "--out", tmp_path / "tables", "--json")
    assert exported.code == 0
    assert all(Path(file).suffix == ".parquet" and Path(file).is_file() for file in exported.json["files"])
    again = program("atlas", "build", atlas, "--recording", chain.recording)
    assert (again.code, "exists already" in again.err) == (2, True)


def test_every_result_replays(chain: Chain) -> None:
    for result in (chain.sets, chain.effects, chain.recording):
        ran = program("replay", result, "--json")
        assert ran.code == 0, ran.err
        assert (ran.json["agrees"], ran.json["differences"]) == (True, [])
        assert ran.json["compared"] > 100


@pytest.mark.slow
def test_the_real_program_does_the_same_from_a_shell(tmp_path: Path) -> None:
    planted = plant(tmp_path / "model", family="llama", n_layers=1, width=600)
    texts = text_options({label: Path(path.name) for label, path in planted.write_text(tmp_path).items()})
    ran = real_program("record", "model", *texts, "--out", "rec", "--json", folder=tmp_path)
    assert (ran.code, ran.err) == (0, "")
    assert ran.json["labels"]["ja"]["tokens"] == 480
    ran = real_program("find", "language", "rec", "--out", "neurons.json", "--json", folder=tmp_path)
    assert (ran.code, ran.err, ran.json["classes"]) == (0, "wrote neurons.json\n", planted.counts)
    measured = real_program(
        "effect",
        "model",
        "neurons.json",
        *texts,
        "--controls",
        2,
        "--to",
        0,
        "--json",
        "--out",
        "e.json",
        folder=tmp_path,
    )
    assert measured.code == 0
    table = np.array([row["effect"] for row in measured.json["rows"]]).reshape(4, 4)
    assert (np.diag(table) > table.max(axis=0) - 1e-9).all()
    assert (np.diag(table) > table.max(axis=1) - 1e-9).all()
    ran = real_program("replay", tmp_path / "e.json", folder=Path("/"))  # from anywhere
    assert (ran.code, "agrees" in ran.out) == (0, True)
