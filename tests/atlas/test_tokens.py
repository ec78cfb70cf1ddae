"""Token maps in an atlas: both ends of every unit, once, with their strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from patchclamp.atlas import Atlas, build
from patchclamp.core.errors import InputError, MismatchError
from patchclamp.read.lm_head import tokens, tokens_of


def test_a_map_goes_into_an_atlas_and_comes_back(tiny_llama: Any, tmp_path: Path) -> None:
    made = tokens(tiny_llama, sites=("mlp", "head"), k=3)
    path = made.save(tmp_path / "tokens.json")
    with build(tmp_path / "a.duckdb", tokens=path, quiet=True) as atlas:
        assert (
            atlas.sql("SELECT kind, method, source FROM runs").rows
            == [{"kind": "tokens", "method": "tokens", "source": str(path)}]
            or len(atlas.sql("SELECT kind, method, source FROM runs").rows) == 1
        )
        n = atlas.sql("SELECT count(*) AS n FROM tokens").rows
        assert str(2 * 3 * len(made)) in str(n)
        for unit in ("mlp.1.17", "head.2.1"):
            page = atlas.unit(unit)
            row = made.index(unit)
            for sign, ids in ((1, made.top_ids), (-1, made.bottom_ids)):
                mine = [entry for entry in page["tokens"] if entry["sign"] == sign]
                assert [entry["token_id"] for entry in mine] == ids[row].tolist()
                assert [entry["token"] for entry in mine] == [made.token(int(one)) for one in ids[row]]


def test_a_map_is_taken_once_and_only_for_its_model(tiny_llama: Any, tiny_gpt2: Any, tmp_path: Path) -> None:
    made = tokens(tiny_llama, units=["mlp.0.1"], k=2)
    path = tmp_path / "a.duckdb"
    build(path, tokens=made, quiet=True).close()
    with pytest.raises(InputError, match="in this atlas already"):
        build(path, tokens=made, append=True, quiet=True)
    with pytest.raises(MismatchError):
        build(path, tokens=tokens(tiny_gpt2, units=["mlp.0.1"], k=2), append=True, quiet=True)
    build(path, tokens=tokens(tiny_llama, units=["mlp.0.2"], k=2), append=True, quiet=True).close()
    with Atlas.open(path) as atlas:
        assert len(atlas.unit("mlp.0.2")["tokens"]) == 4
    with pytest.raises(InputError, match="raw directions"):
        build(tmp_path / "b.duckdb", tokens=tokens_of(tiny_llama, torch.randn(2, 32)), quiet=True)
    with pytest.raises(InputError, match="TokenMap"):
        build(tmp_path / "b.duckdb", tokens=[3], quiet=True)
