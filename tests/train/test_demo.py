"""The training command: resumes bit for bit, holds out what it says, refuses what it can't use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.train.checkpoints import saved_checkpoints
from patchclamp.train.demo import Recipe, build_model, next_token_loss, read_texts, snapshot, train

STEPS = 12


@pytest.fixture(scope="module")
def finished(texts: dict[str, Path], recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of twelve steps that was never interrupted."""
    out = tmp_path_factory.mktemp("run") / "whole"
    train(texts, out, tokens=STEPS * recipe.step_tokens, recipe=recipe, quiet=True)
    return out


def _with_tokenizer_of(run: Path, out: Path) -> Path:
    """A new run folder that need not train its tokenizer again."""
    out.mkdir()
    shutil.copytree(run / "tokenizer", out / "tokenizer")
    return out


def _same_weights(a: Path, b: Path) -> bool:
    one, other = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    finished: Path, texts: dict[str, Path], recipe: Recipe, tmp_path: Path
) -> None:
    out = _with_tokenizer_of(finished, tmp_path / "parts")
    arguments = {"tokens": STEPS * recipe.step_tokens, "recipe": recipe, "quiet": True}
    train(texts, out, stop_after_steps=5, **arguments)  # type: ignore[arg-type]
    assert not (out / "model").exists()
    train(texts, out, stop_after_steps=4, resume=True, **arguments)  # type: ignore[arg-type]
    train(texts, out, resume=True, **arguments)  # type: ignore[arg-type]
    assert _same_weights(out / "model", finished / "model")
    newest = [saved_checkpoints(run / "checkpoints")[-1] for run in (out, finished)]
    assert newest[0].name == newest[1].name == f"step-{STEPS:07d}"
    assert _same_weights(*newest)


def test_another_seed_gives_another_model(
    finished: Path, texts: dict[str, Path], recipe: Recipe, tmp_path: Path
) -> None:
    out = _with_tokenizer_of(finished, tmp_path / "seed")
    train(texts, out, seed=1, tokens=STEPS * recipe.step_tokens, recipe=recipe, quiet=True)
    assert not _same_weights(out / "model", finished / "model")


def test_the_result_is_an_ordinary_checkpoint_with_tokenizer(finished: Path, recipe: Recipe) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(finished / "model")
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.dtype == torch.float32
    assert model.config.num_hidden_layers == recipe.layers
    assert next(iter(load_file(finished / "model" / "model.safetensors").values())).dtype == torch.float16
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert tokenizer("море 海 47+38=85").input_ids[0] == tokenizer.bos_token_id
    generated = model.generate(
        **tokenizer("the sea", return_tensors="pt", return_token_type_ids=False), max_new_tokens=3
    )
    assert generated.shape[1] > 3


def test_the_record_says_what_was_trained(finished: Path, recipe: Recipe) -> None:
    record = json.loads((finished / "model" / "training.json").read_text())
    assert record["tokens"] == STEPS * recipe.step_tokens
    assert record["steps"] == STEPS
    assert set(record["texts"]) == {"en", "ru", "zh"}


def test_a_snapshot_of_the_last_checkpoint_is_the_final_model(finished: Path) -> None:
    assert _same_weights(snapshot(finished, name="again"), finished / "model")


def test_time_that_is_up_starts_the_decay_and_ends_the_run(
    finished: Path, texts: dict[str, Path], recipe: Recipe, tmp_path: Path
) -> None:
    out = _with_tokenizer_of(finished, tmp_path / "late")
    train(texts, out, tokens=1000 * recipe.step_tokens, max_minutes=1e-9, recipe=recipe, quiet=True)
    assert json.loads((out / "model" / "training.json").read_text())["steps"] == 1


def test_a_finished_run_is_not_overwritten(finished: Path, texts: dict[str, Path], recipe: Recipe) -> None:
    with pytest.raises(InputError, match="resume it, or choose another"):
        train(texts, finished, recipe=recipe, quiet=True)
    with pytest.raises(InputError, match="another seed, recipe or text"):
        train(texts, finished, seed=5, resume=True, recipe=recipe, quiet=True)


def test_a_truncated_checkpoint_is_named(
    finished: Path, texts: dict[str, Path], recipe: Recipe, tmp_path: Path
) -> None:
    copy = tmp_path / "damaged"
    shutil.copytree(finished, copy)
    weights = saved_checkpoints(copy / "checkpoints")[-1] / "optimizer.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DamagedError, match="step-"):
        train(texts, copy, resume=True, recipe=recipe, quiet=True)


def test_texts_that_cannot_be_used_are_refused(tmp_path: Path, recipe: Recipe) -> None:
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("one line\n")
    binary.write_bytes(b"\xff\xfe\x00")
    for texts, message in (
        ({}, "no texts"),
        ({"en": tmp_path / "none.txt"}, "no file"),
        ({"en": short}, "at least 20"),
        ({"en": binary}, "not UTF-8"),
    ):
        with pytest.raises(InputError, match=message):
            train(texts, tmp_path / "out", recipe=recipe, quiet=True)
        assert not (tmp_path / "out").exists()


def test_too_few_tokens_are_refused(texts: dict[str, Path], tmp_path: Path, recipe: Recipe) -> None:
    with pytest.raises(InputError, match="less than one step"):
        train(texts, tmp_path / "out", tokens=3, recipe=recipe, quiet=True)


def test_a_snapshot_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint"):
        snapshot(tmp_path)


def test_reading_drops_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a\n\n" * 30)
    assert read_texts({"xx": path}) == {"xx": ["a"] * 30}


def test_the_loss_is_weighted_and_skips_the_first_token_of_every_document() -> None:
    torch.manual_seed(0)
    logits, ids = torch.randn(1, 5, 7), torch.tensor([[1, 4, 2, 1, 6]])
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    scores = logits.log_softmax(-1)[0]
    weights = torch.tensor([[1.0, 1.0, 4.0, 9.0, 1.0]])
    expected = -(scores[0, 4] + 4 * scores[1, 2] + scores[3, 6]) / 6
    torch.testing.assert_close(next_token_loss(logits, ids, positions, weights), expected)


def test_packed_documents_do_not_see_each_other(finished: Path, recipe: Recipe) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(finished / "tokenizer")
    torch.manual_seed(0)
    model = build_model(recipe, tokenizer).eval()
    first, second = [1, 50, 51, 2], [1, 60, 61, 62, 2]
    packed = torch.tensor([first + second])
    positions = torch.tensor([[*range(len(first)), *range(len(second))]])
    with torch.no_grad():
        together = model(input_ids=packed, position_ids=positions, use_cache=False).logits[0, len(first) :]
        alone = model(input_ids=torch.tensor([second])).logits[0]
    torch.testing.assert_close(together, alone)
