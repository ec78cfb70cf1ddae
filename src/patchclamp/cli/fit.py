"""`patchclamp fit NAME`: make interventions from data and save them.

Every registered fit is a subcommand; its options come from the fit's own signature and docstring, and the name of its first
parameter says what it works on: a model, or a recording. The file is what `patchclamp effect`, `edit` and `generate` take.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchclamp.cli import options as o
from patchclamp.cli import registered, signatures
from patchclamp.cli.output import emit, note, table

if TYPE_CHECKING:
    from patchclamp.intervene import Interventions

OUT = Annotated[Path, typer.Option("--out", help="Where to write the interventions (JSON).")]
TEXT = (
    "Make interventions from data: steer, unlearn, refuse, damp.",
    "Make interventions from data and save them; effect, edit and generate take the file.",
)
COLUMNS = {"kind": "kind", "n_units": "units", "scope": "scope", "what": "what it does"}


def register(app: typer.Typer) -> None:
    registered.register(
        app,
        "fit",
        TEXT,
        _fits,
        command_of,
        "steer",
        lambda name: f"patchclamp fit {name} demo --text demo:find --towards de --away en --out {name}.json",
    )


def _fits() -> Any:
    from patchclamp.intervene.fits import fits

    return fits


def command_of(function: Callable[..., Any]) -> Callable[..., None]:
    """A command for a fit: its model or recording, the fit's own arguments, and where to write the result."""
    signature = signatures.Signature.of(function)
    first = registered.first_of(function, "fit")
    name = next(entry.name for entry in _fits() if entry.target is function)

    def command(**typed: Any) -> None:
        from patchclamp.intervene.fits import fit

        out: Path = typed["out"]
        o.check_target(out)
        subject = registered.opened(first, typed)
        made = fit(name, subject, **signature.values(typed, subject))
        note(f"wrote {made.save(out)}")
        emit(summary(name, made), as_json=typed["as_json"], shown=table("", rows(made), COLUMNS))

    own = [signatures.parameter(first, registered.SUBJECTS[first]), signatures.parameter("out", OUT)]
    own += signature.options()
    own += signatures.shared(signatures.PLACING, signature.kinds) if first == "model" else []
    return signatures.assembled(
        command, [*own, signatures.parameter("as_json", o.AsJson, False)], registered.help_of(signature)
    )


def rows(changes: Interventions) -> list[dict[str, Any]]:
    """One plain dict per change: kind (of an own kind its operation), n_units, scope, what (in words)."""
    from patchclamp.intervene.kinds import kind_name

    return [
        {
            "kind": getattr(one, "operation", None) or kind_name(one),
            "n_units": one.n_units,
            "scope": one.scope,
            "what": one.describe(),
        }
        for one in changes
    ]


def summary(name: str, made: Interventions) -> dict[str, Any]:
    """What was made, as plain data; the numbers themselves are in the file."""
    model = {key: made.model.get(key) for key in ("name", "fingerprint")}
    return {"fit": name, "model": model, "n_units": made.n_units, "changes": rows(made)}
