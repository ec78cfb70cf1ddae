"""`patchclamp select WAY`: rank a pool of samples by what they have in common with a few target samples, keep the best.

Every registered way to rank is a subcommand; its options come from its own signature and docstring.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from patchclamp.cli import options as o
from patchclamp.cli import registered, signatures
from patchclamp.cli.output import emit, note
from patchclamp.core.errors import InputError

SAMPLES = "LABEL=FILE, repeatable: text (one sample a line), folder, .jsonl, .csv, .parquet; or one task, generate:..."
POOL = Annotated[list[str], typer.Option("--pool", metavar="LABEL=FILE", help=f"What to choose from. {SAMPLES}")]
TARGET = Annotated[
    list[str], typer.Option("--target", metavar="LABEL=FILE", help="Samples of what is wanted; as --pool.")
]
BUDGET = Annotated[
    str, typer.Option("--budget", help="How much to keep: a number, or a share of the pool with a point, such as 0.05.")
]
COUNTING = Annotated[str, typer.Option("--counting", help="What the budget counts: samples or tokens.")]
COPIES = Annotated[
    str, typer.Option("--copies", help="keep, or drop pool samples that repeat the target or an earlier sample.")
]
REVERSE = Annotated[bool, typer.Option("--reverse", help="Keep the samples farthest from the target.")]
DICTIONARY = Annotated[Path, typer.Option("--dictionary", help="Folder of a sparse autoencoder or other dictionary.")]
TOKENIZER = Annotated[str | None, typer.Option("--model", help="Whose tokens a budget of tokens counts.")]
OUT = Annotated[
    Path | None,
    typer.Option("--out", help="Also save it: .jsonl for the samples alone, to train on; else JSON with all."),
]
TEXT = (
    "Choose what to train on: the samples of a pool that are closest to a target.",
    "Choose what to train on: the samples of a pool that are closest to a few target samples, by one of several measures.",
)
HANDLED = ("pool", "target", "model", "dictionary", "seed", "quiet")


def register(app: typer.Typer) -> None:
    registered.register(app, "select", TEXT, _ways, command_of, "features", _example)


def _ways() -> Any:
    from patchclamp.train.selections import selections

    return selections


def _example(name: str) -> str:
    return f"patchclamp select {name} --pool all=pool.jsonl --target t=target.txt"


def command_of(way: Callable[..., Any]) -> Callable[..., None]:
    """A command for a way to rank: the model if it needs one, pool and target, the budget, and the way's own options."""
    known = dict(inspect.signature(way).parameters)
    signature = _signature(way)
    name = next(entry.name for entry in _ways() if entry.target is way)

    def command(**typed: Any) -> None:
        from patchclamp.read.dictionaries import open_dictionary
        from patchclamp.train.select import select

        o.check_target(typed["out"])
        given = signature.values(typed)
        reading = {key: typed[key] for key in signatures.READING if key != "max_tokens"}
        pool = _samples(typed["pool"], reading)
        target = _samples(typed["target"], reading) if "target" in known else None
        if "dictionary" in known:
            given["dictionary"] = open_dictionary(typed["dictionary"])
        found = select(
            pool, target, name, budget=_budget(typed["budget"]), counting=typed["counting"], copies=typed["copies"],
            reverse=typed["reverse"], seed=typed["seed"],
            model=None if typed["model"] is None else signatures.placed(typed["model"], typed), **given,
        )  # fmt: skip
        emit(found.to_dict(), as_json=typed["as_json"], shown=found)
        if typed["out"] is not None:
            note(f"wrote {found.save(typed['out'])}")

    own = [
        signatures.parameter("model", o.ModelName)
        if "model" in known
        else signatures.parameter("model", TOKENIZER, None),
        *([signatures.parameter("dictionary", DICTIONARY)] if "dictionary" in known else []),
        signatures.parameter("pool", POOL),
        *([signatures.parameter("target", TARGET)] if "target" in known else []),
        signatures.parameter("budget", BUDGET, "0.05"),
        signatures.parameter("counting", COUNTING, "samples"),
        *signature.options(),
        signatures.parameter("copies", COPIES, "keep"),
        signatures.parameter("reverse", REVERSE, False),
        signatures.parameter("out", OUT, None),
        signatures.parameter("seed", o.Seed, 0),
        *[one for one in signatures.shared(signatures.READING, signature.kinds) if one.name != "max_tokens"],
        *signatures.shared(signatures.PLACING, signature.kinds),
        signatures.parameter("as_json", o.AsJson, False),
    ]
    return signatures.assembled(command, own, registered.help_of(signature))


def _signature(way: Callable[..., Any]) -> signatures.Signature:
    """The way's own options: what the command itself provides is left out."""
    parameters = {name: value for name, value in inspect.signature(way).parameters.items() if name not in HANDLED}
    hints = signatures.hints_of(way)
    kinds = {name: kind for name in parameters if (kind := signatures.kind_of(hints.get(name))) is not None}
    text, helps = signatures.documented(inspect.getdoc(way) or "", [*parameters, *HANDLED])
    return signatures.Signature(way, text, helps, kinds, parameters)


def _samples(given: list[str], reading: dict[str, Any]) -> Any:
    """Labelled text, or the task of a single generate:... entry."""
    if len(given) == 1 and given[0].startswith("generate:"):
        from patchclamp.cli.task_options import open_one

        return open_one(given[0])
    return o.open_texts(given, max_tokens=None, **reading)


def _budget(typed: str) -> int | float:
    try:
        return int(typed)
    except ValueError:
        pass
    try:
        return float(typed)
    except ValueError:
        raise InputError(f"--budget {typed!r} is neither a number nor a share such as 0.05") from None
