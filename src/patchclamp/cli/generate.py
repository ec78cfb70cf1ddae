"""`patchclamp generate`: what a model writes under interventions, beside what it writes without them."""

from __future__ import annotations

import functools
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchclamp.cli import options as o
from patchclamp.cli import task_options as t
from patchclamp.cli.output import emit
from patchclamp.core.errors import InputError

if TYPE_CHECKING:
    from patchclamp.intervene import Interventions

EXAMPLE = """Example:

  patchclamp generate demo "The river" --with interventions.json --plain
"""


def register(app: typer.Typer) -> None:
    app.command("generate", epilog=EXAMPLE)(generate)


def generate(
    model: o.ModelName,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to go on from; one text or several.")],
    with_: Annotated[
        list[Path] | None,
        typer.Option("--with", metavar="FILE", help="Interventions to write under; of several, in this order."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Tokens to write at most.")] = 50,
    sample: Annotated[bool, typer.Option("--sample", help="Draw tokens instead of taking the likeliest.")] = False,
    temperature: Annotated[
        float, typer.Option("--temperature", help="With --sample: above 1 flatter, below 1 surer.")
    ] = 1,
    top_p: Annotated[
        float, typer.Option("--top-p", help="With --sample: from the likeliest tokens of this share.")
    ] = 1,
    seed: o.Seed = 0,
    plain: Annotated[bool, typer.Option("--plain", help="Beside it what the model writes without them.")] = False,
    chat: t.Chat = False,
    device: o.Device = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    features: o.Features = None,
    as_json: o.AsJson = False,
) -> None:
    """Let MODEL go on from each PROMPT under interventions; the same random numbers with and without them."""
    from patchclamp.measure.written import written

    if plain and not with_:
        raise InputError("--plain compares with --with FILE, which was not given")
    if not sample and (temperature != 1 or top_p != 1):
        raise InputError("--temperature and --top-p need --sample: the likeliest token is the same at all of them")
    changes = opened(with_ or [])
    found = o.open_model(model, device, dtype, revision, trust_remote_code, features)
    asked = framed(found.tokenizer, prompts) if chat else prompts
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sample": sample, "temperature": temperature}
    how |= {"top_p": top_p, "seed": seed}
    changed = written(found, asked, changes, **how)
    rows = [{"prompt": prompt, "written": text} for prompt, text in zip(prompts, changed, strict=True)]
    if plain:
        for row, text in zip(rows, written(found, asked, **how), strict=True):
            row["plain"] = text
    said = [] if changes is None else [one.describe() for one in changes]
    name = {key: found.identity[key] for key in ("name", "fingerprint")}
    emit({"model": name, "changes": said, **how, "rows": rows}, as_json=as_json, shown=shown(rows, plain=plain))


def opened(files: list[Path]) -> Interventions | None:
    """The changes of all files one after another; None for no file."""
    from patchclamp.intervene import Interventions

    return functools.reduce(operator.add, map(Interventions.load, files)) if files else None


def framed(tokenizer: Any, prompts: list[str]) -> list[str]:
    """Prompts as what a user says, in the tokenizer's chat template."""
    from patchclamp.data import Task

    task = Task.of([{"prompt": prompt, "answer": "-"} for prompt in prompts]).with_chat(tokenizer)
    return [item.prompt for item in task]


def shown(rows: list[dict[str, str]], *, plain: bool) -> Any:
    """The texts for people: each prompt with what follows it, or a table with both beside each other."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not plain:
        texts = [Text.assemble((row["prompt"], "bold"), row["written"]) for row in rows]
        return Group(*(part for text in texts for part in (text, Text()))) if len(texts) > 1 else texts[0]
    drawn = Table(header_style="bold", show_lines=True)
    for heading in ("prompt", "plain", "under interventions"):
        drawn.add_column(heading)
    for row in rows:
        drawn.add_row(Text(row["prompt"]), Text(row["plain"]), Text(row["written"]))
    return drawn
