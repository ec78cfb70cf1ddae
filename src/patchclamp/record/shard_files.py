"""Shard files: safetensors, written whole or not at all, checked when read, memory-mapped."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from patchclamp.core.errors import DamagedError, Error
from patchclamp.core.files import atomic_write, sha256_file, to_json
from patchclamp.record.job import States

SHARD_FORMAT = "patchclamp.shard/1"
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def shard_name(label_number: int, number: int) -> str:
    """shard-LABEL-NUMBER.safetensors"""
    return f"shard-{label_number}-{number:05d}.safetensors"


def write_shard(path: Path, states: States, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Write the arrays of one shard; gives {"file", "bytes", "sha256"}. Error if the disk is full: nothing is left half-
    written.
    """
    arrays = {
        f"{key}/{name}": np.ascontiguousarray(array) if array.ndim else np.asarray(array)
        for key, state in states.items()
        for name, array in state.items()
    }
    with atomic_write(path) as part:
        try:
            # one entry only: several would be written in random order, and equal shards would differ in their bytes
            save_file(arrays, part, metadata={"patchclamp": to_json({"format": SHARD_FORMAT, **metadata})})
        except SafetensorError as problem:
            raise Error(f"could not write {path}: {problem}; nothing was left half-written") from problem
        digest, size = sha256_file(part), part.stat().st_size
    return {"file": path.name, "bytes": size, "sha256": digest}


def check_shard(path: Path, entry: Mapping[str, Any], recording: str) -> None:
    """DamagedError, naming the file, if it is missing, truncated, altered or of another recording."""
    if not path.is_file():
        raise DamagedError(f"{path} is missing; {_ADVICE}")
    size = path.stat().st_size
    if size == entry["bytes"] and sha256_file(path) == entry["sha256"]:
        return
    owner = shard_metadata(path).get("recording")
    if owner is not None and owner != recording:
        raise DamagedError(f"{path} belongs to another recording; {_ADVICE}")
    if size != entry["bytes"]:
        raise DamagedError(
            f"{path} has {size} bytes instead of {entry['bytes']}: it is truncated or altered; {_ADVICE}"
        )
    raise DamagedError(f"{path} has been altered (its SHA-256 is not the manifest's); {_ADVICE}")


_ADVICE = "put the right file back, or remove it and resume the recording (resume=True) to compute it again"


def shard_metadata(path: Path) -> dict[str, str]:
    """The metadata of a shard file, {} if it can't be read."""
    try:
        return dict(json.loads(_header(path)[0]["__metadata__"]["patchclamp"]))
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return {}


def map_shard(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a checked shard file, memory-mapped and read-only: nothing is read before it is used."""
    header, start = _header(path)
    arrays: dict[str, NDArray[Any]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        shape, (first, stop) = tuple(entry["shape"]), entry["data_offsets"]
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        if stop == first:
            arrays[name] = np.zeros(shape, dtype=dtype)
        elif not shape:
            arrays[name] = np.fromfile(path, dtype=dtype, count=1, offset=start + first).reshape(())
        else:
            arrays[name] = np.memmap(path, dtype=dtype, mode="r", offset=start + first, shape=shape)
    return arrays


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The JSON header of a safetensors file and where its data starts (the format: 8 bytes of length, header, data)."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > size:
            raise ValueError(f"{path} is truncated")
        return json.loads(stream.read(length)), 8 + length
