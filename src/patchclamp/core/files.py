"""Whole files or none: write beside, flush, then rename; and fingerprints of what is on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patchclamp.core.errors import DamagedError, Error, InputError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any exception it is removed.

    Raises InputError if the folder does not exist, or if `path` exists and `overwrite` is False.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise InputError(f"can't write {target}: the folder {target.parent} does not exist; create it first")
    if target.is_dir():
        raise InputError(f"can't write {target}: it is a folder; give a file name")
    if not overwrite and target.exists():
        raise InputError(f"{target} exists already; choose another name or remove it first")
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
    os.close(handle)
    part = Path(name)
    try:
        yield part
        part.chmod(file_mode())  # mkstemp makes private files; a result should be as readable as any other
        with part.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(part, target)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise Error(f"could not write {target}: {reason}; nothing was left half-written") from problem
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, on any exception it is removed.

    Raises InputError if `path` exists or its parent doesn't.
    """
    target = Path(path)
    if target.exists():
        raise InputError(f"{target} exists already; choose another folder or remove it first")
    if not target.parent.is_dir():
        raise InputError(f"can't write {target}: the folder {target.parent} does not exist; create it first")
    part: Path | None = None
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        yield part
        part.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
        part.rename(target)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise Error(f"could not write {target}: {reason}; nothing was left half-written") from problem
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def file_mode() -> int:
    """Permissions of an ordinary new file of this process."""
    return 0o666 & ~_umask()


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 1, overwrite: bool = True) -> Path:
    """Write `value` as UTF-8 JSON, whole or not at all. NaN and infinities become null: JSON has no such numbers."""
    text = to_json(value, indent=indent)
    with atomic_write(path, overwrite=overwrite) as part:
        part.write_text(text + "\n", encoding="utf-8")
    return Path(path)


def to_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text of plain data, numpy scalars and arrays, paths, and anything with `to_dict()`."""
    return json.dumps(_plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    if hasattr(value, "tolist"):  # numpy and torch
        return _plain(value.tolist())
    return str(value)


def read_json(path: str | os.PathLike[str], *, format: str | None = None) -> Any:
    """Read JSON; if `format` is given the object must carry {"format": format}.

    Raises InputError for a missing file, DamagedError for text that is not JSON or another format.
    """
    source = Path(path)
    if not source.is_file():
        raise InputError(f"no file at {source}")
    try:
        value = json.loads(source.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise DamagedError(f"{source} is not valid JSON ({problem}); it may be truncated") from problem
    if format is not None:
        found = value.get("format") if isinstance(value, dict) else None
        if found != format:
            raise DamagedError(f"{source} has format {found!r}, but {format!r} is needed here")
    return value


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Hex SHA-256 of UTF-8 text."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
