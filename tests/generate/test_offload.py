"""MLP weights kept elsewhere: the same numbers, nothing left on the device, the same parameters afterwards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from patchclamp.core.errors import InputError, ModelError
from patchclamp.generate import core_sparse, mlp_offloaded
from patchclamp.generate.maps import mlp_maps
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model

KINDS = pytest.mark.parametrize("kind", ["llama", "opt", "gpt2", "phi3"])
IDS = torch.arange(3, 23).view(2, 10)


def continued(model: Any, **arguments: Any) -> Tensor:
    return model.hf.generate(IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False, **arguments)


def mlp_weights(model: Any) -> list[Any]:
    owners = [model.anatomy.down(layer) for layer in range(model.anatomy.n_layers)]
    return [module.weight for module in owners]


def modules(model: Any, layer: int) -> tuple[Any, ...]:
    (maps,) = mlp_maps(model, [layer])
    return maps.modules


def place(name: str, tmp_path: Path) -> Any:
    return tmp_path if name == "folder" else name


@KINDS
@pytest.mark.parametrize("to", ["cpu", "disk", "folder"])
def test_offloaded_weights_give_the_same_text_and_come_back(kind: str, to: str, tmp_path: Path) -> None:
    model = load(tiny_model(kind).to(torch.bfloat16) if kind == "phi3" else tiny_model(kind))
    before, values = mlp_weights(model), [weight.clone() for weight in mlp_weights(model)]
    plain = continued(model)
    with core_sparse(model, share=0.3, layers=(0.0, 1.0), min_tokens=0):
        expected = continued(model)
    with core_sparse(model, share=0.3, layers=(0.0, 1.0), min_tokens=0, offload=place(to, tmp_path)):
        assert all(weight.is_meta for weight in mlp_weights(model))
        assert torch.equal(continued(model), expected)
        assert torch.equal(continued(model, num_beams=2), continued(model, num_beams=2))
    assert all(now is then for now, then in zip(mlp_weights(model), before, strict=True))
    assert all(torch.equal(now, then) for now, then in zip(mlp_weights(model), values, strict=True))
    with mlp_offloaded(model, place(to, tmp_path), layers=[1]) as kept:
        assert [weight.is_meta for weight in mlp_weights(model)] == [False, True]
        torch.testing.assert_close(continued(model), plain)
        assert kept == sum(w.numel() * w.element_size() for m in modules(model, 1) for w in m.parameters(recurse=False))
        with core_sparse(model, share=0.3, layers=(0.0, 1.0), min_tokens=0):
            assert torch.equal(continued(model), expected)
    assert len(list(tmp_path.glob("mlp-*.safetensors"))) == (1 if to == "folder" else 0)


def test_a_model_read_from_files_is_mapped_from_its_own_files(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "model")
    model = load(str(tmp_path / "model"))
    plain = continued(model)
    with mlp_offloaded(model, "disk"):
        maps = (
            Path("/proc/self/maps").read_text(encoding="utf-8")
            if Path("/proc/self/maps").exists()
            else "model.safetensors"
        )
        assert "model.safetensors" in maps
        assert torch.equal(continued(model), plain)
    with torch.no_grad():
        model.anatomy.down(0).weight.mul_(2)  # its files hold other numbers now
    changed = continued(model)
    with mlp_offloaded(model, "disk"):
        assert torch.equal(continued(model), changed)


def test_a_file_of_other_weights_is_written_anew(tmp_path: Path) -> None:
    model = load(tiny_model("llama"))
    with mlp_offloaded(model, tmp_path):
        pass
    (written,) = tmp_path.glob("mlp-*.safetensors")
    written.write_bytes(b"not a file of weights")
    plain = continued(model)
    with mlp_offloaded(model, tmp_path):
        assert torch.equal(continued(model), plain)


def test_weights_come_back_after_an_exception() -> None:
    model = load(tiny_model("opt"))
    before = mlp_weights(model)
    with pytest.raises(RuntimeError, match="stop"), core_sparse(model, share=0.3, offload="disk"):
        raise RuntimeError("stop")
    assert all(now is then and not now.is_meta for now, then in zip(mlp_weights(model), before, strict=True))


def test_offloading_twice_and_to_nowhere_is_refused(tmp_path: Path) -> None:
    model = load(tiny_model("llama"))
    with mlp_offloaded(model, "cpu"), pytest.raises(InputError, match="offloaded already"), mlp_offloaded(model, "cpu"):
        pass
    with pytest.raises(InputError, match="a folder that exists"), mlp_offloaded(model, tmp_path / "none"):
        pass
    assert not any(weight.is_meta for weight in mlp_weights(model))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_weights_that_accelerate_keeps_are_read_from_there(kind: str) -> None:
    model = load(tiny_model(kind))
    with core_sparse(model, share=0.3, layers=(0.0, 1.0), min_tokens=0):
        expected = continued(model)
    down = model.anatomy.down(1)
    kept = {name: weight.detach() for name, weight in down.named_parameters(recurse=False)}
    plain = down.forward

    def fetching(x: Tensor) -> Tensor:
        own, down._parameters = (
            down._parameters,
            {**empty, **{name: torch.nn.Parameter(kept[name], False) for name in kept}},
        )
        try:
            return plain(x)
        finally:
            down._parameters = own

    absent = {name: torch.nn.Parameter(torch.empty_like(kept[name], device="meta"), False) for name in kept}
    empty = down._parameters
    down._parameters = {**empty, **absent}
    down.forward = fetching
    down._hf_hook = SimpleNamespace(weights_map=kept)
    with core_sparse(model, share=0.3, layers=(0.0, 1.0), min_tokens=0):
        assert torch.equal(continued(model), expected)
    assert down.forward is fetching
    del down._hf_hook
    with core_sparse(model, share=0.3, layers=(0.0, 1.0), min_tokens=0), pytest.raises(ModelError, match="nowhere"):
        continued(model)
