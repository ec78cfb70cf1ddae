"""The card repeats the numbers it was given and the fingerprints of the files beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from patchclamp.core.errors import InputError
from patchclamp.train.card import write_card

RESULT: dict[str, Any] = {"exact": 0.875, "interval": (0.5, 0.98), "choice": 0.75, "chance": 0.25, "n": 8}
EVALUATION = {
    "loss": {"en": {"nats_per_token": 3.21, "bits_per_byte": 1.54, "tokens": 9617, "bytes": 30_000}},
    "skills": {"facts": {"heldout": {**RESULT, "by": {"language": {"en": RESULT}}}}},
}


def test_the_card_holds_losses_skills_command_and_fingerprints(tmp_path: Path) -> None:
    recipe = {"layers": 6, "hidden_size": 192, "heads": 6, "intermediate_size": 640, "vocab_size": 7168, "muon_lr": 0.005,
              "adam_lr": 0.003, "rows_per_step": 16, "row_length": 256, "block_tokens": 500_000}  # fmt: skip
    training = {"seed": 3, "tokens": 4096, "steps": 1, "minutes": 0.5, "recipe": recipe, "texts": {"en": "ab" * 32}}
    (tmp_path / "training.json").write_text(json.dumps(training))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    card = write_card(
        tmp_path, EVALUATION, sources={"en": "public domain"}, notes="## Weak points\n\nMany."
    ).read_text()
    assert "| English | 3.210 | 1.540 | 9,617 |" in card
    assert "| facts | never taught | 88% (50%-98%) | 75% | 25% | 8 |" in card
    assert "patchclamp train demo --text en=en.txt --out run --seed 3 --tokens 4096" in card
    assert hashlib.sha256(b"weights").hexdigest() in card
    assert "Many." in card


def test_a_folder_without_a_training_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training\.json"):
        write_card(tmp_path, EVALUATION, sources={})
    assert not list(tmp_path.iterdir())
