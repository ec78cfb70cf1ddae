"""`patchclamp read NAME`: what units and features mean.

Every registered reading is a subcommand; its options come from the reading's own signature and docstring, and the name of
its first parameter says what it works on: a model, or a recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from patchclamp.cli import options as o
from patchclamp.cli import registered, signatures
from patchclamp.cli.output import emit, note, table

OUT = Annotated[Path | None, typer.Option("--out", help="Also save the reading (JSON, large arrays beside it).")]
TEXT = (
    "Read what units and features mean.",
    "Read what units and features mean: the tokens they promote, the texts they fire on, what they decompose into.",
)
SHOWN = 40  # rows of a reading that a terminal is given


def register(app: typer.Typer) -> None:
    registered.register(
        app,
        "read",
        TEXT,
        _readings,
        command_of,
        "tokens",
        lambda name: f"patchclamp read {name} demo --out {name}.json",
    )


def _readings() -> Any:
    from patchclamp.read import readings

    return readings


def command_of(reading: Callable[..., Any]) -> Callable[..., None]:
    """A command for a reading: its model or recording, the reading's own arguments, and where to save the result."""
    signature = signatures.Signature.of(reading)
    first = registered.first_of(reading, "reading")

    def command(**typed: Any) -> None:
        out: Path | None = typed["out"]
        o.check_target(out)
        subject = registered.opened(first, typed)
        result = reading(subject, **signature.values(typed, subject))
        emit(result.to_dict(), as_json=typed["as_json"], shown=None if typed["as_json"] else _shown(result))
        if out is not None:
            note(f"wrote {result.save(out)}")

    own = [signatures.parameter(first, registered.SUBJECTS[first]), *signature.options()]
    own += [signatures.parameter("out", OUT, None)]
    own += signatures.shared(signatures.PLACING, signature.kinds) if first == "model" else []
    return signatures.assembled(
        command, [*own, signatures.parameter("as_json", o.AsJson, False)], registered.help_of(signature)
    )


def _shown(result: Any) -> Any:
    """A result as it draws itself, or its first rows as a table."""
    if any(hasattr(result, name) for name in ("__rich__", "__rich_console__")):
        return result
    rows: Sequence[dict[str, Any]] = result.rows()
    if not rows:
        return "nothing was read"
    if len(rows) > SHOWN:
        note(f"the first {SHOWN} of {len(rows):,} rows; --json and --out give all")
    plain = [key for key in rows[0] if not isinstance(rows[0][key], list | dict)]
    return table("", rows[:SHOWN], {key: key.replace("_", " ") for key in plain})
