"""`patchclamp study`: published methods end to end; every registered study is a subcommand of `run`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from patchclamp.cli import options as o
from patchclamp.cli import signatures
from patchclamp.cli.output import emit, table

MODEL = Annotated[
    str, typer.Option("--model", help="Hub id, local folder, or `demo` (comes with the package).", show_default=True)
]
OUT = Annotated[Path, typer.Option("--out", help="Folder for report.html, report.json and the parts; must be new.")]
RESUME = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run in --out: same study, model and options.")
]
LIST_EXAMPLE = "Example:\n\n  patchclamp study list\n"
SHOW_EXAMPLE = "Example:\n\n  patchclamp study show language-neurons\n"


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run published methods end to end.")
    group.command("list", epilog=LIST_EXAMPLE)(list_studies)
    group.command("show", epilog=SHOW_EXAMPLE)(show)
    kind = signatures.group(_studies, lambda name: command_of(name), _example)
    run = typer.Typer(cls=kind, no_args_is_help=True, help="Run a study: report.html, report.json and its parts.")

    @run.callback(epilog=_example("language-neurons"))
    def study_run() -> None:
        """Run a study on a model of your choice; its tables are printed and a page with plots is written."""

    group.add_typer(run, name="run")
    app.add_typer(group, name="study")


def list_studies(as_json: o.AsJson = False) -> None:
    """List the studies, built in and from installed packages."""
    rows = [{"name": entry.name, "summary": entry.summary} for entry in _studies()]
    emit({"studies": rows}, as_json=as_json, shown=table("", rows, {"name": "study", "summary": "what it does"}))


def show(name: Annotated[str, typer.Argument(help="A study's name.")], as_json: o.AsJson = False) -> None:
    """Say what a study does, from which paper, and which options it has."""
    study = _studies()[name]
    signature = signatures.Signature.of(study)
    options = [
        {"option": option, "default": _default(signature, option), "what": signature.helps.get(option, "")}
        for option in signature.kinds
    ]
    described = {"name": name, "text": signature.text, "options": options}
    if as_json:
        emit(described, as_json=True)
        return
    emit(None, as_json=False, shown=f"{signature.text}\n")
    if options:
        emit(None, as_json=False, shown=table("", options, {"option": "option", "default": "default", "what": "what"}))
    emit(None, as_json=False, shown=f"patchclamp study run {name} --model demo --out {name}/")


def command_of(name: str) -> Callable[..., None]:
    """A command for a study: model, folder, resume, seed and the study's own arguments."""
    signature = signatures.Signature.of(_studies()[name])

    def command(**typed: Any) -> None:
        from patchclamp.studies.study import study

        arguments = signature.values(typed)
        outcome = study(
            name,
            signatures.placed(typed["model"], typed),
            out=typed["out"],
            resume=typed["resume"],
            seed=typed["seed"],
            **arguments,
        )
        emit(outcome.to_dict(), as_json=typed["as_json"], shown=outcome)

    own = [
        signatures.parameter("model", MODEL, "demo"),
        signatures.parameter("out", OUT),
        signatures.parameter("resume", RESUME, False),
        signatures.parameter("seed", o.Seed, 0),
        *signature.options(),
        *signatures.shared(signatures.PLACING, signature.kinds),
        signatures.parameter("as_json", o.AsJson, False),
    ]
    return signatures.assembled(command, own, signature.text)


def _studies() -> Any:
    from patchclamp.studies.study import studies

    return studies


def _example(name: str) -> str:
    return f"Example:\n\n  patchclamp study run {name} --model demo --out {name}/\n"


def _default(signature: signatures.Signature, option: str) -> Any:
    default = signature.parameters[option].default
    if default is inspect.Parameter.empty:
        return "(needed)"
    if default is None:
        return "bundled" if signature.kinds[option].what in ("task", "tasks", "texts") else "-"
    return ", ".join(map(str, default)) if isinstance(default, tuple | list) else str(default)
