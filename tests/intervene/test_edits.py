"""Weight edits equal the clamps they stand for, after a round trip through plain transformers; cards, refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.core.errors import CheckError, Error, InputError, ModelError
from patchclamp.data.corpora import corpus
from patchclamp.intervene import clamp, edit
from patchclamp.models.anatomy import weight_of
from patchclamp.models.hooks import observe
from patchclamp.models.load import load
from patchclamp.models.units import UnitSet
from patchclamp.record import record

IDS = torch.tensor([[1, 20, 30, 40, 50, 60], [1, 70, 80, 90, 100, 110]])
UNITS = ["mlp.0.3", "mlp.0.40", "mlp.2.7", "attn.1.3", "head.1.2"]


ENGLISH = ["The cat sat on the mat.", "Two and two make four.", "The moon"]
FRENCH = ["Le chat est assis.", "Il regarde la lune sur le tapis et le chat."]


def recorded(model: Any) -> Any:
    """Moments of the model's neurons and attention coordinates over two labels."""
    return record(model, corpus(en=ENGLISH, fr=FRENCH), sites=("mlp", "attn"), statistics=("moments",), quiet=True)


def mean_over(model: Any, texts: list[str], tap: tuple[str, int], index: int) -> tuple[float, int]:
    """Sum and number of a unit's activations over all tokens but BOS, one text at a time."""
    kept: list[torch.Tensor] = []
    with observe(model, [tap], lambda seen: kept.append(seen.values[1:, index].double())):
        for text in texts:
            model.logits(torch.tensor([model.tokenize(text)]))
    values = torch.cat(kept)
    return float(values.sum()), len(values)


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def plain_logits(folder: Path, dtype: Any = torch.float32) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()(IDS).logits


@pytest.mark.parametrize("mode", ["ablate", "mean", "scale"])
def test_the_saved_checkpoint_gives_the_logits_of_the_clamp(model: Any, mode: str, tmp_path: Path) -> None:
    units, recording = UnitSet.of(model, UNITS), recorded(model)
    how: dict[str, Any] = {
        "ablate": {"to": 0.0},
        "mean": {"to": "mean", "recording": recording},
        "scale": {"scale": 0.3},
    }[mode]
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    with clamp(model, units, **how):
        wanted = model.logits(IDS)
    edited = edit(
        model, units, mode, scale=0.3 if mode == "scale" else None, recording=recording if mode == "mean" else None
    )
    folder = edited.save(tmp_path / "out")
    torch.testing.assert_close(plain_logits(folder), wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(edited.model.logits(IDS), wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - model.logits(IDS)).abs().max() > 0.01  # the edit does something
    assert edited.verify()["source"] == str(folder)
    for name, value in model.hf.state_dict().items():  # the original is not touched
        assert torch.equal(value, before[name])


def test_ablation_zeroes_columns_exactly_and_touches_nothing_else(model: Any) -> None:
    edited = edit(model, ["mlp.0.3", "mlp.2.7"], "ablate").model
    for layer, index in ((0, 3), (2, 7)):
        assert (weight_of(edited.anatomy.down(layer))[:, index] == 0).all()
    changed = [n for n, value in edited.hf.state_dict().items() if not torch.equal(value, model.hf.state_dict()[n])]
    assert len(changed) == 2


def test_means_are_pooled_by_tokens_or_of_one_label(tiny_llama: Any) -> None:
    recording, units = recorded(tiny_llama), UnitSet.of(tiny_llama, ["mlp.1.5", "head.0.1"])
    (en, n_en), (fr, n_fr) = (mean_over(tiny_llama, texts, ("mlp", 1), 5) for texts in (ENGLISH, FRENCH))
    head = [mean_over(tiny_llama, ENGLISH + FRENCH, ("attn", 0), index) for index in range(8, 16)]
    with clamp(tiny_llama, units, to="mean", recording=recording) as item:
        wanted = [*(total / n for total, n in head), (en + fr) / (n_en + n_fr)]
        np.testing.assert_allclose(item.value, wanted, rtol=1e-4, atol=1e-6)
    with clamp(tiny_llama, "mlp.1.5", to="mean", recording=recording, label="fr") as item:
        np.testing.assert_allclose(item.value, [fr / n_fr], rtol=1e-4, atol=1e-6)


def test_means_that_a_recording_lacks_are_named(tiny_llama: Any, tiny_gpt2: Any) -> None:
    recording = recorded(tiny_llama)
    for units, arguments, message in (
        ("mlp.0.1", {"label": "de"}, "no label 'de'"),
        ("resid.0.1", {}, "resid was not recorded"),
    ):
        with (
            pytest.raises(InputError, match=message),
            clamp(tiny_llama, units, to="mean", recording=recording, **arguments),
        ):
            pass
    with (
        pytest.raises(InputError, match="recording is of model"),
        clamp(tiny_gpt2, "mlp.0.1", to="mean", recording=recording),
    ):
        pass
    text = corpus(en=ENGLISH)
    partly = record(tiny_llama, text, layers=[0], statistics=("moments",), quiet=True)
    with (
        pytest.raises(InputError, match="layer 1 was not recorded"),
        clamp(tiny_llama, "mlp.1.1", to="mean", recording=partly),
    ):
        pass
    firing = record(tiny_llama, text, statistics=("firing",), quiet=True)
    with pytest.raises(InputError, match="'moments'"), clamp(tiny_llama, "mlp.1.1", to="mean", recording=firing):
        pass


def test_llama_gets_its_biases_by_its_own_config_switch(tiny_llama: Any, tmp_path: Path) -> None:
    edited = edit(tiny_llama, ["mlp.1.5"], "mean", recording=recorded(tiny_llama))
    assert edited.config_changes == {"mlp_bias": True}
    folder = edited.save(tmp_path / "out")
    assert json.loads((folder / "config.json").read_text())["mlp_bias"] is True
    both = edit(tiny_llama, ["mlp.1.5", "head.0.1"], "mean", recording=recorded(tiny_llama))
    assert both.config_changes == {"attention_bias": True, "mlp_bias": True}


def test_a_family_that_can_hold_no_mean_is_refused_with_the_way_out(tiny_tokenizer: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    mistral = load(MistralForCausalLM(config), tokenizer=tiny_tokenizer)
    with pytest.raises(ModelError, match="use clamp"):
        edit(mistral, ["mlp.1.5"], "mean", recording=recorded(mistral))
    edit(mistral, ["mlp.1.5"], "ablate")


def test_tied_embeddings_stay_tied_and_untouched(tiny_gpt2: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert tiny_gpt2.anatomy.tied
    folder = edit(tiny_gpt2, ["mlp.0.3"], "ablate").save(tmp_path / "out")
    hf = AutoModelForCausalLM.from_pretrained(folder)
    assert hf.lm_head.weight is hf.transformer.wte.weight
    assert torch.equal(hf.lm_head.weight, tiny_gpt2.hf.lm_head.weight)


def test_bfloat16_checkpoints_stay_bfloat16(tiny_llama: Any, tmp_path: Path) -> None:
    model = load(copy.deepcopy(tiny_llama.hf).to(torch.bfloat16), tokenizer=tiny_llama.tokenizer)
    edited = edit(model, UnitSet.of(model, UNITS), "mean", recording=recorded(model))
    folder = edited.save(tmp_path / "out")
    assert edited.verify()["max_difference"] <= 0.06 * edited.verify()["largest_logit"]
    assert load(str(folder)).dtype == torch.bfloat16


def test_the_card_says_what_why_and_from_what(tiny_llama: Any, tmp_path: Path) -> None:
    units = UnitSet.of(tiny_llama, ["mlp.0.3", "mlp.2.7"])
    folder = edit(tiny_llama, units, "ablate", why="removes the test's behaviour").save(tmp_path / "out")
    card = json.loads((folder / "edit.json").read_text())
    assert card["format"] == "patchclamp.edit/1"
    assert card["why"] == "removes the test's behaviour"
    assert card["model"]["fingerprint"] == tiny_llama.fingerprint
    assert card["intervention"]["units"] == ["mlp.0.3", "mlp.2.7"]
    assert card["units_per_layer"] == [1, 0, 1]
    assert card["provenance"]["call"] == "edit"
    reloaded = load(str(folder))
    assert reloaded.fingerprint == card["edited"]["fingerprint"]
    assert reloaded.tokenize("The cat") == tiny_llama.tokenize("The cat")
    readme = (folder / "README.md").read_text()
    assert "removes the test's behaviour" in readme
    assert tiny_llama.fingerprint in readme


def test_the_readme_of_the_original_is_kept(tiny_llama: Any, tmp_path: Path) -> None:
    first = edit(tiny_llama, ["mlp.0.3"], "ablate").save(tmp_path / "first")
    (first / "README.md").write_text("# My model\n\nAbout it.\n")
    second = edit(load(str(first)), ["mlp.0.4"], "ablate").save(tmp_path / "second")
    text = (second / "README.md").read_text()
    assert text.startswith("# My model\n\nAbout it.\n")
    assert "## Edited with patchclamp" in text


def test_an_existing_folder_is_refused_and_a_failed_save_leaves_nothing(
    tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = edit(tiny_llama, ["mlp.0.3"], "ablate")
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="exists already"):
        edited.save(tmp_path / "there")
    with pytest.raises(InputError, match="does not exist"):
        edited.save(tmp_path / "no" / "where")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("patchclamp.intervene.edits.write_json", full)
    with pytest.raises(Error, match="No space left"):
        edited.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_checkpoint_that_is_not_the_edit_fails_verification(tiny_llama: Any, tmp_path: Path) -> None:
    one = edit(tiny_llama, ["mlp.0.3", "mlp.1.3", "mlp.2.3"], "ablate")
    other = edit(tiny_llama, ["mlp.0.9", "mlp.1.9", "mlp.2.9"], "ablate").save(tmp_path / "other")
    with pytest.raises(CheckError, match="differs from the clamp"):
        one.verify(other)


def test_shared_weights_are_refused(tiny_llama: Any) -> None:
    hf = copy.deepcopy(tiny_llama.hf)
    hf.model.layers[1].mlp.down_proj.weight = hf.model.layers[0].mlp.down_proj.weight
    with pytest.raises(ModelError, match=r"tied to model\.layers\.1"):
        edit(load(hf), ["mlp.0.3"], "ablate")


@pytest.mark.parametrize(
    ("units", "arguments", "message"),
    [
        (["mlp.0.3"], {"mode": "remove"}, "one of ablate"),
        (["mlp.0.3"], {"mode": "scale"}, "needs scale="),
        (["mlp.0.3"], {"mode": "ablate", "scale": 2.0}, "take none"),
        (["mlp.0.3"], {"mode": "mean"}, "needs recording="),
        (["resid.0.3"], {"mode": "ablate"}, "use clamp"),
    ],
)
def test_bad_requests_say_what_to_do(
    tiny_llama: Any, units: list[str], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        edit(tiny_llama, units, **arguments)


def test_editing_inside_a_clamp_is_refused(tiny_llama: Any) -> None:
    with clamp(tiny_llama, "mlp.0.3", to=0.0), pytest.raises(InputError, match="leave every clamp"):
        edit(tiny_llama, ["mlp.0.3"], "ablate")
