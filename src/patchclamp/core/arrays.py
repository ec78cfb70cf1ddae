"""Arrays inside JSON: small ones as lists would do, large ones as text of their bytes, exact and a quarter of the size."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import DamagedError

DTYPES = ("float64", "float32", "int64", "int32", "bool")


def packed(array: ArrayLike) -> dict[str, Any]:
    """{"dtype", "shape", "base64"} of an array's bytes, little-endian, rows first."""
    values = np.asarray(array)
    if values.dtype.name not in DTYPES:
        raise TypeError(f"an array of {values.dtype} can't be packed; use one of {', '.join(DTYPES)}")
    raw = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
    return {"dtype": values.dtype.name, "shape": list(values.shape), "base64": base64.b64encode(raw).decode("ascii")}


def unpacked(data: Mapping[str, Any]) -> NDArray[Any]:
    """The array that `packed` wrote; DamagedError for anything else."""
    try:
        name, shape = data["dtype"], tuple(int(size) for size in data["shape"])
        if name not in DTYPES:
            raise ValueError(f"dtype {name!r}")
        raw = base64.b64decode(data["base64"], validate=True)
        found = np.frombuffer(raw, dtype=np.dtype(name).newbyteorder("<")).reshape(shape)
    except (KeyError, TypeError, ValueError, binascii.Error) as problem:
        raise DamagedError(f"an array in the file is damaged: {problem}") from problem
    return found.astype(name)  # a copy in the machine's own byte order, writable
