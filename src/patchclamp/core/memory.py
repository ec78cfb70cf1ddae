"""Freed memory that is kept for the next batch: on Linux the C library gives large blocks back to the kernel at once, and
every batch then pays for being handed zeroed pages anew, which costs more than the arithmetic of an activation function.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any

# numbers of mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEEP = 2**31 - 1  # bytes at the top of the heap that are never given back
# Once a parameter is set, the C library no longer adapts them by itself; these are the bounds it would adapt towards.
_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _MMAP_MAX: 65536}

_LOCK = threading.Lock()
_HOLDERS = [0]


@contextlib.contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, memory that tensors free stays with the process; at the end of the outermost block it is given back.

    For loops that allocate the same shapes again and again. Nests, also over threads. Does nothing where the C library isn't
    glibc, and nothing to memory of a GPU, which torch keeps by itself.
    """
    library = _glibc()
    if library is None:
        yield
        return
    with _LOCK:
        _HOLDERS[0] += 1
        if _HOLDERS[0] == 1:
            library.mallopt(_TRIM_THRESHOLD, _KEEP)
            library.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        with _LOCK:
            _HOLDERS[0] -= 1
            if not _HOLDERS[0]:
                for parameter, value in _USUAL.items():
                    library.mallopt(parameter, value)
                library.malloc_trim(0)


@cache
def _glibc() -> Any:
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
