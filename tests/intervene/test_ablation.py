"""An ablated direction is gone from the stream, while the model runs and in the weights, through norms and for experts."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError
from patchclamp.data import corpus, demo_text
from patchclamp.intervene import Direction, ablation, component_left, edit, mean_difference
from patchclamp.intervene.fits import fits
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model

IDS = torch.tensor([[1, 20, 30, 40, 50, 60], [1, 70, 80, 90, 100, 110]])
TEXT = {"en": ["The cat sat on the mat.", "The moon"], "fr": ["Le chat est assis.", "Il regarde la lune sur le tapis."]}
VECTOR = np.random.default_rng(0).standard_normal(32)


def test_nothing_is_left_of_the_direction_in_any_layer(tiny_llama: Any) -> None:
    assert component_left(tiny_llama, VECTOR).min() > 0.05
    items = ablation(tiny_llama, VECTOR)
    with items.applied(tiny_llama):
        assert component_left(tiny_llama, VECTOR).max() < 1e-5
        assert component_left(tiny_llama, np.random.default_rng(1).standard_normal(32)).min() > 0.05
    assert component_left(edit(tiny_llama, items).model, VECTOR).max() < 1e-5


def test_weights_hold_it_as_projected_rows(tiny_llama: Any) -> None:
    """Arditi et al. 2024: W' = W - v v^T W for every matrix that writes to the stream, no other parameter touched."""
    edited = edit(tiny_llama, ablation(tiny_llama, VECTOR)).model
    unit = torch.from_numpy(VECTOR / np.linalg.norm(VECTOR))
    before = tiny_llama.hf.state_dict()
    for name, value in edited.hf.state_dict().items():
        wide = before[name].double()
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.testing.assert_close(value.double(), wide - torch.outer(unit, unit @ wide), atol=1e-7, rtol=0)
        elif name.endswith("embed_tokens.weight"):
            torch.testing.assert_close(value.double(), wide - torch.outer(wide @ unit, unit), atol=1e-7, rtol=0)
        else:
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("family", ["gemma2", "olmo2", "gemma3_text", "mixtral", "qwen3", "cohere", "granite"])
def test_norms_multipliers_and_experts_leave_nothing_either(family: str) -> None:
    """Where an output passes a norm with gain g on its way to the stream, g * v is what has to go in front of it."""
    model = load(tiny_model(family))
    with torch.no_grad():  # gains of 1 would hide a mistake
        for name, value in model.hf.named_parameters():
            if "norm" in name and value.dim() == 1:
                value.add_(0.5 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    model = load(model.hf)
    items = ablation(model, VECTOR)
    with items.applied(model):
        assert component_left(model, VECTOR).max() < 1e-4
    assert component_left(edit(model, items).model, VECTOR).max() < 1e-4


def test_position_embeddings_are_named_and_the_stream_itself_can_be_projected(tiny_gpt2: Any) -> None:
    with pytest.warns(UserWarning, match="position embeddings"):
        ablation(tiny_gpt2, VECTOR)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        items = ablation(tiny_gpt2, VECTOR, sites=("embed", "resid"))
    with items.applied(tiny_gpt2):
        assert component_left(tiny_gpt2, VECTOR).max() < 1e-5


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 99), st.floats(-2, 2).filter(lambda keep: abs(keep) > 1e-3))
def test_what_is_kept_is_that_share_of_the_embedding_and_lengths_do_not_matter(
    tiny_llama: Any, seed: int, keep: float
) -> None:
    from patchclamp.models.collect import collect

    vector = np.random.default_rng(seed).standard_normal(32)
    unit = torch.from_numpy(vector / np.linalg.norm(vector))
    before = tiny_llama.logits(IDS)
    plain = collect(tiny_llama, "embed", IDS)[0].double() @ unit
    with ablation(tiny_llama, vector, keep=keep).applied(tiny_llama):
        kept, logits = collect(tiny_llama, "embed", IDS)[0].double() @ unit, tiny_llama.logits(IDS)
    torch.testing.assert_close(kept, keep * plain, atol=1e-5, rtol=1e-4)
    with ablation(tiny_llama, -7 * vector, keep=keep).applied(tiny_llama):
        torch.testing.assert_close(tiny_llama.logits(IDS), logits, atol=1e-3, rtol=1e-3)
    assert torch.equal(tiny_llama.logits(IDS), before)


def test_bfloat16_weights_leave_next_to_nothing(tiny_llama: Any) -> None:
    model = load(copy.deepcopy(tiny_llama.hf).to(torch.bfloat16), tokenizer=tiny_llama.tokenizer)
    assert component_left(edit(model, ablation(model, VECTOR)).model, VECTOR).max() < 0.01


def test_directions_of_one_vector_only(tiny_llama: Any) -> None:
    two = Direction.of(tiny_llama, "resid", [0, 1], np.random.default_rng(0).standard_normal((2, 32)))
    with pytest.raises(InputError, match="different vectors"):
        ablation(tiny_llama, two)
    same = Direction.of(tiny_llama, "resid", [0, 1], np.stack([VECTOR, 3 * VECTOR]))
    assert ablation(tiny_llama, same)[0].to_dict()["direction"]["vectors"] == [VECTOR.tolist()]
    for wrong, message in (
        (Direction.of(tiny_llama, "mlp", 0, np.ones(48)), "no direction of the residual stream"),
        (np.ones(5), "5 numbers"),
        (np.zeros(32), "zero"),
    ):
        with pytest.raises(InputError, match=message):
            ablation(tiny_llama, wrong)
    with pytest.raises(InputError, match="sites"):
        ablation(tiny_llama, VECTOR, sites=("mlp",))


def test_the_fit_removes_the_difference_of_two_texts(tiny_llama: Any, tmp_path: Path) -> None:
    items = fits["ablate-direction"](tiny_llama, corpus(TEXT), towards="fr", away=["en"], layer=1)
    wanted = mean_difference(tiny_llama, "fr", "en", text=corpus(TEXT), layers=1)
    with items.applied(tiny_llama):
        assert component_left(tiny_llama, wanted).max() < 1e-5
    folder = edit(tiny_llama, items, why="no French").save(tmp_path / "out")
    assert component_left(load(str(folder)), wanted.vectors[0]).max() < 1e-5


@pytest.mark.slow
def test_without_its_direction_the_demo_model_reads_german_worse_and_without_a_random_one_hardly() -> None:
    from patchclamp.measure import perplexity

    model = load("demo", check=False)
    measured = demo_text(["en", "de"], split="measure")
    found = mean_difference(model, "de", "en", text=demo_text(["en", "de"], split="find"), layers=3)
    edited = edit(model, ablation(model, found)).model
    other = edit(model, ablation(model, np.random.default_rng(0).standard_normal(192))).model
    values = {
        name: {label: float(np.log(one.value)) for label, one in perplexity(which, measured, quiet=True).items()}
        for name, which in (("plain", model), ("edited", edited), ("random", other))
    }
    harm = values["edited"]["de"] - values["plain"]["de"]
    assert harm > 0.05
    assert harm > 2 * abs(values["random"]["de"] - values["plain"]["de"])
