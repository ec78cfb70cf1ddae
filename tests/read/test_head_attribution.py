"""Attributions of heads, MLPs and the embedding add up to the logit difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from patchclamp.core.errors import InputError
from patchclamp.data.paired import Pairs
from patchclamp.models.hooks import change
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model
from patchclamp.read.head_attribution import head_attribution


def pairs_of(vocabulary: int, n: int = 3) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(3, vocabulary, (n, 6), generator=generator)
    end, numbers = torch.full((n,), 5), torch.arange(n)
    answer = torch.randint(3, vocabulary - 9, (n,), generator=generator)
    return Pairs(
        clean, clean, torch.ones_like(clean, dtype=torch.bool), answer, answer + 5, end, {"END": end}, {}, numbers
    )


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"tiny_{request.param}")


def test_a_head_is_worth_what_its_absence_takes_with_the_norm_held(model: Any) -> None:
    """By plain formula: W_O z of one head through the gain of the norm at its own scale, times the difference of rows."""
    pairs = pairs_of(320)
    got = head_attribution(model, pairs)
    assert got.shape == (12, 3)
    kept: dict[str, torch.Tensor] = {}
    anatomy = model.anatomy
    out = anatomy.module(anatomy.site("attn", 1).path)
    norm = anatomy.module(anatomy.final_norm)
    handles = [
        out.register_forward_pre_hook(lambda m, a: kept.__setitem__("z", a[0])),
        norm.register_forward_pre_hook(lambda m, a: kept.__setitem__("x", a[0])),
    ]
    model.logits(pairs.clean)
    for handle in handles:
        handle.remove()
    weight = out.weight if type(out).__name__ == "Conv1D" else out.weight.T  # (width, d_model)
    written = kept["z"][:, -1, 16:24] @ weight[16:24]  # head 2
    x = kept["x"][:, -1]
    if type(norm).__name__ == "LayerNorm":
        scale = (x.var(1, unbiased=False, keepdim=True) + norm.eps).sqrt()
        written = written - written.mean(1, keepdim=True)
    else:
        scale = (x.square().mean(1, keepdim=True) + norm.variance_epsilon).sqrt()
    rows = model.hf.get_output_embeddings().weight
    expected = ((written / scale * norm.weight) * (rows[pairs.answer] - rows[pairs.wrong])).sum(1)
    torch.testing.assert_close(got[6].float(), expected.detach(), atol=1e-4, rtol=1e-3)


def test_a_head_that_writes_nothing_is_worth_nothing(model: Any) -> None:
    def off(seen: Any) -> torch.Tensor:
        new = seen.values.clone()
        new[:, 1] = 0.0
        return new

    with change(model, {("head", 2): off}):
        got = head_attribution(model, pairs_of(320))
    assert not got[9].any()
    assert got[8].any()


def test_models_without_heads_are_refused() -> None:
    with pytest.raises(InputError, match="no final norm or no heads"):
        head_attribution(load(tiny_model("mamba"), check=False), pairs_of(199))
