"""Write docs/commands.md from the program's own --help: python scripts/write_command_docs.py

A test compares the page with what this makes, so the page can't lag behind the program.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
WIDTH = 100
INTRO = """# Commands

Made by `python scripts/write_command_docs.py` from the program's own `--help`; don't edit.

Every command prints its result on stdout and everything else (progress, notes, warnings) on stderr. `--json` prints the
result as JSON. Exit codes: 0 done, 1 the job failed (or a check or replay did not hold), 2 wrong usage or unusable input. A
failure is one line that says what was given, what was expected and what to do; no half-written file is left behind.

MODEL is a hub id, a local folder, or `demo`. `--text LABEL=FILE` may be repeated; `--text demo:find` and `--text demo:measure`
are the text that comes with the package (200 and 40 documents in each of six languages), `--text demo` both.
[File formats](formats.md) says what is written.
"""


def commands() -> Iterator[tuple[str, Any, Any]]:
    """(full name, command, its context) of every command of the program, groups before their members."""
    import typer

    from patchclamp.cli.main import app

    yield from _below("patchclamp", typer.main.get_command(app), None)


def _below(name: str, command: Any, parent: Any) -> Iterator[tuple[str, Any, Any]]:
    settings = {**command.context_settings, "terminal_width": WIDTH}
    context = command.context_class(command, info_name=name.rpartition(" ")[2], parent=parent, **settings)
    yield name, command, context
    if hasattr(command, "list_commands"):
        for member in command.list_commands(context):
            yield from _below(f"{name} {member}", command.get_command(context, member), context)


def page() -> str:
    """The whole page."""
    parts = [INTRO]
    for name, command, context in commands():
        text = "\n".join(line.rstrip() for line in command.get_help(context).strip().splitlines())
        parts.append(f"## {name}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
