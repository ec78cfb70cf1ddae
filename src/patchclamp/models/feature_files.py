"""Folders of dictionaries: features.json says what they are, features.safetensors holds the numbers."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from patchclamp.core.errors import DamagedError, Error, InputError
from patchclamp.core.files import read_json, sha256_file, write_json

HEADER, TENSORS = "features.json", "features.safetensors"


def write_folder(target: Path, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a new folder, whole or not at all; gives its absolute path. InputError if it exists or its parent doesn't."""
    from safetensors.torch import save_file

    if target.exists():
        raise InputError(f"{target} exists already; choose another folder or remove it first")
    if not target.parent.is_dir():
        raise InputError(f"can't write {target}: the folder {target.parent} does not exist; create it first")
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        plain = {name: values.detach().cpu().contiguous().clone() for name, values in tensors.items()}
        save_file(plain, part / TENSORS)
        write_json(part / HEADER, {**header, "sha256": sha256_file(part / TENSORS)})
        umask = os.umask(0)
        os.umask(umask)
        (part / TENSORS).chmod(0o666 & ~umask)
        part.chmod(0o777 & ~umask)  # mkdtemp makes private folders
        part.rename(target)
    except (OSError, SafetensorError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise Error(f"could not write {target}: {reason}; nothing was left half-written") from problem
    finally:
        shutil.rmtree(part, ignore_errors=True)
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
