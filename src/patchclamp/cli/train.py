"""`patchclamp train`: make the bundled demo model again, from text and from our own generators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from patchclamp.cli import options as o
from patchclamp.cli.output import emit
from patchclamp.core.errors import InputError

EXAMPLE = """Example:

  patchclamp train demo --text en=en.txt --text de=de.txt --text fr=fr.txt --text ru=ru.txt --out demo/
"""


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Train models.")
    group.command("demo", epilog=EXAMPLE)(demo)

    @group.callback()
    def train() -> None:
        """Train models."""

    app.add_typer(group, name="train")


def demo(
    text: o.Texts,
    out: Annotated[Path, typer.Option("--out", help="Folder for checkpoints, log and the finished model.")],
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Tokens to train on.")] = 16_000_000,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", help="Begin the final decay of the learning rate in time for this.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    seed: o.Seed = 0,
    as_json: o.AsJson = False,
) -> None:
    """Train the demo model, a small polyglot that also learns the project's own curricula; examine it, write its card.

    A text has one passage a line. Wants torch 2.9 or newer and, for the bundled model's 14 million tokens, an hour or two
    on two cores.
    """
    from patchclamp.core.files import write_json
    from patchclamp.train.card import write_card
    from patchclamp.train.demo import train
    from patchclamp.train.exam import evaluate

    sources = {}
    for entry in text:
        label, separator, path = entry.partition("=")
        if not separator or not label or not path:
            raise InputError(f"--text {entry!r} is not LABEL=FILE; write for example --text fr=french.txt")
        sources[label] = Path(path)
    folder = train(sources, out, seed=seed, tokens=tokens, max_minutes=max_minutes, resume=resume)
    evaluation = evaluate(folder, sources)
    write_json(folder / "evaluation.json", evaluation)
    write_card(folder, evaluation, sources={label: path.name for label, path in sources.items()})
    emit(
        {"model": folder, "evaluation": evaluation},
        as_json=as_json,
        shown=f"wrote {folder}; try: patchclamp check {folder}",
    )
