"""Descriptions in an atlas: on the units' pages, once, and in atlases of the schema before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from patchclamp.atlas import SCHEMA_VERSION, Atlas, build
from patchclamp.core.errors import InputError
from patchclamp.read.descriptions import Description, Descriptions
from patchclamp.read.lm_head import tokens


def described(model: Any, text: str = 'the word "river"', medium: str = "text") -> Descriptions:
    found = (
        Description("mlp.1.7", text, 1.5, -0.5, -10.0, 3.0, (("other", 1.0),)),
        Description("mlp.0.2", "inactive", 0.0, 0.0, 0.0, 0.0),
    )
    return Descriptions(found, "words", 0.2, medium, model.identity, {"call": "read.describe"})


def test_descriptions_go_on_the_pages_of_their_units(tiny_llama: Any, tmp_path: Path) -> None:
    path = described(tiny_llama).save(tmp_path / "descriptions.json")
    with build(tmp_path / "a.duckdb", descriptions=path, quiet=True) as atlas:
        assert atlas.unit("mlp.1.7")["descriptions"] == [
            {"method": "words", "run_id": 1, "description": 'the word "river"', "score": 1.5, "log_probability": -0.5,
             "log_prior": -10.0, "margin": 3.0, "explains": True}
        ]  # fmt: skip
        assert not atlas.unit("mlp.0.2")["descriptions"][0]["explains"]
        assert atlas.unit("mlp.0.3")["descriptions"] == []


def test_the_same_descriptions_are_taken_once(tiny_llama: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.duckdb"
    build(path, descriptions=described(tiny_llama), quiet=True).close()
    with pytest.raises(InputError, match="in this atlas already"):
        build(path, descriptions=described(tiny_llama).save(tmp_path / "d.json"), append=True, quiet=True)
    with build(path, descriptions=described(tiny_llama, "another"), append=True, quiet=True) as atlas:
        assert [row["description"] for row in atlas.unit("mlp.1.7")["descriptions"]] == ['the word "river"', "another"]


def test_an_atlas_from_before_descriptions_is_read_and_gets_them(tiny_llama: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.duckdb"
    build(path, tokens=tokens(tiny_llama, units=["mlp.1.7"], k=2), quiet=True).close()
    with duckdb.connect(str(path)) as connection:
        connection.execute("DROP TABLE descriptions")
        connection.execute("UPDATE about SET schema_version = 1")
    with Atlas.open(path) as old:
        assert old.unit("mlp.1.7")["descriptions"] == []
        assert len(old.unit("mlp.1.7")["tokens"]) == 4
    with build(path, descriptions=described(tiny_llama), append=True, quiet=True) as atlas:
        assert atlas.about["schema_version"] == SCHEMA_VERSION
        assert len(atlas.unit("mlp.1.7")["descriptions"]) == 1
        assert "chosen" in atlas.tables()["descriptions"]["columns"]["description"]["about"]


def test_other_things_are_refused(tiny_llama: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image network"):
        build(tmp_path / "a.duckdb", descriptions=described(tiny_llama, medium="image"), quiet=True)
    with pytest.raises(InputError, match="needed, not int"):
        build(tmp_path / "a.duckdb", descriptions=[3], quiet=True)
