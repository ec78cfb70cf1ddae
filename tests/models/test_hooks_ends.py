"""Two taps after the last block: what enters the LM head, and the logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.models.hooks import Seen, change, observe
from patchclamp.models.prefix import Prefix

IDS = torch.tensor([[1, 20, 30, 40, 50], [1, 60, 70, 80, 90]])


def ends(model: Any) -> list[tuple[str, int]]:
    return [(site, model.anatomy.n_layers - 1) for site in ("final", "logits")]


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_they_show_the_trunk_s_output_and_the_logits(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    seen: dict[str, Tensor] = {}
    wanted, hidden = model.logits(IDS), model.trunk(IDS)
    with observe(model, ends(model), lambda one: seen.update({one.site: one.values.clone()})):
        assert torch.equal(model.logits(IDS), wanted)
    assert torch.equal(seen["final"], hidden.flatten(0, 1))
    assert torch.equal(seen["logits"], wanted.flatten(0, 1))


@pytest.mark.parametrize("kept", [1, 2, torch.tensor([0, 3])])
def test_rows_say_which_positions_the_logits_are_of(tiny_llama: Any, kept: Any) -> None:
    rows: list[Tensor | None] = []
    with observe(tiny_llama, [ends(tiny_llama)[1]], lambda one: rows.append(one.rows)):
        found = tiny_llama.hf(**tiny_llama.inputs(IDS), logits_to_keep=kept).logits
    assert rows[0] is not None
    assert torch.allclose(found.flatten(0, 1), tiny_llama.logits(IDS).flatten(0, 1)[rows[0]], atol=1e-6)


def test_changing_the_final_state_changes_logits_as_the_head_says(tiny_llama: Any) -> None:
    plain = tiny_llama.logits(IDS)
    with change(tiny_llama, {ends(tiny_llama)[0]: lambda one: one.values * 2}):
        assert torch.allclose(tiny_llama.logits(IDS), 2 * plain)
        prefix = Prefix(tiny_llama, tiny_llama.anatomy.n_layers - 1, IDS)
        assert torch.allclose(prefix.logits(), 2 * plain)
    assert torch.equal(tiny_llama.logits(IDS), plain)


@pytest.mark.parametrize("cached", [True, False])
def test_logits_can_be_forced_row_by_row_while_text_is_generated(tiny_llama: Any, cached: bool) -> None:
    def force(one: Seen) -> Tensor:
        rows = torch.arange(len(one.values)) if one.rows is None else one.rows
        forced = torch.zeros_like(one.values)
        forced[:, 7] = 30.0
        return torch.where((rows // one.step.seq == 1)[:, None], forced, one.values)

    made: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "use_cache": cached, "pad_token_id": 0}
    plain = tiny_llama.hf.generate(IDS, **made)
    with change(tiny_llama, {ends(tiny_llama)[1]: force}):
        found = tiny_llama.hf.generate(IDS, **made)
    assert torch.equal(found[0], plain[0])
    assert found[1, 5:].tolist() == [7, 7, 7, 7]


def test_they_belong_to_the_last_layer_and_are_no_sites_of_units(tiny_llama: Any) -> None:
    assert not {"final", "logits"} & set(tiny_llama.layouts)
    with (
        pytest.raises(InputError, match="after the last layer"),
        change(tiny_llama, {("final", 0): lambda one: one.values}),
    ):
        tiny_llama.logits(IDS)
