"""Every causal language model of the installed transformers: its MLPs are cut exactly, or refused (pytest -m coverage)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from patchclamp.core.errors import Error
from patchclamp.generate import core_sparse
from patchclamp.models.load import load
from patchclamp.models.tiny import NOT_BUILT, causal_types, tiny_model

UNABLE = {"xlstm", "musicgen", "musicgen_melody"}  # plain generate() or the model itself fails in this transformers
CUT = [
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "opt",
    "gpt2",
    "gptj",
    "falcon",
    "bloom",
    "mpt",
]
IDS = torch.randint(3, 190, (2, 9), generator=torch.Generator().manual_seed(0))


def logits(model: Any) -> tuple[Any, Any]:
    out = model.hf.generate(
        IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=4, do_sample=False, pad_token_id=0, output_logits=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return out.sequences, torch.stack(out.logits).float()


@pytest.mark.coverage
@pytest.mark.parametrize("kind", [name for name in causal_types() if name not in NOT_BUILT and name not in UNABLE])
def test_every_family_is_cut_exactly_or_refused(kind: str) -> None:
    try:
        model = load(tiny_model(kind), check=False)
        model.hf.generation_config.eos_token_id = None
        found = {}
        for form in ("masked", "union", "grouped"):
            with core_sparse(model, share=0.4, layers=(0.0, 1.0), form=form, min_tokens=0):
                found[form] = logits(model)
        with core_sparse(model, share=1.0, layers=(0.0, 1.0), min_tokens=0):
            whole = logits(model)
    except Error:
        assert kind not in CUT
        return
    for form in ("union", "grouped"):
        torch.testing.assert_close(found[form][1], found["masked"][1], atol=1e-4, rtol=1e-4)
    assert torch.equal(whole[0], logits(model)[0])
