"""Commands from functions: a finder's, reading's or study's own signature and docstring decide the options of its command.

Numbers, texts, switches and lists of them become options; a `Task` takes FILE.jsonl or generate:NAME,..., a `Corpus`
LABEL=FILE, a `UnitSet` names or a sets file, a `Dictionary` its folder, a second model or recording its name or folder; what
can't be typed on a command line (functions, arrays) keeps its default.
"""

from __future__ import annotations

import collections.abc
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Union

import typer
from typer.core import TyperGroup

from patchclamp.cli import options as o
from patchclamp.cli.task_options import TASK_HELP, open_one
from patchclamp.cli.unit_options import UNITS_HELP, open_units
from patchclamp.core.errors import InputError
from patchclamp.core.registry import Registry

RENAMED = {"lam": "lambda", "lam_form": "lambda-form"}  # a Python keyword can't name a parameter
PLAIN = (bool, int, float, str)
LISTS = (tuple, list, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
TASK = "[NAME=]FILE|generate:..."
TEXT_HELP = "LABEL=FILE, repeatable; or demo, demo:find, demo:measure."
PLACES = {
    "model": "Another model: hub id, local folder, or demo.",
    "recording": "Folder that `patchclamp record` wrote.",
    "dictionary": "Folder of a sparse autoencoder or another dictionary.",
}
METAVARS = {"dictionary": "FOLDER"}
REPEATED = {
    "tasks": (TASK_HELP, TASK),
    "texts": (TEXT_HELP, "LABEL=FILE"),
    "units": (UNITS_HELP, "UNITS"),
    "list": ("Comma-separated or repeated.", None),
}
PLACING: dict[str, tuple[Any, Any]] = {
    "device": (o.Device, None),
    "dtype": (o.Dtype, None),
    "revision": (o.Revision, None),
    "trust_remote_code": (o.TrustRemoteCode, False),
    "features": (o.Features, None),
}
READING: dict[str, tuple[Any, Any]] = {
    "unit": (o.DocumentUnit, "line"),
    "column": (o.TextColumns, None),
    "max_documents": (o.MaxDocuments, None),
    "max_tokens": (o.MaxTokens, None),
}


@dataclass(frozen=True)
class Kind:
    """What a parameter is on the command line: plain values, a list of them, tasks or texts. of: the types of its values."""

    what: str  # "plain" | "list" | "task" | "tasks" | "texts" | "units" | "model" | "recording" | "dictionary"
    of: tuple[type, ...] = ()


@dataclass(frozen=True)
class Signature:
    """The options of a function: `options` for the command, `values` turns what was typed into the function's arguments."""

    function: Callable[..., Any]
    text: str
    helps: Mapping[str, str]
    kinds: Mapping[str, Kind]
    parameters: Mapping[str, inspect.Parameter]

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Signature:
        """Everything after the first parameter, which the command itself provides."""
        parameters = dict(list(inspect.signature(function).parameters.items())[1:])
        hints = hints_of(function)
        kinds = {name: kind for name in parameters if (kind := kind_of(hints.get(name))) is not None}
        for name, parameter in parameters.items():
            if name not in kinds and parameter.default is inspect.Parameter.empty:
                raise InputError(
                    f"{function.__name__} needs {name}, which can't be given on the command line; use Python"
                )
        text, helps = documented(inspect.getdoc(function) or "", list(parameters))
        return cls(function, text, helps, kinds, parameters)

    @property
    def reads_text(self) -> bool:
        """Whether some parameter is labelled text, so that options on how to read files make sense."""
        return any(kind.what == "texts" for kind in self.kinds.values())

    def options(self) -> list[inspect.Parameter]:
        """The command's parameters for the function's own; reading options are added where it reads text."""
        own = [self._option(name, kind) for name, kind in self.kinds.items()]
        return own + (shared(READING, self.kinds) if self.reads_text else [])

    def values(self, typed: Mapping[str, Any], subject: Any = None) -> dict[str, Any]:
        """The function's arguments; what was not typed keeps the function's default and is left out.

        subject: the model or recording that the function works on, which says what the names of units mean.
        """
        reading = {name: typed.get(name, default) for name, (_, default) in READING.items()}
        given = {}
        for name, kind in self.kinds.items():
            value = typed.get(name)
            if value is None or value == []:
                continue
            if kind.what == "units":
                given[name] = open_units(value, getattr(subject, "model", subject))
            elif kind.what == "model":
                given[name] = placed(value, typed)
            else:
                given[name] = _value(name, kind, value, reading)
        return given

    def _option(self, name: str, kind: Kind) -> inspect.Parameter:
        default = self.parameters[name].default
        flag = RENAMED.get(name, name).replace("_", "-")
        said = self.helps.get(name, "")
        if kind.what == "plain":
            names = (f"--{flag}/--no-{flag}",) if kind.of == (bool,) else (f"--{flag}",)
            hint: Any = kind.of[0] if len(kind.of) == 1 else str
            shown = default if default is inspect.Parameter.empty or default is None else hint(default)
            typed: Any = hint | None if shown is None else hint
            return parameter(name, Annotated[typed, typer.Option(*names, help=said or None)], shown)
        if kind.what == "task":
            option = typer.Option(f"--{flag}", metavar=TASK, help=" ".join(filter(None, (said, TASK_HELP))))
            return parameter(name, Annotated[str | None, option], _required(default))
        if kind.what in PLACES:
            place = METAVARS.get(kind.what, kind.what.upper())
            option = typer.Option(f"--{flag}", metavar=place, help=said or PLACES[kind.what])
            return parameter(name, Annotated[str | None, option], _required(default))
        more, metavar = REPEATED[kind.what]
        option = typer.Option(f"--{flag}", metavar=metavar, help=" ".join(filter(None, (said, more))))
        listed = [default] if isinstance(default, PLAIN) else default
        filled = isinstance(listed, tuple | list) and len(listed) > 0
        shown = [",".join(map(str, listed))] if filled else _required(default)
        return parameter(name, Annotated[list[str] | None, option], shown)


def group(
    entries: Callable[[], Registry[Any]], command: Callable[[str], Callable[..., None]], example: Callable[[str], str]
) -> type[TyperGroup]:
    """A group of commands, one per entry of a registry whose room is imported only when the group is used."""

    class Group(TyperGroup):
        def list_commands(self, ctx: Any) -> list[str]:
            return [entry.name for entry in entries()]

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            if cmd_name not in entries():
                return None
            app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
            app.command(cmd_name, epilog=example(cmd_name))(command(cmd_name))
            return typer.main.get_command(app)

    return Group


def assembled(command: Callable[..., None], parameters: list[inspect.Parameter], text: str) -> Callable[..., None]:
    """Give a command that takes **typed the parameters and help that typer is to see."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = text
    return command


def parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    """A keyword parameter of a command."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def shared(table: Mapping[str, tuple[Any, Any]], taken: Mapping[str, Any]) -> list[inspect.Parameter]:
    """Parameters for options that several commands share, without those that the function has itself."""
    return [parameter(name, hint, default) for name, (hint, default) in table.items() if name not in taken]


def placed(name: str, typed: Mapping[str, Any]) -> Any:
    """The model that MODEL and the placing options describe."""
    return o.open_model(name, **{key: typed.get(key, default) for key, (_, default) in PLACING.items()})


def documented(docstring: str, names: list[str]) -> tuple[str, dict[str, str]]:
    """Split a docstring into its text and what it says of each parameter.

    Our docstrings describe parameters in one paragraph, as "rate: share of units to select. bar: ...".
    """
    if not names:
        return docstring, {}
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


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Types of a function's parameters, also of those that its file imports for type checking only."""
    from patchclamp.data.corpora import Corpus
    from patchclamp.data.tasks import Task
    from patchclamp.find.finding import Finding
    from patchclamp.models import Dictionary, LanguageModel, UnitSet
    from patchclamp.record import Recording

    known = {kind.__name__: kind for kind in (Corpus, Task, Finding, Dictionary, LanguageModel, UnitSet, Recording)}
    abstract = {name: getattr(collections.abc, name) for name in collections.abc.__all__}
    found: dict[str, Any] = {}
    scope = {**abstract, **known, **vars(inspect.getmodule(function))}
    for name, annotation in inspect.get_annotations(function).items():
        try:
            stands_for = types.SimpleNamespace(__annotations__={name: annotation})
            found[name] = typing.get_type_hints(stands_for, globalns=scope)[name]
        except NameError:  # a type of another package, which nobody can type on a command line
            found[name] = None
    return found


def kind_of(hint: Any) -> Kind | None:
    """What a type is on the command line; None for what can't be typed there."""
    members = [member for member in _members(hint) if member is not type(None)]
    kinds = [kind for kind in map(_member_kind, members) if kind is not None]
    for what in ("tasks", "texts", "task", "units", "model", "recording", "dictionary"):
        if any(kind.what == what for kind in kinds):
            return Kind(what)
    lists = tuple(dict.fromkeys(kind.of[0] for kind in kinds if kind.what == "list"))
    if lists:
        return Kind("list", lists)
    plain = tuple(dict.fromkeys(kind.of[0] for kind in kinds))
    return Kind("plain", plain) if plain else None


def _members(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def _member_kind(hint: Any) -> Kind | None:
    from patchclamp.data.corpora import Corpus
    from patchclamp.data.tasks import Task
    from patchclamp.models import Dictionary, LanguageModel, UnitSet
    from patchclamp.record import Recording

    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in PLAIN:
        return Kind("plain", (hint,))
    if hint is Task:
        return Kind("task")
    if hint is Corpus:
        return Kind("texts")
    places = ((UnitSet, "units"), (LanguageModel, "model"), (Recording, "recording"), (Dictionary, "dictionary"))
    for known, what in places:
        if hint is known:
            return Kind(what)
    if origin is typing.Literal:
        return Kind("plain", (type(inner[0]),))
    if origin in LISTS and inner and inner[0] in PLAIN:
        return Kind("list", (inner[0],))
    if origin in (dict, collections.abc.Mapping) and inner[1:] == (Task,):
        return Kind("tasks")
    return None


def _value(name: str, kind: Kind, typed: Any, reading: Mapping[str, Any]) -> Any:
    if kind.what == "plain":
        return typed if len(kind.of) == 1 else _plain(name, str(typed), kind.of)
    if kind.what == "task":
        return open_one(typed)
    if kind.what == "tasks":
        return tasks_of(name, typed)
    if kind.what == "texts":
        return o.open_texts(typed, **reading)
    if kind.what == "recording":
        from patchclamp.record import Recording

        return Recording.open(typed)
    if kind.what == "dictionary":
        from patchclamp.read.dictionaries import open_dictionary

        return open_dictionary(Path(typed))
    return tuple(_plain(name, part, kind.of) for entry in typed for part in _parts(str(entry)))


def _parts(entry: str) -> list[str]:
    """The names in an entry of a list; a single one keeps the spaces around it, which make another token of it."""
    return o.names(entry) if "," in entry or not entry.strip() else [entry]


def _plain(name: str, typed: str, of: tuple[type, ...]) -> Any:
    """What was typed as the first of int, float, str that it can be and that the parameter takes."""
    for kind in (int, float):
        if kind in of:
            try:
                return kind(typed)
            except ValueError:
                pass
    if str in of:
        return typed
    raise InputError(f"--{RENAMED.get(name, name).replace('_', '-')} {typed!r} is not a number")


def tasks_of(option: str, typed: list[str]) -> dict[str, Any]:
    """Name -> task of a repeated option; a task without a name is called after its file or generator."""
    found: dict[str, Any] = {}
    for entry in typed:
        one = open_one(entry)
        if one.name in found:
            raise InputError(f"--{option} gives two tasks called {one.name!r}; write NAME={entry} to tell them apart")
        found[one.name] = one
    return found


def _required(default: Any) -> Any:
    """No default for a parameter that must be given, otherwise None."""
    return inspect.Parameter.empty if default is inspect.Parameter.empty else None
