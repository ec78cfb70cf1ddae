"""Inside `fast_passes(model)` a float32 model on the CPU computes the same with faster kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from patchclamp.core.products import kernels, product, takes

# modules of transformers that compute GELU's tanh form in eight passes over the memory; torch does it in one
_TANH_GELU = {"NewGELUActivation", "FastGELUActivation", "BloomGelu"}


@contextlib.contextmanager
def fast_passes(model: Any) -> Iterator[None]:
    """Inside, linear layers multiply by oneDNN where that is faster (`core.products`), and tanh-GELU is one operation.

    For whole passes of our own, never around a user's: results agree with the model's own to rounding, not in their last
    bits. Contexts nest. Layers that somebody else has taken over (offloaded, quantised, adapted) stay as they are, and so
    do passes with gradients, other dtypes and other devices, and compiled models. PATCHCLAMP_KERNELS=plain changes nothing.
    """
    replaced = _replaced(model.hf)
    for module, forward in replaced:
        vars(module)["forward"] = forward  # what module.forward = ... does, without a look at every parameter
    try:
        yield
    finally:
        for module, _ in replaced:
            del vars(module)["forward"]


def _replaced(hf: nn.Module) -> list[tuple[nn.Module, Callable[[Tensor], Tensor]]]:
    how = kernels()
    if how == "plain" or any(_compiled(module) for module in hf.modules()):
        return []
    found: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
    for module in hf.modules():
        if "forward" in vars(module):
            continue
        if type(module) in (nn.Linear, Conv1D):
            if how == "fused+onednn" and _plain_weight(module.weight):
                found.append((module, _linear(module)))
        elif type(module).__name__ in _TANH_GELU and type(module).__module__.startswith("transformers."):
            found.append((module, _tanh_gelu(module)))
    return found


def _compiled(module: nn.Module) -> bool:
    """Whether torch.compile has code for a module, which would be compiled anew for another forward."""
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def _plain_weight(weight: Any) -> bool:
    return type(weight) in (nn.Parameter, Tensor) and weight.dtype == torch.float32 and weight.device.type == "cpu"


def _linear(module: Any) -> Callable[[Tensor], Tensor]:
    plain = module.forward
    turned = isinstance(module, Conv1D)  # GPT-2 keeps its weights as (n_in, n_out)

    def forward(values: Tensor) -> Tensor:
        weight = module.weight.t() if turned else module.weight
        if takes(values, weight, module.bias):
            return product(values, weight, module.bias)
        found: Tensor = plain(values)
        return found

    return forward


def _tanh_gelu(module: Any) -> Callable[[Tensor], Tensor]:
    plain = module.forward

    def forward(values: Tensor) -> Tensor:
        if values.dtype == torch.float32 and values.device.type == "cpu" and not torch.is_grad_enabled():
            return F.gelu(values, approximate="tanh")
        found: Tensor = plain(values)
        return found

    return forward
