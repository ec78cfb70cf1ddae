"""Where the weights of an MLP are read from: the model itself, where `mlp_offloaded` put them, or where accelerate did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchclamp.core.errors import ModelError
from patchclamp.models.anatomy import weight_of

Call = Callable[[Tensor], Tensor]


OFFLOADED: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()  # what `mlp_offloaded` keeps elsewhere


class Weights:
    """The maps of a model's MLPs as they are computed, and parts of their weights.

    A map must be asked for once (`dense`) before another function takes its place.
    """

    def __init__(self) -> None:
        self._plain: dict[nn.Module, Call] = {}

    def weight(self, module: nn.Module) -> Tensor:
        """(out, in), wherever it lies, perhaps a memory-mapped file; a view."""
        return weight_of(module) if not _absent(module) else _fetched(module, "weight")

    def bias(self, module: nn.Module) -> Tensor | None:
        """(out,) or None."""
        own: Any = getattr(module, "bias", None)
        return own if own is None or not own.is_meta else _fetched(module, "bias")

    def dense(self, module: nn.Module) -> Call:
        """The whole map, as the model computes it."""
        return self._plain.setdefault(module, module.forward)

    def rows(self, module: nn.Module, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Some outputs of a map: weight (k, in), contiguous on the device, and bias (k,)."""
        bias = self.bias(module)
        cut = None if bias is None else taken(bias, 0, index, device)
        return taken(self.weight(module), 0, index, device), cut

    def columns(self, module: nn.Module, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Some inputs of a map: weight (out, k), contiguous on the device, and the whole bias."""
        bias = self.bias(module)
        return taken(self.weight(module), 1, index, device), None if bias is None else bias.to(device)


def taken(weight: Tensor, axis: int, index: Tensor, device: torch.device) -> Tensor:
    """Rows (axis 0) or columns (axis 1) of a weight, contiguous on the device.

    On a CPU numpy takes them: it is several times faster than torch for the columns of a bfloat16 matrix, and reads no more
    than it must of a memory-mapped file.
    """
    if weight.device.type != "cpu":
        return weight.index_select(axis, index.to(weight.device)).contiguous().to(device)
    plain = weight.detach()
    bits = plain.view({2: torch.int16, 4: torch.int32, 8: torch.int64, 1: torch.int8}[plain.element_size()]).numpy()
    cut = np.ascontiguousarray(np.take(bits, index.cpu().numpy(), axis=axis))
    return torch.from_numpy(cut).view(weight.dtype).to(device)


def linear(weight: Tensor, bias: Tensor | None) -> Call:
    """The map x -> x W^T + b for a weight (out, in)."""

    def call(x: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    return call


def _absent(module: nn.Module) -> bool:
    weight: Any = module.weight
    return bool(weight.is_meta)


def _fetched(module: nn.Module, name: str) -> Tensor:
    """A weight that isn't in the model, on the CPU or in a file; as (out, in) if it is a matrix."""
    found = _kept(module, name)
    if found is None:
        raise ModelError(
            f"the {name} of a {type(module).__name__} is nowhere in memory; load the model with its weights"
        )
    return found.T if found.dim() == 2 and type(module).__name__ == "Conv1D" else found


def _kept(module: nn.Module, name: str) -> Tensor | None:
    if module in OFFLOADED:
        return OFFLOADED[module][name]
    hook: Any = getattr(module, "_hf_hook", None)
    maps = (getattr(one, "weights_map", None) for one in (hook, *getattr(hook, "hooks", ())))
    found: Tensor | None = next((kept[name] for kept in maps if kept is not None), None)
    return found
