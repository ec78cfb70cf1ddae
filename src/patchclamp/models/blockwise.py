"""Activation functions taken a few rows at a time, so that all their steps find the rows in the processor's cache.

GPT-2's GELU is eight operations over the MLP's whole hidden layer; each reads and writes memory once. In blocks that
stay in the cache they take about half of the time, and every number is the same, bit for bit: each is worked out from
one input alone. That is looked after: a module's first large call is made both ways, and one that differs is left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.models.hooks import forward_replaced

# of transformers.activations; the others are one operation each, where blocks gain nothing
SEVERAL_STEPS = (
    "AccurateGELUActivation",
    "ClippedGELUActivation",
    "FastGELUActivation",
    "LaplaceActivation",
    "NewGELUActivation",
    "QuickGELUActivation",
    "ReLUSquaredActivation",
    "SqrtSoftplusActivation",
)
BLOCK = 2**17  # numbers: half a megabyte of float32


@contextlib.contextmanager
def blockwise_activations(model: Any) -> Iterator[None]:
    """Inside, the activation functions of a model on a CPU run block by block wherever no gradient is asked for.

    model: LanguageModel. Hooks on the functions see and change the same tensors as ever.
    """
    with contextlib.ExitStack() as stack:
        for module in model.hf.modules():
            if type(module).__name__ in SEVERAL_STEPS and "forward" not in vars(module):
                stack.enter_context(forward_replaced(module, _InBlocks(module)))
        yield


class _InBlocks:
    """The forward of one module, in blocks of rows once that has been seen to change nothing."""

    def __init__(self, module: nn.Module) -> None:
        self.plain: Callable[..., Any] = module.forward
        self.same: dict[torch.dtype, bool] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        values = args[0] if len(args) == 1 and not kwargs else None
        if not isinstance(values, Tensor) or not _worth_it(values):
            return self.plain(*args, **kwargs)
        if values.dtype not in self.same:
            whole = self.plain(values)
            self.same[values.dtype] = (
                isinstance(whole, Tensor) and whole.shape == values.shape and torch.equal(self._blocks(values), whole)
            )
            return whole
        return self._blocks(values) if self.same[values.dtype] else self.plain(values)

    def _blocks(self, values: Tensor) -> Tensor:
        rows = values.reshape(-1, values.shape[-1])
        step = max(1, BLOCK // rows.shape[1])
        out = torch.empty_like(rows)
        for start in range(0, len(rows), step):
            out[start : start + step] = self.plain(rows[start : start + step])
        return out.view(values.shape)


def _worth_it(values: Tensor) -> bool:
    """Whether these values are in a CPU's memory, too many for its cache, and need no gradient."""
    return (
        values.device.type == "cpu"
        and values.dim() >= 2
        and values.numel() > 2 * BLOCK
        and values.is_contiguous()
        and not (torch.is_grad_enabled() and values.requires_grad)
    )
