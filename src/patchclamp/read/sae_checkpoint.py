"""The state of a training run in one file, whole or not at all: tensors as safetensors, the rest in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from patchclamp.core.errors import DamagedError, MismatchError
from patchclamp.core.files import atomic_write, sha256_text, to_json

FORMAT = "patchclamp.sae-checkpoint/1"


def save_checkpoint(
    file: Path,
    plan: Mapping[str, Any],
    source: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """Write `tensors` and `state` of the run that `plan` describes on activations called `source`."""
    from safetensors.torch import save_file

    metadata = {"format": FORMAT, "plan": to_json(plan), "source": _mark(source), "state": json.dumps(dict(state))}
    with atomic_write(file) as part:
        plain = {name: values.detach().cpu().contiguous().clone() for name, values in tensors.items()}
        save_file(plain, part, metadata=metadata)


def load_checkpoint(
    file: Path, plan: Mapping[str, Any], source: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and state of a run. MismatchError if the file belongs to another run, DamagedError if it can't be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as problem:
        raise DamagedError(f"the checkpoint {file} can't be read ({problem}); remove it to start anew") from problem
    if metadata.get("format") != FORMAT:
        raise DamagedError(f"{file} is no checkpoint of an autoencoder; choose another file")
    theirs, ours = json.loads(metadata["plan"]), json.loads(to_json(plan))
    differ = [key for key in ours if theirs.get(key) != ours[key]]
    if differ:
        what = ", ".join(f"{key} {theirs.get(key)!r} there, {ours[key]!r} here" for key in differ)
        raise MismatchError(f"the checkpoint {file} is of another run ({what}); remove it or choose another file")
    if metadata["source"] != _mark(source):
        raise MismatchError(f"the checkpoint {file} was trained on other activations; remove it or choose another file")
    return tensors, json.loads(metadata["state"])


def _mark(source: Mapping[str, Any]) -> str:
    return sha256_text(to_json(source))
