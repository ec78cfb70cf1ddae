"""`--features FOLDER`: what a dictionary finds is recorded, found, clamped, measured, stored and replayed by the program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import Chain
from tests.cli.program import Ran, program

from patchclamp.models import LinearDictionary, UnitSet, load


@pytest.fixture(scope="module")
def features(small: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load(small.model, check=False)
    rows = torch.randn(12, model.anatomy.d_model, generator=torch.Generator().manual_seed(0))
    one = LinearDictionary.of_directions("dirs", "mlp_out", 0, rows, model=model)
    return one.save(tmp_path_factory.mktemp("features") / "dirs")


@pytest.fixture(scope="module")
def recording(small: Chain, features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recorded") / "rec"
    asked = ("--sites", "dirs,mlp", "--features", features, "--statistics", "firing,moments", "--out", out, "--json")
    assert accepted(program("record", small.model, *small.texts, *asked)).json["sites"]["dirs"] == 12
    return out


def accepted(ran: Ran) -> Ran:
    assert ran.code == 0, ran.err
    return ran


def refused(ran: Ran, *said: str) -> None:
    assert ran.code == 2
    lines = [line for line in ran.err.splitlines() if line.startswith("patchclamp: ") and "warning" not in line]
    assert len(lines) == 1
    assert all(one in lines[0] for one in said), lines
    assert not ran.out


def test_features_go_the_whole_way(small: Chain, features: Path, recording: Path, tmp_path: Path) -> None:
    sets, effects, atlas = tmp_path / "sets.json", tmp_path / "effects.json", tmp_path / "atlas.duckdb"
    found = accepted(program("find", "language", recording, "--site", "dirs", "--rate", 0.2, "--out", sets, "--json"))
    assert found.json["site"] == "dirs" or found.json["sites"] == ["dirs"]
    model = load(small.model, check=False).with_features(*[_dictionary(features)])
    units = UnitSet.of(model, ["dirs.0.1", "dirs.0.5"])
    units.save(sets)
    few = ("--controls", 1, "--permutations", 99, "--resamples", 20, "--out", effects, "--json")
    rows = accepted(program("effect", small.model, sets, *small.texts, "--features", features, *few)).json["rows"]
    assert len(rows) == 3
    assert all(row["n_units"] == 2 and row["effect"] != 0 for row in rows)
    built = (
        "--recording",
        recording,
        "--sets",
        sets,
        "--effects",
        effects,
        "--model",
        small.model,
        "--features",
        features,
    )
    accepted(program("atlas", "build", atlas, *built))
    page = accepted(program("atlas", "query", atlas, "--unit", "dirs.0.5", "--json")).json
    assert page["unit"] == "dirs.0.5" or page["name"] == "dirs.0.5"
    again = accepted(program("replay", effects, "--json")).json
    assert again["agrees"]


def _dictionary(folder: Path) -> Any:
    from patchclamp.models import load_dictionary

    return load_dictionary(folder)


def test_measuring_with_features_beside_changes_no_number(small: Chain, features: Path) -> None:
    plain = accepted(program("perplexity", small.model, *small.texts, "--json")).json
    beside = accepted(program("perplexity", small.model, *small.texts, "--features", features, "--json")).json
    assert plain["rows"] == beside["rows"]


def test_units_without_their_dictionary_are_refused(
    small: Chain, features: Path, recording: Path, tmp_path: Path
) -> None:
    sets = tmp_path / "sets.json"
    UnitSet.of(load(small.model, check=False).with_features(_dictionary(features)), ["dirs.0.1"]).save(sets)
    refused(program("effect", small.model, sets, *small.texts), "dirs", "--features FOLDER")
    edited = ("--set", "units", "--out", tmp_path / "edited", "--features", features)
    refused(program("edit", small.model, sets, *edited), "features of a dictionary", "use clamp")
    assert not (tmp_path / "edited").exists()
    out = ("--out", tmp_path / "rec")
    refused(program("record", small.model, *small.texts, "--sites", "dirs", *out), "site 'dirs' asked for")
    refused(program("record", small.model, *small.texts, "--features", tmp_path, *out), "no features.json")
    twice = ("--features", features, "--features", features)
    refused(program("record", small.model, *small.texts, *twice, *out), "two dictionaries called 'dirs'")
    refused(program("atlas", "build", tmp_path / "a.duckdb", "--recording", recording, *twice), "--model")
    assert not (tmp_path / "rec").exists()


def test_every_command_that_takes_a_model_takes_features() -> None:
    commands = [("record",), ("effect",), ("score",), ("perplexity",), ("edit",), ("atlas", "build")]
    commands += [("find", "discrimination"), ("read", "tokens")]
    for one in commands:
        assert "--features" in accepted(program(*one, "--help")).out, one


def test_a_folder_of_saelens_serves_and_is_found_again(small: Chain, tmp_path: Path) -> None:
    from patchclamp.read.sae_kinds import KINDS
    from patchclamp.read.sae_lens import save_sae_lens

    width = load(small.model, check=False).anatomy.d_model
    draw = torch.Generator().manual_seed(3)
    rows = torch.randn(9, width, generator=draw)
    weights = {"encoder": rows.T.contiguous(), "encoder_bias": torch.zeros(9), "decoder_bias": torch.zeros(width)}
    sae = KINDS["relu"]("sae", "resid", 0, directions=rows, **weights)
    folder = save_sae_lens(sae, tmp_path / "published")
    asked = (
        "--sites",
        "sae",
        "--features",
        folder,
        "--statistics",
        "firing,moments",
        "--out",
        tmp_path / "rec",
        "--json",
    )
    assert accepted(program("record", small.model, *small.texts, *asked)).json["sites"]["sae"] == 9
    assert accepted(program("replay", tmp_path / "rec", "--json")).json["agrees"]
