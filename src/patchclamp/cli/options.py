"""Options that several commands share, and how their values become models and texts."""

from __future__ import annotations

import functools
import json
import operator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchclamp.core.errors import InputError

if TYPE_CHECKING:
    from patchclamp.data import Corpus
    from patchclamp.models import LanguageModel

ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hub id, local folder, or `demo` (comes with the package).")
]
Texts = Annotated[
    list[str],
    typer.Option(
        "--text",
        metavar="LABEL=FILE",
        help="Labelled text, repeatable: a text file (one document a line), folder, .jsonl, .csv, .parquet, .conllu, or -.",
    ),
]
OptionalTexts = Annotated[list[str] | None, *Texts.__metadata__]
DocumentUnit = Annotated[
    str,
    typer.Option("--unit", help="What a document is in a plain text file: line, block (up to a blank line) or file."),
]
TextColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="[ROLE=]NAME",
        help="Column of .jsonl, .csv and .parquet files, repeatable. ROLE: text (the default), prompt, response or tags.",
    ),
]
Select = Annotated[
    str | None,
    typer.Option("--select", help="Count only tokens in spans of this name, such as response or upos=NOUN."),
]
MaxDocuments = Annotated[
    int | None, typer.Option("--max-documents", min=1, help="Read at most so many documents per label.")
]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", min=1, help="Read at most so many tokens per label.")]
BatchTokens = Annotated[
    int,
    typer.Option("--batch-tokens", min=1, help="Tokens in a batch, padding included; shrinks when memory runs out."),
]
FittingBatch = Annotated[
    int | None,
    typer.Option(
        "--batch-tokens",
        min=1,
        help="Tokens in a batch, padding included; by default 1024 on a CPU, else 4096. Shrinks when memory runs out.",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; or `auto` to spread over all devices.")
]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16; as stored by default.")]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub model.")]
TrustRemoteCode = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="Run Python code that comes with the model. Off: it could do anything."),
]
Features = Annotated[
    list[Path] | None,
    typer.Option(
        "--features",
        metavar="FOLDER",
        help="Dictionary (a sparse autoencoder of ours or a SAELens folder, a factorisation, directions) whose features become "
        "units; repeatable.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of every random choice.")]


def open_model(
    name: str,
    device: str | None,
    dtype: str | None,
    revision: str | None,
    trust_remote_code: bool,
    features: list[Path] | None = None,
    *,
    check: bool = True,
) -> LanguageModel:
    """Load the model that the options describe, with the features of dictionaries as further units."""
    from patchclamp.models import load
    from patchclamp.read.dictionaries import open_dictionary

    placed: dict[str, Any] = {"device_map": "auto"} if device == "auto" else {"device": device}
    dictionaries = [open_dictionary(folder) for folder in features or ()]  # known before the model is loaded
    model = load(name, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code, check=check, **placed)
    return model.with_features(*dictionaries) if dictionaries else model


def open_texts(
    texts: list[str], *, unit: str, column: list[str] | None, max_documents: int | None, max_tokens: int | None
) -> Corpus:
    """The corpus that repeated `--text` options describe: LABEL=FILE, or one of demo, demo:find, demo:measure."""
    from patchclamp.data import corpus, demo_text

    if any(text.partition(":")[0] == "demo" for text in texts):
        if len(texts) > 1:
            raise InputError("--text demo brings its own labels; don't mix it with LABEL=FILE")
        found = demo_text(split=texts[0].partition(":")[2] or "all")
        return found.limited(max_documents=max_documents, max_tokens=max_tokens)
    sources: dict[str, Any] = {}
    for text in texts:
        label, separator, path = text.partition("=")
        if not separator or not label or not path:
            raise InputError(f"--text {text!r} is not LABEL=FILE; write for example --text fr=french.txt")
        if label in sources:
            raise InputError(f"--text names the label {label!r} twice; put its files into one folder and give that")
        sources[label] = path if path == "-" else Path(path)
    return corpus(sources, unit=unit, max_documents=max_documents, max_tokens=max_tokens, **columns(column or []))


def columns(given: list[str]) -> dict[str, Any]:
    """Keyword arguments of `corpus` for repeated `--column` options: NAME, or ROLE=NAME; tags may come several times."""
    found: dict[str, Any] = {}
    for entry in given:
        role, separator, name = entry.partition("=")
        role, name = (role, name) if separator else ("text", role)
        if role not in ("text", "prompt", "response", "tags") or not name:
            raise InputError(f"--column {entry!r} is not [ROLE=]NAME with the role text, prompt, response or tags")
        if role == "tags":
            found.setdefault("tags", []).append(name)
        elif role in found:
            raise InputError(f"--column names two columns for {role}: {found[role]} and {name}")
        else:
            found[role] = name
    return found


def check_target(out: Path | None) -> None:
    """InputError if a file can't be written there: known before the work, not after it."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        what = f"{out} is a folder" if out.is_dir() else f"the folder {out.parent} does not exist"
        raise InputError(f"can't write {out}: {what}")


def names(listed: str) -> list[str]:
    """The names in a comma-separated option."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def layer_numbers(listed: str | None) -> list[int] | None:
    """Layer numbers in a list such as `0-3,7`."""
    if listed is None:
        return None
    numbers: list[int] = []
    for part in names(listed):
        first, separator, last = part.partition("-")
        ends = (first, last if separator else first)
        if not all(end.isdecimal() for end in ends) or int(ends[0]) > int(ends[1]):
            raise InputError(f"--layers {listed!r}: {part!r} is neither a layer nor a range; write for example 0-3,7")
        numbers.extend(range(int(ends[0]), int(ends[1]) + 1))
    return numbers


def clamp_value(given: str) -> float | str:
    """`mean`, or the number in an option; InputError otherwise."""
    if given == "mean":
        return given
    try:
        return float(given)
    except ValueError:
        raise InputError(f"--to {given!r} is neither a number nor mean") from None


def statistics_of(listed: str, threshold: float, arguments: list[str]) -> dict[str, dict[str, Any]]:
    """Statistics by name with their arguments: STATISTIC.NAME=VALUE each; the firing threshold has an option of its own."""
    found: dict[str, dict[str, Any]] = {
        name: {"threshold": threshold} if name == "firing" else {} for name in names(listed)
    }
    for entry in arguments:
        place, separator, value = entry.partition("=")
        statistic, dot, name = place.partition(".")
        if not (separator and dot and name and value):
            raise InputError(
                f"--argument {entry!r} is not STATISTIC.NAME=VALUE; write for example exemplars.k=20 or "
                "cofiring.units=@neurons.json"
            )
        if statistic not in found:
            raise InputError(f"--argument {entry!r} is for {statistic}, but --statistics asks for {', '.join(found)}")
        found[statistic][name] = argument_value(value)
    return found


def argument_value(given: str) -> Any:
    """The value of a statistic's argument: @FILE (all units of a sets file), JSON, a list with commas, or a word."""
    if given.startswith("@"):
        from patchclamp.models import load_sets

        return functools.reduce(operator.or_, load_sets(given[1:]).values())
    try:
        return json.loads(given)
    except ValueError:
        return names(given) if "," in given else given
