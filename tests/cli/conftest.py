"""Planted checkpoints and the files that the commands make of them, once per run of the tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.cli.program import Ran, program, text_options
from tests.find.planted import Plant, plant


@dataclass(frozen=True)
class Chain:
    """A planted checkpoint, its text, and what record, find and effect made of them."""

    plant: Plant
    folder: Path
    texts: list[str]
    ran: dict[str, Ran]

    @property
    def model(self) -> Path:
        return self.plant.path

    @property
    def recording(self) -> Path:
        return self.folder / "rec"

    @property
    def sets(self) -> Path:
        return self.folder / "neurons.json"

    @property
    def effects(self) -> Path:
        return self.folder / "effects.json"


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """record -> find language -> effect with --json, for each family; read only."""
    return made_chain(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A narrower planted GPT-2 of three languages, one layer, for what doesn't depend on the family; read only."""
    return made_chain("gpt2", tmp_path_factory.mktemp("small"), labels=("en", "fr", "de"), n_layers=1, width=500)


def made_chain(family: str, folder: Path, **shape: Any) -> Chain:
    planted = plant(folder / "model", family=family, **shape)
    texts = text_options(planted.write_text(folder))
    options = [*texts, "--json"]
    sets = folder / "neurons.json"
    clamp = ("--controls", 3, "--permutations", 1999, "--resamples", 200, "--out", folder / "effects.json")
    ran = {
        "record": program("record", planted.path, *options, "--out", folder / "rec"),
        "find": program("find", "language", folder / "rec", "--out", sets, "--json"),
        "effect": program("effect", planted.path, sets, *options, *clamp),
    }
    return Chain(planted, folder, texts, ran)
