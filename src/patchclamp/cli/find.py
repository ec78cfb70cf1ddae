"""`patchclamp find METHOD`: score all units and choose those that carry each label.

Every registered finder is a subcommand; its options come from the finder's own signature and docstring, and the name of
its first parameter says what it works on: a recording, or a model (with a task or text to run it on).
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
from patchclamp.cli.output import emit, note
from patchclamp.core.errors import InputError

RECORDING = Annotated[Path, typer.Argument(metavar="RECORDING", help="Folder that `patchclamp record` wrote.")]
OUT = Annotated[Path, typer.Option("--out", help="Where to write the sets (JSON).")]
EXAMPLE = re.compile(r"\s*Example: `(patchclamp find [^`]+)`\.")
CLASSES = Annotated[
    str | None, typer.Option("--classes", help="Keep only units of these classes in the sets, such as specific.")
]


def register(app: typer.Typer) -> None:
    kind = signatures.group(_finders, lambda name: command_of(_finders()[name]), _example)
    group = typer.Typer(cls=kind, no_args_is_help=True, help="Find the units that carry each label.")

    @group.callback(epilog=_example("language"))
    def finders() -> None:
        """Find the units that carry each label: in a recording, or with a model on a task or text."""

    app.add_typer(group, name="find")


def _finders() -> Any:
    from patchclamp.find import finders

    return finders


def _example(name: str) -> str:
    """The example in a finder's docstring, `patchclamp find NAME ...` in backquotes; by default on a recording."""
    written = EXAMPLE.search(inspect.getdoc(_finders()[name]) or "") if name != "language" else None
    line = " ".join(written[1].split()) if written else f"patchclamp find {name} rec/ --out neurons.json"
    return f"Example:\n\n  {line}\n"


def command_of(finder: Callable[..., Any]) -> Callable[..., None]:
    """A command for a finder: its recording or model, where to write, and the finder's own arguments."""
    signature = signatures.Signature.of(finder)
    first = next(iter(inspect.signature(finder).parameters))
    if first not in ("recording", "model"):
        raise InputError(f"the finder {finder.__name__} begins with {first!r}; it must be recording or model")

    def command(**typed: Any) -> None:
        out: Path = typed["out"]
        o.check_target(out)
        wanted = None if "classes" in signature.kinds else typed["classes"]
        arguments = signature.values(typed)
        finding = finder(_first(first, typed), **arguments)
        finding.save(out, classes=o.names(wanted) if wanted else None)
        note(f"wrote {out}")
        emit(finding.summary(), as_json=typed["as_json"], shown=finding)

    subject = signatures.parameter(first, RECORDING if first == "recording" else o.ModelName)
    own = [subject, signatures.parameter("out", OUT), *signature.options()]
    own += signatures.shared({"classes": (CLASSES, None)}, signature.kinds)
    own += signatures.shared(signatures.PLACING, signature.kinds) if first == "model" else []
    return signatures.assembled(
        command, [*own, signatures.parameter("as_json", o.AsJson, False)], EXAMPLE.sub("", signature.text)
    )


def _first(name: str, typed: dict[str, Any]) -> Any:
    if name == "model":
        return signatures.placed(typed["model"], typed)
    from patchclamp.record import Recording

    return Recording.open(typed["recording"])
