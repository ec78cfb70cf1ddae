"""Training checkpoints: model, optimizer and progress as safetensors and JSON, complete or absent, restored bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import DamagedError
from patchclamp.core.files import read_json, write_json

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

FORMAT = "patchclamp.training-checkpoint.1"
KEEP = 2


def save_checkpoint(folder: Path, model: nn.Module, optimizers: list[Optimizer], progress: dict[str, Any]) -> Path:
    """Write `folder`/step-N (N from progress["step"]), then drop all but the two newest. The folder's name is its claim
    to be whole: it is written under another name and renamed at the end."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{progress['step']:07d}"
    part = folder / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    weights = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(weights, part / "model.safetensors")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[id(parameter)]}::{key}": value.detach().clone().contiguous()
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    moments["::rng"] = torch.get_rng_state()
    save_file(moments, part / "optimizer.safetensors")
    write_json(part / "progress.json", {"format": FORMAT, **progress})
    if final.exists():
        shutil.rmtree(final)
    part.rename(final)
    for old in saved_checkpoints(folder)[:-KEEP]:
        shutil.rmtree(old)
    return final


def saved_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir()) if folder.is_dir() else []


def load_checkpoint(path: Path, model: nn.Module, optimizers: list[Optimizer]) -> dict[str, Any]:
    """Restore model, optimizers and torch's random state in place; returns the progress.

    Raises DamagedError if the checkpoint is of another model or incomplete.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    progress = read_json(path / "progress.json", format=FORMAT)
    parameters = dict(model.named_parameters())
    try:
        weights, moments = load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors")
    except (OSError, SafetensorError) as problem:
        raise DamagedError(
            f"the checkpoint {path} can't be read ({problem}); remove it to resume from an older one"
        ) from problem
    if {n: tuple(w.shape) for n, w in weights.items()} != {n: tuple(p.shape) for n, p in parameters.items()}:
        raise DamagedError(
            f"the checkpoint {path} holds another model than this run trains; choose another output folder"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    torch.set_rng_state(moments.pop("::rng"))
    owner = {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for entry, value in moments.items():
        name, _, key = entry.rpartition("::")
        owner[parameters[name]].state[parameters[name]][key] = value
    return progress
