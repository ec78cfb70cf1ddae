"""A command group whose subcommands are the entries of a registry, each made from its function's signature.

`patchclamp find METHOD` and `patchclamp read NAME` are such groups: the name of a function's first parameter says what
its command asks for, a recording or a model, and a line ``Example: `patchclamp ...` `` in its docstring is the example.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from patchclamp.cli import options as o
from patchclamp.cli import signatures
from patchclamp.core.errors import InputError
from patchclamp.core.registry import Registry

RECORDING = Annotated[Path, typer.Argument(metavar="RECORDING", help="Folder that `patchclamp record` wrote.")]
EXAMPLE = re.compile(r"\s*Example: `(patchclamp [^`]+)`\.?")
SUBJECTS: dict[str, Any] = {"recording": RECORDING, "model": o.ModelName}


def register(
    app: typer.Typer,
    word: str,
    text: tuple[str, str],
    entries: Callable[[], Registry[Any]],
    command: Callable[[Callable[..., Any]], Callable[..., None]],
    default: str,
    example: Callable[[str], str],
) -> None:
    """Add the group `word`. text: its line in the program's help and its own help. default: entry that the group's help shows.

    example: the command line to show for an entry whose docstring has none.
    """

    def shown(name: str) -> str:
        written = EXAMPLE.search(inspect.getdoc(entries()[name]) or "")
        return f"Example:\n\n  {' '.join(written[1].split()) if written else example(name)}\n"

    kind = signatures.group(entries, lambda name: command(entries()[name]), shown)
    group = typer.Typer(cls=kind, no_args_is_help=True, help=text[0])

    def grouped() -> None:
        pass

    grouped.__doc__ = text[1]
    group.callback(epilog=f"Example:\n\n  {example(default)}\n")(grouped)
    app.add_typer(group, name=word)


def first_of(function: Callable[..., Any], kind: str) -> str:
    """The name of a function's first parameter, which must be `recording` or `model`."""
    first = next(iter(inspect.signature(function).parameters))
    if first not in SUBJECTS:
        raise InputError(f"the {kind} {function.__name__} begins with {first!r}; it must be recording or model")
    return first


def opened(first: str, typed: dict[str, Any]) -> Any:
    """The recording or model that was named."""
    if first == "model":
        return signatures.placed(typed["model"], typed)
    from patchclamp.record import Recording

    return Recording.open(typed["recording"])


def help_of(signature: signatures.Signature) -> str:
    """The text of a command's help: the docstring without its example, which stands at the end of the help."""
    return EXAMPLE.sub("", signature.text)
