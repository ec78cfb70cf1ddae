"""Files of readings: JSON `patchclamp.reading/1`, and large arrays in a safetensors file beside it.

`name.json` carries what was read and how it was made; `name.safetensors`, where there are arrays, is named in it
together with its SHA-256, so that a pair that doesn't belong together is noticed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.core.files import atomic_write, read_json, sha256_file, write_json

FORMAT = "patchclamp.reading/1"


def save_reading(
    path: str | os.PathLike[str],
    kind: str,
    body: Mapping[str, Any],
    *,
    provenance: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """Write a reading; returns `path`. kind: the reading's name. body: plain data. arrays: name -> array.

    The arrays go to a file of the same name with the ending `.safetensors`. Raises InputError for a path that ends so.
    """
    target = Path(path)
    if target.suffix == ".safetensors":
        raise InputError(f"{target} is where the arrays would go; give a name that ends in .json")
    stored: dict[str, Any] = {"format": FORMAT, "reading": kind, "provenance": dict(provenance), **body}
    if arrays:
        from safetensors.numpy import save_file

        beside = target.with_suffix(".safetensors")
        with atomic_write(beside) as part:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part)
        stored["arrays"] = {"file": beside.name, "sha256": sha256_file(beside)}
    return write_json(target, stored)


def load_reading(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What `save_reading` wrote: the JSON object and the arrays.

    Raises InputError for a missing file, DamagedError for another kind of reading and for arrays that are not those.
    """
    source = Path(path)
    data = read_json(source, format=FORMAT)
    if data.get("reading") != kind:
        raise DamagedError(f"{source} is a reading of the kind {data.get('reading')!r}; {kind!r} is needed here")
    named = data.pop("arrays", None)
    if named is None:
        return data, {}
    beside = source.with_name(str(named.get("file")))
    if not beside.is_file():
        raise DamagedError(f"{source} needs {beside.name} beside it, which is not there; keep the two together")
    if sha256_file(beside) != named.get("sha256"):
        raise DamagedError(f"{beside} is not the file that {source.name} was written with")
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return data, dict(load_file(beside))
    except SafetensorError as problem:
        raise DamagedError(f"{beside} can't be read: {problem}") from problem
