"""MLP weights kept off the model's device: in the host's memory or in a memory-mapped safetensors file, read piece by piece.

A prompt is then read with every layer's weights fetched once, used and let go; with `core_sparse` decoding needs only the parts
that were cut out. The way back is always open: leaving the context puts the weights where they were.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from patchclamp.core.errors import InputError
from patchclamp.core.files import atomic_write
from patchclamp.generate.maps import MlpMaps, layers_of, mlp_maps
from patchclamp.generate.weights import OFFLOADED, Call, Weights
from patchclamp.models.hooks import forward_replaced

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

PLACES = ("cpu", "disk")


@contextlib.contextmanager
def mlp_offloaded(
    model: LanguageModel,
    to: str | os.PathLike[str] = "cpu",
    *,
    layers: Sequence[float] | Sequence[int] = (0.0, 1.0),
) -> Iterator[int]:
    """Run with the MLP weights of some layers kept elsewhere; each layer's are fetched when it is computed, then let go.

    to: "cpu" keeps them in the host's memory (pinned, where the model is on a GPU), "disk" in a file that is memory-mapped: the
    model's own safetensors where they hold the same numbers, else a temporary one; a folder: the same, written there. layers: a
    range of depth, or layer numbers. Inside, the parameters are on the meta device, so that the model takes neither memory
    for them on its own device nor, with "disk", in the host. Afterwards the very same parameters are back, on exceptions too.
    Yields the bytes that are kept elsewhere. Inside, `core_sparse` takes its parts from there.
    """
    chosen = layers_of(model.anatomy.n_layers, layers)
    maps = mlp_maps(model, chosen)
    modules = [module for one in maps for module in one.modules]
    if any(weight.is_meta for module in modules for weight in module.parameters(recurse=False)):
        raise InputError("the model's MLP weights are offloaded already; core_sparse reads them from where they are")
    with contextlib.ExitStack() as stack:
        kept = _kept(stack, model, maps, to)
        stack.enter_context(_emptied(modules, kept, mapped=to != "cpu"))
        for module in modules:
            stack.enter_context(forward_replaced(module, _fetching(module)))
        tensors = [tensor for entries in kept.values() for tensor in entries.values()]
        yield sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _fetching(module: nn.Module) -> Call:
    """A linear map whose weights are brought to its input's device for one call."""
    weights = Weights()

    def call(x: Tensor) -> Tensor:
        bias = weights.bias(module)
        there = None if bias is None else bias.to(x.device)
        return F.linear(x, weights.weight(module).to(x.device, non_blocking=True), there)

    return call


def _kept(
    stack: contextlib.ExitStack, model: LanguageModel, maps: Sequence[MlpMaps], to: str | os.PathLike[str]
) -> dict[nn.Module, dict[str, Tensor]]:
    """Every parameter's values as tensors on the CPU, in memory or memory-mapped."""
    named = {f"{path}.{name}": (module, name, weight) for one in maps
             for path, module in zip(one.paths, one.modules, strict=True)
             for name, weight in module.named_parameters(recurse=False)}  # fmt: skip
    if to == "cpu":
        values = {key: _in_host(weight.detach()) for key, (_, _, weight) in named.items()}
    else:
        values = _mapped(stack, model, {key: weight.detach() for key, (_, _, weight) in named.items()}, to)
    kept: dict[nn.Module, dict[str, Tensor]] = {}
    for key, (module, name, _) in named.items():
        kept.setdefault(module, {})[name] = values[key]
    return kept


def _in_host(weight: Tensor) -> Tensor:
    return weight if weight.device.type == "cpu" else weight.to("cpu").pin_memory()


def _mapped(
    stack: contextlib.ExitStack, model: LanguageModel, weights: Mapping[str, Tensor], to: str | os.PathLike[str]
) -> dict[str, Tensor]:
    """The weights as views of memory-mapped safetensors files."""
    own = _own_files(model, weights) if to == "disk" else {}
    rest = {key: weight for key, weight in weights.items() if key not in own}
    if not rest:
        return own
    if to == "disk":
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="patchclamp-mlp-")))
    else:
        folder = Path(to)
        if not folder.is_dir():
            raise InputError(f"offload={str(to)!r} given; it is 'cpu', 'disk' or a folder that exists")
    path = folder / f"mlp-{model.fingerprint[:12]}-{str(model.dtype).removeprefix('torch.')}.safetensors"
    if not path.is_file() or not _holds(path, rest):
        from safetensors.torch import save_file

        with atomic_write(path) as part:
            save_file({key: weight.cpu().contiguous() for key, weight in rest.items()}, part)
    return {**own, **_read(path, list(rest))}


def _own_files(model: LanguageModel, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that the model's own files hold under the same name, with the same numbers."""
    folder = Path(model.source) if model.source else None
    found: dict[str, Tensor] = {}
    if folder is None or not folder.is_dir():
        return found
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = [key for key in file.keys() if key in weights]  # noqa: SIM118 (not a mapping)
        for key, tensor in _read(path, names).items():
            if tensor.dtype == weights[key].dtype and torch.equal(tensor, weights[key].cpu()):
                found[key] = tensor
    return found


def _holds(path: Path, weights: Mapping[str, Tensor]) -> bool:
    """Whether a file written before holds exactly these weights."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            if not set(weights) <= set(file.keys()):
                return False
        return all(torch.equal(tensor, weights[key].cpu()) for key, tensor in _read(path, list(weights)).items())
    except (SafetensorError, RuntimeError):
        return False


def _read(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:  # tensors stay views of the mapped file after it is closed
        return {name: file.get_tensor(name) for name in names}


@contextlib.contextmanager
def _emptied(
    modules: Sequence[nn.Module], kept: Mapping[nn.Module, dict[str, Tensor]], *, mapped: bool
) -> Iterator[None]:
    """Parameters on the meta device inside the context; the very same objects with their values again afterwards.

    mapped: the values lie in a file, which may go away, so that they come back as memory of their own.
    """
    own: list[tuple[nn.Module, str, nn.Parameter, torch.device]] = []
    try:
        for module in modules:
            for name, weight in list(module.named_parameters(recurse=False)):
                own.append((module, name, weight, weight.device))
                parameters: dict[str, Any] = module._parameters
                parameters[name] = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False)
                weight.data = kept[module][name]
            OFFLOADED[module] = kept[module]
        yield
    finally:
        for module, name, weight, device in own:
            OFFLOADED.pop(module, None)
            value = kept[module][name]
            weight.data = value.clone() if mapped and device.type == "cpu" else value.to(device)
            module._parameters[name] = weight
