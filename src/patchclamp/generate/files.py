"""A result as two files: JSON that any tool reads, and beside it the arrays as safetensors, which the JSON names by SHA-256."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import DamagedError
from patchclamp.core.files import atomic_write, read_json, sha256_file, write_json

SUFFIX = ".safetensors"


def save_pair(
    path: str | os.PathLike[str], format: str, body: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> Path:
    """Write the arrays beside `path` under its stem, then the JSON; each whole or not at all."""
    from safetensors.numpy import save_file

    target = Path(path)
    beside = target.with_name(target.stem + SUFFIX)
    with atomic_write(beside) as part:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part)
    named = {"name": beside.name, "sha256": sha256_file(beside)}
    return write_json(target, {"format": format, **body, "arrays": named})


def load_pair(path: str | os.PathLike[str], format: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What `save_pair` wrote; DamagedError for a missing, altered or other file of arrays."""
    from safetensors.numpy import load_file

    source = Path(path)
    body = read_json(source, format=format)
    try:
        beside = source.with_name(Path(body["arrays"]["name"]).name)  # only ever a file of the same folder
        wanted = body["arrays"]["sha256"]
    except (KeyError, TypeError) as problem:
        raise DamagedError(f"{source} is not a complete {format} file: {problem!r}") from problem
    if not beside.is_file() or sha256_file(beside) != wanted:
        raise DamagedError(f"{beside} is missing or is not the file that {source} was written with; make it again")
    return body, load_file(beside)
