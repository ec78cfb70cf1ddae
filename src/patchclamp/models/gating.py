"""Which projection of a gated MLP is gated: found by running the MLP once and comparing tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from patchclamp.models.anatomy import SitePath

FAR_BELOW = -40.0  # SiLU, GELU, ReLU and the logistic function are 0 there


def gate_and_up(hf: nn.Module, down: SitePath, ups: list[str], d_model: int) -> tuple[dict[str, SitePath], str]:
    """Sites `gate`, `up` and `pre` of a gated MLP; none, and a note, where they can't be told.

    ups: the projections d_model -> width (two of them) or d_model -> 2 width (one, gate and up side by side).
    The gate is the output of the module that gets exactly one projection's output (or half of it), which is `pre`.
    """
    owner = down.path.rpartition(".")[0]
    mlp = hf.get_submodule(owner)
    try:
        taken = _trial(hf, mlp, owner, ups, d_model)
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, NotImplementedError) as problem:
        return {}, f"{owner}: gate and up can't be told, a trial run failed ({type(problem).__name__})"
    for path, (given, returned) in taken.items():
        if path in ups or given is None or returned is None or given.shape[-1] != down.width:
            continue
        for number, up in enumerate(ups):
            for part in _parts(taken[up][1], down.width):
                if returned.shape == given.shape and _same(given, taken[up][1], part):
                    return _sites(SitePath(path, "output", down.width), ups, number, part, down.width), ""
    shut = [number for number in range(len(ups)) if _shuts(hf, down, ups, number, d_model)]
    if len(ups) == 2 and len(shut) == 1:
        return _sites(None, ups, shut[0], None, down.width), f"{owner}: no gate, its activation is not a module"
    return {}, f"{owner}: gate and up can't be told, no activation module gets a projection's output"


def _shuts(hf: nn.Module, down: SitePath, ups: list[str], number: int, d_model: int) -> bool:
    """Whether a projection far below zero shuts the neurons, as it does where an activation function follows."""
    from patchclamp.models.hooks import forward_replaced

    owner, projection = down.path.rpartition(".")[0], hf.get_submodule(ups[number])
    plain = projection.forward
    with forward_replaced(projection, lambda *args, **kwargs: torch.full_like(plain(*args, **kwargs), FAR_BELOW)):
        neurons, _ = _trial(hf, hf.get_submodule(owner), owner, ups, d_model)[down.path]
    return neurons is not None and float(neurons.abs().max()) < 1e-3


def _sites(
    gate: SitePath | None, ups: list[str], number: int, part: tuple[int, int] | None, width: int
) -> dict[str, SitePath]:
    """The sites, once it is known which projection (or which half of one) is gated."""
    found = {"pre": SitePath(ups[number], "output", width, part)}
    if gate is not None:
        found["gate"] = gate
    others = [path for n, path in enumerate(ups) if n != number]
    if part is not None:
        found["up"] = SitePath(ups[number], "output", width, (width, 2 * width) if part[0] == 0 else (0, width))
    elif len(others) == 1:
        found["up"] = SitePath(others[0], "output", width)
    return found


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
