"""An atlas filled from known arrays: two sites (one with experts), hostile labels, one run of every kind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from patchclamp.atlas import Atlas, Writer, schema
from patchclamp.atlas.connection import scratch_folder, writing
from patchclamp.models.units import UnitSet

HOSTILE = "fr'; DROP TABLE units; --"


@pytest.fixture(scope="session")
def identity() -> dict[str, Any]:
    """The identity of a small model: 6 + 8 mlp units (two experts in layer 1), 2 x 4 attn units."""
    sites = {"attn": {"widths": [4, 4], "experts": [0, 0]}, "mlp": {"widths": [6, 8], "experts": [0, 2]}}
    return {
        "name": "toy",
        "type": "llama",
        "fingerprint": "ab" * 32,
        "source": None,
        "dtype": "float32",
        "sites": sites,
    }


@pytest.fixture(scope="session")
def filled(identity: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """path: the atlas file; the other attributes are the arrays that went in."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("filled") / "toy's atlas.duckdb"
    given = SimpleNamespace(
        path=path,
        labels=("en", HOSTILE),
        statistics={
            "n": np.array([[40] * 14, [50] * 14]),
            "fired": rng.integers(0, 40, (2, 14)),
            "rate": rng.random((2, 14)),
            "own_number": rng.random((2, 14)).astype(np.float32),
        },
        attn={"mean": rng.standard_normal((2, 8))},
        documents=rng.integers(-1, 3, (14, 2)),
        positions=rng.integers(0, 9, (14, 2)),
        values=rng.random((14, 2)).astype(np.float32),
        scores=np.where(np.arange(28) % 9 == 4, np.nan, rng.random(28)).reshape(2, 14),
        chosen=rng.random((2, 14)) > 0.5,
        codes=(np.arange(14) % 3 - 1).astype(np.int8),
        unit_scores=rng.random(14),
        units=UnitSet.of(identity, ["mlp.0.1", "mlp.1.e1.2", "attn.1.0"], [1.0, 2.0, 3.0]),
        effects=[
            {"set": "en", "text": HOSTILE, "metric": "perplexity", "plain": 1.5, "clamped": np.float64(2.5), "effect": 1.0,
             "low": None, "high": float("nan"), "p": 0.01, "n_units": 3},
        ],
        token_ids=rng.integers(0, 4, (2, 3)),
        token_values=rng.random((2, 3)).astype(np.float32),
    )  # fmt: skip
    given.windows = {
        (int(d), int(p)): (f"<b>text</b> [red]{d}[/red]\n{p}", 3, 7)
        for d, p in np.unique(np.stack([given.documents.ravel(), given.positions.ravel()], 1), axis=0)
        if d > 0
    }
    with (
        scratch_folder() as scratch,
        writing(path, Path(scratch), memory_limit="200MB", threads=1) as connection,
    ):
        schema.create(connection, created="now")
        _fill(Writer(connection, identity), given)
        schema.create_views(connection)
    return given


def _fill(writer: Writer, given: SimpleNamespace) -> None:
    recording = writer.run("recording", fingerprint="r", source="a'b", arguments={"threshold": 0.0}, seed=None)
    ids = writer.labels(recording, dict.fromkeys(given.labels, (3, 40)))
    writer.statistics(ids, "mlp", given.statistics)
    writer.statistics(ids, "attn", given.attn)
    windows = [(*key, *cut) for key, cut in given.windows.items()]
    writer.exemplars(ids[0], "mlp", given.documents, given.positions, given.values, windows)
    finding = writer.run("finding", method="lape", fingerprint="f")
    found = writer.labels(finding, dict.fromkeys(given.labels, (None, None)))
    writer.scores(found, "mlp", {"score": given.scores, "chosen": given.chosen, "p": None, "member": None})
    writer.classes(finding, "mlp", given.codes, ["specific", "related"], given.unit_scores)
    set_id = writer.set(finding, "en", given.units, label_id=found[0])
    writer.effects(writer.run("effects", fingerprint="e"), given.effects, {"en": set_id})
    tokens = writer.run("tokens", method="lm_head")
    writer.tokens(tokens, "mlp", np.array([7, 12]), given.token_ids, given.token_values, sign=1)
    writer.tokens(tokens, "mlp", np.array([7, 12]), given.token_ids, -given.token_values, sign=-1)
    writer.vocabulary(np.arange(3), ["a", "'\"", "<script>"])


@pytest.fixture
def atlas(filled: SimpleNamespace) -> Any:
    """The filled atlas, opened."""
    with Atlas.open(filled.path) as opened:
        yield opened
