"""The same numbers on a CUDA device as on the CPU, to the precision of the dtype: `pytest -m gpu`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import patchclamp as pc
from patchclamp.data import corpus

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
TEXT = {
    "en": ["The cat sat on the mat.", "Two and two make four.", "The moon is bright tonight."],
    "fr": ["Le chat est assis.", "La lune est belle ce soir.", "Deux et deux font quatre."],
}


def on_gpu(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    return pc.load(copy.deepcopy(model.hf).to("cuda", dtype), tokenizer=model.tokenizer)


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_llama"])
def test_a_recording_on_the_gpu_has_the_numbers_of_the_cpu(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    text = corpus(TEXT)
    here, there = pc.record(model, text), pc.record(on_gpu(model), text)
    for label in text.labels:
        a, b = (each.get("moments", label) for each in (here, there))
        np.testing.assert_allclose(a.mean, b.mean, atol=1e-4)
        np.testing.assert_allclose(a.std, b.std, atol=1e-4)
        counts = [each.get("firing", label).counts for each in (here, there)]
        assert np.abs(counts[0] - counts[1]).max() <= 1  # a value may sit within rounding of 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_clamping_on_the_gpu_changes_perplexity_as_on_the_cpu(tiny_llama: Any, dtype: torch.dtype) -> None:
    text = corpus(TEXT)
    gpu = on_gpu(tiny_llama, dtype)
    here, there = (pc.UnitSet.of(model, ["mlp.1.3", "mlp.2.7"]) for model in (tiny_llama, gpu))
    with pc.clamp(tiny_llama, here, to=2.0), pc.clamp(gpu, there, to=2.0):
        cpu, cuda = (pc.measure.perplexity(model, text) for model in (tiny_llama, gpu))
    for label in text.labels:
        assert cuda[label].value == pytest.approx(cpu[label].value, rel=1e-4 if dtype == torch.float32 else 5e-2)


def test_generation_on_the_gpu_means_the_same_with_and_without_cache(tiny_llama: Any) -> None:
    gpu = on_gpu(tiny_llama)
    units = pc.UnitSet.of(gpu, ["mlp.1.3"])
    for scope in ("prompt", "generated", "all"):
        with pc.clamp(gpu, units, to=3.0, scope=scope):
            outputs = [
                gpu.generate(["The cat", "Le"], max_new_tokens=8, do_sample=False, use_cache=cached)
                for cached in (True, False)
            ]
        assert outputs[0] == outputs[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steering_and_edits_on_the_gpu_are_those_of_the_cpu(tiny_llama: Any, dtype: torch.dtype) -> None:
    gpu, ids = on_gpu(tiny_llama, dtype), torch.tensor([[1, 20, 30, 40]])
    text = corpus(TEXT)
    cpu_way = pc.intervene.mean_difference(tiny_llama, "fr", "en", text=text, layers=1)
    gpu_way = pc.intervene.mean_difference(gpu, "fr", "en", text=text, layers=1)
    with pc.steer(tiny_llama, cpu_way, 0.5, text=text), pc.steer(gpu, gpu_way, 0.5, text=text):
        cpu, cuda = tiny_llama.logits(ids), gpu.logits(ids).float().cpu()
    torch.testing.assert_close(
        cuda, cpu, rtol=0, atol=(1e-3 if dtype == torch.float32 else 0.1) * float(cpu.abs().max())
    )
    pc.intervene.steering(gpu, gpu_way, 0.1, strength_in="kl", text=text, prompt="The cat")
    edited = pc.edit(gpu, pc.intervene.ablation(gpu, gpu_way))
    assert pc.intervene.component_left(edited.model, gpu_way.vectors[0]).max() < (
        1e-4 if dtype == torch.float32 else 0.02
    )
