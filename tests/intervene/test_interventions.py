"""Interventions as data: saved, loaded, composed, shown; tied to their model; refused when they make no sense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.intervene import Direction, Intervention, Interventions, clamp, intervention
from patchclamp.models.units import UnitSet

IDS = torch.tensor([[1, 20, 30, 40, 50], [1, 60, 70, 80, 90]])


def several(model: Any) -> Interventions:
    mask = np.array([[1, 0, 1, 1, 0], [0, 0, 1, 1, 1]], dtype=bool)
    return (
        intervention(model, ["mlp.0.3", "mlp.1.4"], to=[0.1, 1 / 3], scope="prompt", note="a <b>note</b>")
        + intervention(model, "head.1.2", scale=0.5)
        + intervention(model, ["mlp.2.1"], add=-2.0, mask=mask)
        + intervention(model, ["mlp.0.5", "mlp.0.6"], shuffle=7)
        + intervention(
            model, Direction.of(model, "resid", [0, 1], np.random.default_rng(0).normal(size=(2, 32))), add=1.5
        )
        + intervention(model, Direction.of(model, "attn_out", 2, np.arange(32.0)), to=0.0)
    )


def test_a_saved_list_does_the_same_when_loaded(tiny_llama: Any, tmp_path: Path) -> None:
    items = several(tiny_llama)
    loaded = Interventions.load(items.save(tmp_path / "items.json"))
    assert loaded.to_dict() == items.to_dict()
    with items.applied(tiny_llama):
        wanted = tiny_llama.logits(IDS)
    with loaded.applied(tiny_llama):
        assert torch.equal(tiny_llama.logits(IDS), wanted)
    assert not torch.equal(tiny_llama.logits(IDS), wanted)


def test_a_file_names_its_format_model_and_origin(tiny_llama: Any, tmp_path: Path) -> None:
    data = json.loads(several(tiny_llama).save(tmp_path / "items.json").read_text())
    assert data["format"] == "patchclamp.interventions/1"
    assert data["model"]["fingerprint"] == tiny_llama.fingerprint
    assert data["provenance"]["versions"]["torch"]
    assert data["interventions"][0]["units"] == ["mlp.0.3", "mlp.1.4"]


def test_composition_applies_in_order(tiny_llama: Any) -> None:
    first, second = intervention(tiny_llama, "mlp.0.3", to=2.0), intervention(tiny_llama, "mlp.0.3", scale=3.0)
    for composed in (
        first + second,
        Interventions([first]) + second,
        sum([Interventions([first]), Interventions([second])]),
    ):
        with composed.applied(tiny_llama):  # type: ignore[union-attr]
            both = tiny_llama.logits(IDS)
        with clamp(tiny_llama, "mlp.0.3", to=6.0):
            torch.testing.assert_close(tiny_llama.logits(IDS), both, rtol=0, atol=0)
    with (second + first).applied(tiny_llama), clamp(tiny_llama, "mlp.0.9", scale=1.0):
        reverse = tiny_llama.logits(IDS)
    with clamp(tiny_llama, "mlp.0.3", to=2.0):
        torch.testing.assert_close(tiny_llama.logits(IDS), reverse, rtol=0, atol=0)


def test_a_failing_member_of_a_list_undoes_the_members_before_it(tiny_llama: Any, tiny_gpt2: Any) -> None:
    plain = tiny_llama.logits(IDS)
    with pytest.raises(RuntimeError, match="stop"), several(tiny_llama).applied(tiny_llama):
        raise RuntimeError("stop")
    assert torch.equal(tiny_llama.logits(IDS), plain)


def test_lists_belong_to_one_model(tiny_llama: Any, tiny_gpt2: Any, tmp_path: Path) -> None:
    with pytest.raises(MismatchError):
        intervention(tiny_llama, "mlp.0.3", to=0.0) + intervention(tiny_gpt2, "mlp.0.3", to=0.0)
    loaded = Interventions.load(several(tiny_llama).save(tmp_path / "items.json"))
    with pytest.raises(MismatchError), loaded.applied(tiny_gpt2):
        pass


def test_they_are_shown_in_words_and_html_is_escaped(tiny_llama: Any) -> None:
    items = several(tiny_llama)
    text, page = repr(items), items._repr_html_()
    for word in ("set to 2 values", "scaled by 0.5", "increased by -2", "shuffled (seed 7)", "removed", "scope prompt"):
        assert word in text
    assert "<b>note</b>" not in page
    assert "&lt;b&gt;note" in page
    assert "head.1.2" in repr(items[1])
    assert len(items) == 6
    assert items.scoped("generated")[0].scope == "generated"
    assert items[0].scope == "prompt"


def test_function_masks_cannot_be_saved(tiny_llama: Any, tmp_path: Path) -> None:
    item = intervention(tiny_llama, "mlp.0.3", to=0.0, mask=lambda step: torch.ones(step.batch, step.seq))
    with pytest.raises(InputError, match="bool array"):
        Interventions([item]).save(tmp_path / "items.json")
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(tiny_llama: Any, tmp_path: Path) -> None:
    path = several(tiny_llama).save(tmp_path / "items.json")
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(DamagedError, match=r"items\.json"):
        Interventions.load(path)
    path.write_text(json.dumps({"format": "patchclamp.interventions/1", "model": {}}))
    with pytest.raises(DamagedError, match="complete"):
        Interventions.load(path)


def test_senseless_interventions_are_refused(tiny_llama: Any) -> None:
    units = UnitSet.of(tiny_llama, ["mlp.0.1", "mlp.0.2"])
    for arguments, message in (
        ({"operation": "freeze"}, "operation"),
        ({"operation": "set"}, "needs a value"),
        ({"operation": "shuffle", "value": 1.0}, "takes no value"),
        ({"operation": "set", "value": np.ones(3)}, "2 of them"),
    ):
        with pytest.raises(InputError, match=message):
            Intervention(units, **arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="UnitSet or a Direction"):
        Intervention(["mlp.0.1"], "set", 0.0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="list of interventions"):
        Interventions([units])  # type: ignore[list-item]
