"""Matrix products in float32 on a CPU, by the faster of the two libraries that torch carries.

torch gives float32 products to MKL, which runs AMD processors with half the vector width that they have. oneDNN, in the
same build of torch, uses all of it: 2.2 times as fast on a Zen 5 core, and a row's sum doesn't depend on how many rows
there are.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch
from torch import Tensor

from patchclamp.core.errors import InputError

VARIABLE = "PATCHCLAMP_KERNELS"
CHOICES = ("auto", "plain", "fused", "fast")
LEAST = 1 << 24  # multiplications from which oneDNN's fixed cost (20 us a call, 0.3 ms a new shape) is won back


def kernels() -> str:
    """How our own passes compute: "plain" (as the model itself does), "fused" (activation functions in one go), or
    "fused+onednn" (and large float32 products by oneDNN on the CPU).

    The same on every call on one machine, so that a recording goes on as it began. By default oneDNN is used on processors
    that MKL leaves half unused. The environment variable PATCHCLAMP_KERNELS overrides that: auto, plain, fused, or fast (oneDNN
    too, on any processor); InputError for anything else, or for fast where torch lacks oneDNN.
    """
    asked = os.environ.get(VARIABLE) or "auto"
    if asked not in CHOICES:
        raise InputError(f"{VARIABLE} is {asked!r}; it can be {', '.join(CHOICES)}")
    if asked == "fast" and not has_onednn():
        raise InputError(f"{VARIABLE} is 'fast', but this build of torch lacks oneDNN; set it to 'auto'")
    if asked in ("plain", "fused"):
        return asked
    return "fused+onednn" if asked == "fast" or (_mkl_is_slow() and has_onednn()) else "fused"


def faster(values: Tensor, weight: Tensor) -> bool:
    """Whether `product` is to multiply these here: `kernels` names oneDNN, and it `takes` them."""
    return kernels() == "fused+onednn" and takes(values, weight)


def takes(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether `product` can multiply these and gains by it: float32 on the CPU, without gradients, large enough."""
    learns = torch.is_grad_enabled() and any(one is not None and one.requires_grad for one in (values, weight, bias))
    return (
        values.dtype == weight.dtype == torch.float32
        and values.device.type == weight.device.type == "cpu"
        and values.numel() * weight.shape[0] >= LEAST
        and not learns
    )


def product(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """values @ weight.T + bias by oneDNN, for what it `takes`. values: (..., n_in); weight: (n_out, n_in), of any strides."""
    rows = values.reshape(-1, values.shape[-1])
    found: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return found.view(*values.shape[:-1], weight.shape[0])


@functools.cache
def has_onednn() -> bool:
    """Whether this build of torch multiplies by oneDNN, and rightly."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    values, weight = torch.eye(3), torch.arange(6.0).reshape(2, 3)
    try:
        with torch.inference_mode():
            return torch.equal(product(values, weight, torch.ones(2)), weight.T + 1)
    except RuntimeError:  # an operator of torch's own use, which may change
        return False


@functools.cache
def _mkl_is_slow() -> bool:
    """Whether torch multiplies by MKL on a processor of another maker whose widest vectors MKL leaves unused."""
    wide = torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and "GenuineIntel" not in _maker()


def _maker() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()  # Windows names the maker there
    return next((line for line in lines if line.startswith("vendor_id")), "")
