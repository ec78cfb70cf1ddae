"""Folders of dictionaries: features.json says what they are, features.safetensors holds the numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import atomic_folder, file_mode, read_json, sha256_file, write_json

HEADER, TENSORS = "features.json", "features.safetensors"


def write_folder(target: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a new folder, whole or not at all; gives its absolute path. InputError if it exists or its parent doesn't."""
    from safetensors.torch import save_file

    plain = {name: values.detach().cpu().contiguous().clone() for name, values in tensors.items()}
    with atomic_folder(target) as part:
        try:
            save_file(plain, part / TENSORS)
        except SafetensorError as problem:  # what it makes of a full disk and the like
            raise OSError(str(problem)) from problem
        (part / TENSORS).chmod(file_mode())
        write_json(part / HEADER, {**header, "sha256": sha256_file(part / TENSORS)})
    return target.absolute()


def read_folder(folder: Path, form: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a folder. InputError if it is no folder of features, DamagedError if its files are damaged."""
    from safetensors.torch import load_file

    if not (folder / HEADER).is_file():
        what = f"it has no {HEADER}" if folder.is_dir() else "there is no such folder"
        raise InputError(f"no features at {folder}: {what}")
    header: dict[str, Any] = read_json(folder / HEADER, format=form)
    path = folder / TENSORS
    if not path.is_file():
        raise DamagedError(f"{path} is missing")
    if sha256_file(path) != header.get("sha256"):
        raise DamagedError(f"{path} is truncated or has been altered (its SHA-256 is not the one in {HEADER})")
    try:
        return header, load_file(path)
    except SafetensorError as problem:
        raise DamagedError(f"{path} is no safetensors file: {problem}") from problem
