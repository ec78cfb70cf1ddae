"""`patchclamp find METHOD`: score all units and choose those that carry each label.

Every registered finder is a subcommand; its options come from the finder's own signature and docstring, and the name of
its first parameter says what it works on: a recording, or a model (with a task or text to run it on).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from patchclamp.cli import options as o
from patchclamp.cli import registered, signatures
from patchclamp.cli.output import emit, note

OUT = Annotated[Path, typer.Option("--out", help="Where to write the sets (JSON).")]
CLASSES = Annotated[
    str | None, typer.Option("--classes", help="Keep only units of these classes in the sets, such as specific.")
]
TEXT = (
    "Find the units that carry each label.",
    "Find the units that carry each label: in a recording, or with a model on a task or text.",
)


def register(app: typer.Typer) -> None:
    registered.register(
        app,
        "find",
        TEXT,
        _finders,
        command_of,
        "language",
        lambda name: f"patchclamp find {name} rec/ --out neurons.json",
    )


def _finders() -> Any:
    from patchclamp.find import finders

    return finders


def command_of(finder: Callable[..., Any]) -> Callable[..., None]:
    """A command for a finder: its recording or model, where to write, and the finder's own arguments."""
    signature = signatures.Signature.of(finder)
    first = registered.first_of(finder, "finder")

    def command(**typed: Any) -> None:
        out: Path = typed["out"]
        o.check_target(out)
        wanted = None if "classes" in signature.kinds else typed["classes"]
        arguments = signature.values(typed)
        finding = finder(registered.opened(first, typed), **arguments)
        finding.save(out, classes=o.names(wanted) if wanted else None)
        note(f"wrote {out}")
        emit(finding.summary(), as_json=typed["as_json"], shown=finding)

    subject = signatures.parameter(first, registered.SUBJECTS[first])
    own = [subject, signatures.parameter("out", OUT), *signature.options()]
    own += signatures.shared({"classes": (CLASSES, None)}, signature.kinds)
    own += signatures.shared(signatures.PLACING, signature.kinds) if first == "model" else []
    return signatures.assembled(
        command, [*own, signatures.parameter("as_json", o.AsJson, False)], registered.help_of(signature)
    )
