"""Run the program inside this process, or for real, with its output apart: `ran = program("record", ...)`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchclamp.cli.main import main


@dataclass(frozen=True)
class Ran:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON value and nothing else."""
        return json.loads(self.out)

    @property
    def warnings(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("patchclamp: warning: ")]


def program(*arguments: Any) -> Ran:
    """The program in this process; as on a terminal of 80 columns."""
    out, err = io.StringIO(), io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    code: Any = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return Ran(code, out.getvalue(), err.getvalue())


def command(*arguments: Any) -> list[str]:
    """The command line of the real program."""
    return [sys.executable, "-m", "patchclamp.cli.main", *map(str, arguments)]


def real_program(*arguments: Any, folder: Path, **options: Any) -> Ran:
    """The program as a process of its own, in a folder."""
    done = subprocess.run(
        command(*arguments), cwd=folder, capture_output=True, text=True, timeout=300, check=False, **options
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def text_options(paths: dict[str, Path]) -> list[str]:
    """`--text LABEL=FILE` for every label."""
    return [part for label, path in paths.items() for part in ("--text", f"{label}={path}")]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
