"""Which projection of a gated MLP is gated: found by running the MLP once and comparing tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.models.anatomy import SitePath


def gate_and_up(
    hf: nn.Module, down: SitePath, ups: list[str], d_model: int
) -> tuple[SitePath | None, SitePath | None, str]:
    """(gate, up, note) of a gated MLP; both None with a note where it can't be told.

    ups: the projections d_model -> width (two of them) or d_model -> 2 width (one, gate and up side by side).
    The gate is the output of the module that gets exactly one projection's output (or half of it).
    """
    owner = down.path.rpartition(".")[0]
    mlp = hf.get_submodule(owner)
    try:
        taken = _trial(hf, mlp, owner, ups, d_model)
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, NotImplementedError) as problem:
        return None, None, f"{owner}: gate and up can't be told, a trial run failed ({type(problem).__name__})"
    for path, (given, returned) in taken.items():
        if path in ups or given is None or returned is None or given.shape[-1] != down.width:
            continue
        for number, up in enumerate(ups):
            for part in _parts(taken[up][1], down.width):
                if returned.shape == given.shape and _same(given, taken[up][1], part):
                    gate = SitePath(path, "output", down.width)
                    return gate, _other(ups, number, part, down.width), ""
    return None, None, f"{owner}: gate and up can't be told, no activation module gets a projection's output"


def _other(ups: list[str], number: int, part: tuple[int, int] | None, width: int) -> SitePath | None:
    """The projection that isn't gated."""
    if part is not None:
        return SitePath(ups[number], "output", width, (width, 2 * width) if part[0] == 0 else (0, width))
    others = [path for n, path in enumerate(ups) if n != number]
    return SitePath(others[0], "output", width) if len(others) == 1 else None


def _parts(output: Tensor | None, width: int) -> list[tuple[int, int] | None]:
    if output is None or output.shape[-1] == width:
        return [None]
    return [(0, width), (width, 2 * width)]


def _same(given: Tensor, output: Tensor | None, part: tuple[int, int] | None) -> bool:
    if output is None:
        return False
    flat = output if part is None else output[..., part[0] : part[1]]
    return flat.numel() == given.numel() and torch.equal(given.reshape(-1), flat.reshape(-1))


def _trial(
    hf: nn.Module, mlp: nn.Module, owner: str, ups: list[str], d_model: int
) -> dict[str, tuple[Tensor | None, Tensor | None]]:
    """Run an MLP on noise; path -> (first argument, output) of its leaf modules, private ones only."""
    from patchclamp.models.hooks import watch_calls

    weight: Any = next(mlp.parameters())
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 2, d_model, generator=generator).to(weight.device, weight.dtype)
    leaves = {
        f"{owner}.{name}": module for name, module in mlp.named_modules() if not any(True for _ in module.children())
    }
    with torch.no_grad():
        return watch_calls(lambda: mlp(noise), leaves)
