"""The checks over model types: they pass where units are true, and notice where they are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from patchclamp.core.errors import InputError
from patchclamp.models import coverage
from patchclamp.models.coverage import TypeResult, check_types, check_units, write_table
from patchclamp.models.load import load
from patchclamp.models.tiny import causal_types, tiny_model

FORMS = {
    "bert": "plain", "bloom": "plain", "deepseek_v3": "gated+experts", "gemma2": "gated", "gpt_neox": "plain",
    "gptj": "plain", "mixtral": "experts", "opt": "plain", "phi3": "gated", "rwkv": "plain", "xlm": "plain", "xlnet": "plain",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(FORMS))
def test_units_of_a_type_are_true(kind: str) -> None:
    (result,) = check_types([kind])
    assert (result.status, result.reason, result.form) == ("pass", "", FORMS[kind])


def test_a_type_without_mlps_is_not_applicable_but_records_its_residual_stream() -> None:
    (result,) = check_types(["mamba"])
    assert result.status == "not applicable"
    assert "no MLP" in result.reason
    assert "resid" in result.sites
    assert result.checks["bits"]


def test_a_type_that_can_not_be_read_is_a_row_with_its_reason() -> None:
    (result,) = check_types(["blt"])
    assert result.status == "not applicable"
    assert "patches" in result.reason


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(InputError, match="no causal language model"):
        check_types(["nonsense"])


def test_a_failure_while_building_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        raise RuntimeError("no such\nthing")

    monkeypatch.setattr(coverage, "tiny_model", fail)
    (result,) = check_types(["gpt2"])
    assert (result.status, result.reason) == ("fail", "could not be built: RuntimeError: no such thing")


def test_a_site_at_the_wrong_place_does_not_pass() -> None:
    """The up projection's input instead of the down projection's: every check that compares must fail."""
    hf = tiny_model("llama")
    coverage.enliven(hf)
    model = load(hf)
    right = model.anatomy.sites["mlp"]
    wrong = tuple(type(one)(one.path.replace("down_proj", "up_proj"), "output", one.width) for one in right if one)
    model.anatomy.down_weights = lambda layer: [(0, model.hf.model.layers[layer].mlp.down_proj.weight)]
    model.anatomy.down = lambda layer: model.hf.model.layers[layer].mlp.down_proj
    model.anatomy.sites["mlp"] = wrong
    result = TypeResult("llama", "fail")
    check_units(model, result)
    assert result.status == "fail"
    assert not result.checks["product"]


def test_the_table_counts_and_lists_every_type(tmp_path: Path) -> None:
    rows = [
        TypeResult("a", "pass", form="gated", sites=["mlp"], checks={"bits": True}),
        TypeResult("b", "not applicable", "no | MLP"),
    ]
    text = write_table(rows, tmp_path / "models.md").read_text()
    assert "of 2 causal-LM types, 1 pass, 1 are not applicable, 0 fail" in text
    assert "| b | not applicable |  |  |  | no / MLP |" in text


@pytest.mark.coverage
def test_at_least_175_types_pass_and_none_fails() -> None:
    results = check_types()
    assert len(results) == len(causal_types())
    assert [result.type for result in results if result.status == "fail"] == []
    assert sum(result.status == "pass" for result in results) >= 175
    assert sum("qkv" in result.checks for result in results) >= 150
    assert sum("pre" in result.checks for result in results) >= 135


def test_enliven_leaves_no_dead_projection() -> None:
    hf = tiny_model("nanochat").requires_grad_(False)
    coverage.enliven(hf)
    weights = [w for name, w in hf.named_parameters() if w.dim() == 2]
    assert all(float(weight.detach().std()) > 0.01 for weight in weights)
    assert torch.isfinite(hf(input_ids=torch.arange(3, 9)[None]).logits).all()
