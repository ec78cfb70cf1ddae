"""Every table of an atlas as a file that other tools read: Parquet (zstd) or CSV."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from patchclamp.atlas import schema
from patchclamp.atlas.connection import NAME, explained, reading, scratch_folder
from patchclamp.core.errors import Error, InputError

FORMATS = ("parquet", "csv")


def export(
    atlas: Path,
    folder: Path,
    *,
    format: str = "parquet",
    overwrite: bool = False,
    memory_limit: str | None = None,
    threads: int | None = None,
) -> list[Path]:
    """Write one file per table into `folder`, which appears when all are complete; returns their paths.

    Row order is the table's. overwrite: replace an existing folder (only one that holds nothing but such files).
    """
    if format not in FORMATS:
        raise InputError(f"no export format {format!r}; there are {', '.join(FORMATS)}")
    if not folder.parent.is_dir():
        raise InputError(f"can't write {folder}: the folder {folder.parent} does not exist; create it first")
    _check_target(folder, overwrite=overwrite)
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    except OSError as problem:
        raise Error(f"could not write {folder}: {problem.strerror or problem}") from problem
    try:
        with scratch_folder() as scratch:
            connection = reading(atlas, Path(scratch), memory_limit=memory_limit, threads=threads, locked=False)
            try:
                with explained(atlas):
                    schema.check(connection, atlas)
                    for table in schema.tables():
                        relation = connection.table(f"{NAME}.main.{table}")
                        target = str(part / f"{table}.{format}")
                        if format == "parquet":
                            relation.write_parquet(target, compression="zstd")
                        else:
                            relation.write_csv(target, header=True)
            finally:
                connection.close()
        os.chmod(part, 0o755)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(part, folder)
    except OSError as problem:
        raise Error(
            f"could not write {folder}: {problem.strerror or problem}; nothing was left half-written"
        ) from problem
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return [folder / f"{table}.{format}" for table in schema.tables()]


def _check_target(folder: Path, *, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not overwrite:
        raise InputError(f"{folder} exists already; choose another folder or remove it first")
    ours = {f"{table}.{format}" for table in schema.tables() for format in FORMATS}
    foreign = [] if not folder.is_dir() else [item.name for item in folder.iterdir() if item.name not in ours]
    if not folder.is_dir() or foreign:
        raise InputError(f"{folder} holds other things ({', '.join(foreign[:3]) or 'a file'}); it is not replaced")
