"""Weight edits equal the clamps they stand for, after a round trip through plain transformers; cards, refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.core.errors import CheckError, Error, InputError, MismatchError, ModelError
from patchclamp.data.corpora import corpus
from patchclamp.intervene import Direction, Intervention, Interventions, clamp, edit
from patchclamp.measure import effect
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
    assert card["format"] == "patchclamp.edit/2"
    assert card["why"] == "removes the test's behaviour"
    assert card["model"]["fingerprint"] == tiny_llama.fingerprint
    assert card["interventions"][0]["units"] == ["mlp.0.3", "mlp.2.7"]
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


def test_hooks_of_other_libraries_do_not_stand_in_the_way(tiny_llama: Any) -> None:
    """transformers leaves hooks of its own on some models; only ours would be copied into the checkpoint's check."""
    model = load(copy.deepcopy(tiny_llama.hf), tokenizer=tiny_llama.tokenizer)
    handle = model.hf.model.layers[0].register_forward_hook(lambda module, args, output: None)
    edited = edit(model, ["mlp.0.3"], "ablate")
    assert edited.verify()["max_difference"] < 1e-4
    handle.remove()


def test_a_list_of_changes_is_edited_saved_and_described(model: Any, tmp_path: Path) -> None:
    direction = Direction.of(model, "mlp_out", [0, 2], np.random.default_rng(0).standard_normal(32))
    items = Interventions(
        [
            Intervention(UnitSet.of(model, ["mlp.0.3", "attn.1.2"]), "scale", 2.0),
            Intervention(direction, "project"),
            Intervention(UnitSet.of(model, ["mlp.0.3"]), "set", 1.5),
        ]
    )
    with items.applied(model):
        wanted = model.logits(IDS)
    folder = edit(model, items, why="to see").save(tmp_path / "out")
    torch.testing.assert_close(plain_logits(folder), wanted, rtol=1e-4, atol=1e-4)
    card = json.loads((folder / "edit.json").read_text())
    assert card["mode"] == "interventions"
    assert [entry["operation"] for entry in card["interventions"]] == ["scale", "project", "set"]
    assert card["units_per_layer"] == [2, 1, 0]
    assert card["check"]["source"] == "this checkpoint in plain transformers"


def test_directions_can_be_removed_or_scaled_by_mode(tiny_llama: Any) -> None:
    direction = Direction.of(tiny_llama, "attn_out", 1, np.random.default_rng(0).standard_normal(32))
    with clamp(tiny_llama, direction, to=0.0):
        wanted = tiny_llama.logits(IDS)
    torch.testing.assert_close(edit(tiny_llama, direction).model.logits(IDS), wanted, rtol=1e-4, atol=1e-4)
    with clamp(tiny_llama, direction, scale=3.0):
        wanted = tiny_llama.logits(IDS)
    edited = edit(tiny_llama, direction, "scale", scale=3.0)
    torch.testing.assert_close(edited.model.logits(IDS), wanted, rtol=1e-4, atol=1e-4)


def test_measured_effects_and_a_report_go_into_the_card(tiny_llama: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<p>measured</p>")
    units = UnitSet.of(tiny_llama, ["mlp.0.3", "mlp.2.7"])
    found = effect(tiny_llama, units, on=corpus(en=ENGLISH, fr=FRENCH), controls=2, permutations=399, quiet=True)
    edited = edit(tiny_llama, units)
    folder = edited.save(tmp_path / "out", effects=found, report=page)
    card = json.loads((folder / "edit.json").read_text())
    assert [row["text"] for row in card["effects"]] == ["en", "fr"]
    assert card["effects"][0]["effect"] == pytest.approx(found.rows[0]["effect"])
    readme = (folder / "README.md").read_text()
    assert "- Measured effects: set units, text en" in readme
    assert "`report.html`" in readme
    assert (folder / "report.html").read_text() == "<p>measured</p>"
    for plain in ([{"task": "facts", "change": -0.25}], {"rows": [{"task": "facts", "change": -0.25}]}):
        assert (
            "task facts, change -0.25"
            in edited.save(tmp_path / f"{type(plain).__name__}", effects=plain).joinpath("README.md").read_text()
        )
    assert "none were given" in (edit(tiny_llama, units).save(tmp_path / "bare") / "README.md").read_text()
    with pytest.raises(InputError, match="plain data"):
        edited.save(tmp_path / "no", effects=3)
    with pytest.raises(InputError, match="no report lies"):
        edited.save(tmp_path / "no", report=tmp_path / "missing.html")
    assert not (tmp_path / "no").exists()


def test_a_checkpoint_that_plain_transformers_reads_otherwise_is_never_left(
    tiny_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited = edit(tiny_llama, ["mlp.0.3"])

    def other(folder: Path, **kwargs: Any) -> None:
        type(tiny_llama.hf).save_pretrained(tiny_llama.hf, folder)  # the weights of the original

    units = UnitSet.at(tiny_llama, "mlp", range(48))
    edited = edit(tiny_llama, units)
    monkeypatch.setattr(edited.model.hf, "save_pretrained", other)
    with pytest.raises(CheckError, match="differs from the clamp"):
        edited.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())
    edited.save(tmp_path / "unchecked", reload=False)


@pytest.mark.parametrize(
    ("what", "arguments", "message"),
    [
        (Interventions([]), {}, "nothing to write"),
        (Interventions([]), {"mode": "ablate"}, "says itself what is done"),
    ],
)
def test_lists_say_themselves_what_is_done(tiny_llama: Any, what: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        edit(tiny_llama, what, **arguments)


def test_another_models_interventions_are_refused(tiny_llama: Any, tiny_gpt2: Any) -> None:
    item = Intervention(UnitSet.of(tiny_gpt2, ["mlp.0.3"]), "set", 0.0)
    with pytest.raises(MismatchError):
        edit(tiny_llama, item)


def test_directions_of_the_output_layer_and_of_the_embedding_go_into_one_checkpoint(
    tiny_gpt2: Any, tmp_path: Path
) -> None:
    """Two eigenshifts that don't commute and a tied embedding: order and untying are kept."""
    from patchclamp.intervene.eigenshift import EigenShift

    rng = np.random.default_rng(0)
    shifts = [
        EigenShift(tiny_gpt2.identity, np.linalg.qr(rng.standard_normal((32, 2)))[0].T, alpha) for alpha in (0.0, -1.5)
    ]
    embed = Intervention(Direction.of(tiny_gpt2, "embed", 0, rng.standard_normal(32)), "project")
    items = Interventions([shifts[0], embed, shifts[1]])
    with items.applied(tiny_gpt2):
        wanted = tiny_gpt2.logits(IDS)
    edited = edit(tiny_gpt2, items)
    assert edited.config_changes == {"tie_word_embeddings": False}
    torch.testing.assert_close(plain_logits(edited.save(tmp_path / "out")), wanted, rtol=1e-4, atol=1e-4)
