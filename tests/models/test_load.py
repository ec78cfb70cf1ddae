"""Loading: from folders and live models, only safetensors, one clear error for what can't be used."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from patchclamp.core.errors import Error, InputError, ModelError
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model


@pytest.fixture
def folder(tmp_path: Path, tiny_llama: Any) -> Path:
    tiny_llama.hf.save_pretrained(tmp_path / "model")
    tiny_llama.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_gives_the_same_model(folder: Path, tiny_llama: Any) -> None:
    model, ids = load(str(folder)), torch.arange(3, 15).view(2, 6)
    assert torch.equal(model.logits(ids), tiny_llama.logits(ids))
    assert model.fingerprint == tiny_llama.fingerprint
    assert model.tokenize("the cat") == tiny_llama.tokenize("the cat")
    assert model.identity["sites"]["mlp"] == {"widths": [48, 48, 48], "experts": [0, 0, 0]}
    assert (model.name, model.source, model.max_length) == ("model", str(folder), 64)


def test_the_fingerprint_is_that_of_the_weights_not_of_the_dtype(folder: Path, tiny_llama: Any) -> None:
    half = load(str(folder), dtype="bf16")
    assert half.dtype == torch.bfloat16
    assert half.fingerprint == tiny_llama.fingerprint
    half.hf.model.layers[1].mlp.down_proj.weight[0, 0] += 1
    assert load(half.hf).fingerprint != tiny_llama.fingerprint


def test_generation_gives_new_text_only_and_batches_do_not_change_it(tiny_llama: Any) -> None:
    prompts = ["the cat sat", "two and two make", "moon"]
    together = tiny_llama.generate(prompts, max_new_tokens=6)
    assert together == [tiny_llama.generate(prompt, max_new_tokens=6)[0] for prompt in prompts]
    assert tiny_llama.generate([]) == []


def test_nan_weights_are_refused_by_name() -> None:
    hf = tiny_model("gpt2")
    hf.transformer.h[1].mlp.c_proj.weight.data[2, 3] = float("nan")
    with pytest.raises(ModelError, match=r"transformer\.h\.1\.mlp\.c_proj\.weight holds 1 NaN"):
        load(hf)


def test_a_pickle_checkpoint_is_refused_before_anything_is_read(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, which would have to be unpickled"):
        load(str(folder))


def test_a_truncated_checkpoint_is_one_clear_error(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="can't load"):
        load(str(folder))


@pytest.mark.parametrize(
    ("source", "said"),
    [("./nowhere", "no model folder"), ("/no/such/folder", "no model folder"), ("bad name!", "no model folder")],
)
def test_a_missing_folder_is_named(source: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(source)


def test_a_hub_id_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Error) as caught:
        load("nobody/no-such-model-here")
    assert "nobody/no-such-model-here" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        load(str(tmp_path))
    shutil.copy(folder / "config.json", tmp_path / "config.json")
    with pytest.raises(ModelError, match="no weights"):
        load(str(tmp_path))


def test_a_model_without_a_tokenizer_says_so_when_text_comes() -> None:
    model = load(tiny_model("gpt2"))
    with pytest.raises(InputError, match="without a tokenizer"):
        model.generate("x")


@pytest.mark.parametrize(
    "arguments", [{"dtype": "int8"}, {"dtype": "nonsense"}, {"device": "cpu", "device_map": "auto"}]
)
def test_bad_arguments_are_refused(folder: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        load(str(folder), **arguments)


def test_bad_inputs_are_refused(tiny_gpt2: Any) -> None:
    with pytest.raises(InputError, match="batch, seq"):
        tiny_gpt2.logits(torch.zeros(3, dtype=torch.long))
    with pytest.raises(InputError, match="attention_mask"):
        tiny_gpt2.logits(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 4))


def test_trunk_is_the_last_hidden_state_before_the_head(tiny_llama: Any) -> None:
    ids = torch.arange(3, 15).view(2, 6)
    torch.testing.assert_close(tiny_llama.hf.lm_head(tiny_llama.trunk(ids)), tiny_llama.logits(ids))


def test_a_model_that_can_not_be_read_says_what_was_looked_for() -> None:
    hf = tiny_model("gpt2")
    hf.transformer.h = torch.nn.ModuleList([torch.nn.Identity()])
    with pytest.raises(ModelError, match="blocks were looked for"):
        load(hf)
