"""Core-sparse decoding on a GPU: the same cores and texts as on the CPU, weights in the host's memory (pytest -m gpu)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from patchclamp.generate import core_sparse
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
IDS = torch.randint(3, 190, (3, 12), generator=torch.Generator().manual_seed(0))


def continued(model: Any, **arguments: Any) -> tuple[Tensor, list[Any]]:
    ids = IDS.to(model.device)
    with core_sparse(model, share=0.3, layers=(0.0, 1.0), min_tokens=0, **arguments) as sparse:
        out = model.hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, pad_token_id=0
        )
        return out[:, IDS.shape[1] :].cpu(), sparse.cores()


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt2"])
def test_a_gpu_writes_what_the_cpu_writes(kind: str) -> None:
    expected, cores = continued(load(tiny_model(kind)))
    model = load(tiny_model(kind).to("cuda"))
    for arguments in ({"form": "masked"}, {"form": "union"}, {"form": "grouped"}, {"refresh": 3}, {"offload": "cpu"}):
        found, chosen = continued(model, **arguments)
        if "refresh" not in arguments:
            assert torch.equal(found, expected), arguments
            assert chosen == cores
    assert all(weight.is_cuda for weight in model.hf.parameters())


def test_bfloat16_on_a_gpu_is_cut_like_it_is_masked() -> None:
    model = load(tiny_model("llama").to("cuda", torch.bfloat16))
    assert continued(model, form="union")[1] == continued(model, form="masked")[1]
