"""`patchclamp find METHOD`: score all units of a recording and choose those that carry each label.

Every registered finder is a subcommand; its options come from the finder's own signature and docstring.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from patchclamp.cli import options as o
from patchclamp.cli.output import emit, note

RENAMED = {"lam": "lambda", "lam_form": "lambda-form"}  # a Python keyword can't name a parameter


class Finders(TyperGroup):
    """Finders as subcommands; the finders' room is imported only when this group is used."""

    def list_commands(self, ctx: Any) -> list[str]:
        from patchclamp.find import finders

        return [entry.name for entry in finders]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from patchclamp.find import finders

        if cmd_name not in finders:
            return None
        app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
        app.command(cmd_name, epilog=_example(cmd_name))(command_of(finders[cmd_name]))
        return typer.main.get_command(app)


def register(app: typer.Typer) -> None:
    group = typer.Typer(cls=Finders, no_args_is_help=True, help="Find the units that carry each label of a recording.")

    @group.callback(epilog=_example("language"))
    def finders() -> None:
        """Find the units that carry each label of a recording."""

    app.add_typer(group, name="find")


def _example(name: str) -> str:
    return f"Example:\n\n  patchclamp find {name} rec/ --out neurons.json\n"


def command_of(finder: Callable[..., Any]) -> Callable[..., None]:
    """A command function for a finder: the recording's folder, where to write, and the finder's keyword arguments."""
    hints = typing.get_type_hints(finder)
    parameters = list(inspect.signature(finder).parameters.values())[1:]
    text, helps = documented(inspect.getdoc(finder) or "", [p.name for p in parameters])

    def command(folder: Path, out: Path, classes: str | None, as_json: bool, **arguments: Any) -> None:
        from patchclamp.record import Recording

        o.check_target(out)
        finding = finder(Recording.open(folder), **arguments)
        chosen = o.names(classes) if classes else None
        finding.save(out, classes=chosen)
        note(f"wrote {out}")
        emit(finding.summary(), as_json=as_json, shown=finding)

    own = [
        _parameter(
            "folder",
            Annotated[Path, typer.Argument(metavar="RECORDING", help="Folder that `patchclamp record` wrote.")],
        ),
        _parameter("out", Annotated[Path, typer.Option("--out", help="Where to write the sets (JSON).")]),
        _parameter(
            "classes",
            Annotated[
                str | None,
                typer.Option("--classes", help="Keep only units of these classes in the sets, such as specific."),
            ],
            None,
        ),
        *[
            _parameter(p.name, _option(p, hints[p.name], helps.get(p.name)), _plain_default(p.default))
            for p in parameters
        ],
        _parameter("as_json", o.AsJson, False),
    ]
    command.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in own}
    command.__doc__ = text
    return command


def documented(docstring: str, names: list[str]) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text and what it says of each parameter.

    Our docstrings describe parameters in one paragraph, as "rate: share of units to select. bar: ...".
    """
    pattern = re.compile(rf"(?:^|(?<=[.;]) )({'|'.join(map(re.escape, names))}): ")
    kept, helps = [], {}
    for paragraph in docstring.split("\n\n"):
        parts = pattern.split(" ".join(paragraph.split()))
        if len(parts) == 1 or parts[0]:
            kept.append(paragraph)
            continue
        for name, said in zip(parts[1::2], parts[2::2], strict=True):
            helps[name] = said[0].upper() + said[1:]
    return "\n\n".join(kept), helps


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _option(parameter: inspect.Parameter, hint: Any, help_text: str | None) -> Any:
    flag = RENAMED.get(parameter.name, parameter.name).replace("_", "-")
    names = (f"--{flag}/--no-{flag}",) if hint is bool else (f"--{flag}",)
    return Annotated[hint, typer.Option(*names, help=help_text)]


def _plain_default(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default
