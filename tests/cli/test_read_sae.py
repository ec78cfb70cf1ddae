"""`patchclamp read sae`: train, print, save, load again, and use the features in the next command."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.program import program

TEXTS = {
    "en": ["The cat sat on the mat.", "She reads two books a week.", "Three ships sail to the island."] * 8,
    "fr": ["Le chat est assis sur le tapis.", "Elle lit deux livres.", "Trois bateaux vont vers la mer."] * 8,
}


@pytest.fixture
def text(tmp_path: Path) -> list[str]:
    for label, lines in TEXTS.items():
        (tmp_path / f"{label}.txt").write_text("\n".join(lines), encoding="utf-8")
    return [part for label in TEXTS for part in ("--text", f"{label}={tmp_path / label}.txt")]


def test_train_show_export_load_and_record(text: list[str], tmp_path: Path) -> None:
    small = ["--layer", 1, "--n-features", 64, "--k", 4, "--steps", 5, "--batch", 64]
    folders = ["--to", tmp_path / "sae", "--export", tmp_path / "lens"]
    ran = program("read", "sae", "demo", *text, *small, *folders, "--concept", "starts=t", "--out", tmp_path / "e.json")
    assert ran.code == 0, ran.err
    assert "sae.1: 64 topk features of resid.1" in " ".join(ran.out.split())
    assert "all labels" in ran.out
    assert "stand in at" in ran.out

    loaded = program("read", "sae", "demo", *text, "--load", tmp_path / "lens", "--to", tmp_path / "again", "--json")
    assert loaded.code == 0, loaded.err
    assert set(loaded.json["metrics"]) == {"en", "fr", "all labels"}
    assert loaded.json["metrics"]["en"]["l0"] <= 4
    recorded = program(
        "record", "demo", *text, "--features", tmp_path / "again", "--sites", "sae", "--out", tmp_path / "rec", "--json"
    )
    assert recorded.code == 0, recorded.err


def test_bad_requests_end_before_anything_is_trained(text: list[str], tmp_path: Path) -> None:
    ran = program("read", "sae", "demo", *text)
    assert (ran.code, "give to=" in ran.err) == (2, True)
    (tmp_path / "sae").mkdir()
    ran = program("read", "sae", "demo", *text, "--to", tmp_path / "sae")
    assert (ran.code, "exists already" in ran.err) == (2, True)
    ran = program("read", "sae", "demo", *text, "--to", tmp_path / "new", "--kind", "gated")
    assert (ran.code, "gated" in ran.err) == (2, True)
    assert not (tmp_path / "new").exists()
