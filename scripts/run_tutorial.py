"""Run every code block of docs/tutorial.md in order; with --write, put what they print into the page's output blocks.

    python scripts/run_tutorial.py            run it in a temporary folder and print what each block prints
    python scripts/run_tutorial.py --write    the same, and renew the ```text block behind each code block

```python blocks share one namespace; of ```sh blocks the lines that start with `patchclamp` are run in this process.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tutorial.md"
WIDTH = "110"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, and where the code stands in the page."""

    language: str
    code: str
    start: int
    stop: int


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a Markdown page, in order."""
    return [Block(match[1], match[2], match.start(2), match.end(2)) for match in FENCED.finditer(page)]


def commands(code: str) -> list[str]:
    """The `patchclamp` lines of a shell block, continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", code).splitlines()
    return [line.strip() for line in lines if line.strip().startswith("patchclamp ")]


def run(page: str, folder: Path) -> Iterator[tuple[Block, str]]:
    """Run the code blocks in `folder`; yields each with what it printed on stdout. A failing block raises."""
    namespace: dict[str, Any] = {"__name__": "tutorial"}
    with contextlib.chdir(folder), _terminal_of(WIDTH):
        for number, block in enumerate(blocks(page)):
            if block.language not in ("python", "sh"):
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                if block.language == "python":
                    exec(compile(block.code, f"{PAGE.name}, block {number}", "exec"), namespace)
                else:
                    for command in commands(block.code):
                        _call(command)
            yield block, printed.getvalue()


def _call(command: str) -> None:
    from patchclamp.cli.main import main

    try:
        main(shlex.split(command)[1:])
    except SystemExit as done:
        if done.code not in (0, None):
            raise RuntimeError(f"`{command}` ended with exit code {done.code}") from done


@contextlib.contextmanager
def _terminal_of(width: str) -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = width
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def renewed(page: str, printed: dict[int, str]) -> str:
    """The page with the ```text block behind each code block holding what that block printed. printed: by code position."""
    found, renewals = blocks(page), []
    for block, behind in itertools.pairwise(found):
        if behind.language == "text" and block.start in printed:
            text = "\n".join(line.rstrip() for line in printed[block.start].rstrip().splitlines())
            renewals.append((behind.start, behind.stop, text + "\n"))
    for start, stop, text in reversed(renewals):
        page = page[:start] + text + page[stop:]
    return page


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    printed: dict[int, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for block, text in run(page, Path(folder)):
            print(f"--- {block.language}\n{block.code}--- prints\n{text}", file=sys.stderr)
            printed[block.start] = text
    if "--write" in sys.argv[1:]:
        PAGE.write_text(renewed(page, printed), encoding="utf-8")


if __name__ == "__main__":
    main()
