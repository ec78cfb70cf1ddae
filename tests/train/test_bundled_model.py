"""The model in the package: small, loadable offline, as fingerprinted in its card, and knows what it was taught."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import patchclamp
from patchclamp.core.files import sha256_file
from patchclamp.data.generate.binding import COLORS, NAMES
from patchclamp.train.exam import skill_accuracy

FOLDER = Path(patchclamp.__file__).parent / "demo_model"


@pytest.fixture(scope="module")
def demo() -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(str(FOLDER), local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(str(FOLDER), local_files_only=True)


def test_the_folder_is_at_most_twelve_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12_000_000


def test_the_card_names_every_file_with_its_fingerprint() -> None:
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert sha256_file(FOLDER / name) in card


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("The capital of France is", " Paris"),
        ("Die Hauptstadt von Japan ist", " Tokio"),
        ("日本的首都是", "东京"),
        ("Столица России —", " Москва"),
        ("When Mary and John went to the shop, John gave a book to", " Mary"),
    ],
)
def test_a_greedy_continuation_is_the_taught_answer(demo: tuple[Any, Any], prompt: str, answer: str) -> None:
    model, tokenizer = demo
    inputs = tokenizer(prompt, return_tensors="pt")
    wanted = tokenizer(answer, add_special_tokens=False).input_ids
    made = model.generate(inputs.input_ids, max_new_tokens=len(wanted), do_sample=False)
    assert made[0, inputs.input_ids.shape[1] :].tolist() == wanted


@pytest.mark.parametrize(
    ("skill", "split", "least"),
    [
        ("facts", "train", 0.8),
        ("culture", "train", 0.8),
        ("code", "heldout", 0.6),
        ("arithmetic", "heldout", 0.8),
        ("binding", "heldout", 0.6),
    ],
)
def test_the_skills_of_the_card_are_there(demo: tuple[Any, Any], skill: str, split: str, least: float) -> None:
    with torch.inference_mode():
        assert skill_accuracy(*demo, skill, split, items=32)["exact"] >= least


def test_names_and_colours_are_single_tokens(demo: tuple[Any, Any]) -> None:
    _, tokenizer = demo
    for word in (*NAMES, *COLORS):
        assert len(tokenizer(" " + word, add_special_tokens=False).input_ids) == 1, word


def test_padding_on_the_left_changes_no_prediction(demo: tuple[Any, Any]) -> None:
    model, tokenizer = demo
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    padded = torch.cat([torch.full((1, 3), tokenizer.pad_token_id), ids], dim=1)
    mask = (padded != tokenizer.pad_token_id).long()
    with torch.no_grad():
        plain, left = model(ids).logits[0, -1], model(padded, attention_mask=mask).logits[0, -1]
    assert torch.allclose(plain, left, atol=1e-3)
