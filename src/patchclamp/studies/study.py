"""A study: a published method run end to end, `pc.study("relation-neurons", model, out="relations")`, that can be resumed.

A study is one function of a file of this room. It gets a `Run`, does its work in named stages, and returns a `Report`:

    @studies.add("relation-neurons")
    def relation_neurons(run: Run, *, task: Task | None = None, top: int = 300) -> Report: ...

Stages are kept in the run's folder as they are made; an interrupted run goes on after the last one that was finished.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.core.files import read_json, sha256_text, to_json, write_json
from patchclamp.core.provenance import provenance
from patchclamp.core.registry import Registry
from patchclamp.studies.study_page import page
from patchclamp.studies.study_report import Outcome, Report, Table, judged

if TYPE_CHECKING:
    from patchclamp.find import Finding
    from patchclamp.measure import Effects
    from patchclamp.models import LanguageModel

__all__ = ["Outcome", "Report", "Run", "Table", "judged", "studies", "study"]

RUN_FORMAT = "patchclamp.study-run/1"
STAGE_FORMAT = "patchclamp.stage/1"
RUN_FILE, REPORT_FILE, PAGE_FILE = "run.json", "report.json", "report.html"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass
class Run:
    """One run of a study: the model, the folder, the seed, and stages that are made once.

    out: the run's folder. identity: what the run was started with (study, model, arguments, seed); a folder belongs to
    one identity. fingerprint: SHA-256 of it. say: tells people what is going on. stages: names in the order used.
    """

    model: LanguageModel
    out: Path
    seed: int = 0
    quiet: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    stages: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A line on stderr, unless the run is quiet."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def stage(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make()` returns, as plain JSON data; made once, kept in stages/NAME.json, read back from there on resume.

        The data always passes through JSON (tuples become lists, keys text, NaN None), so that a resumed run goes on with
        exactly what an uninterrupted one sees. MismatchError for a stage of another model or other arguments.
        """
        self._once(name)
        path = self.out / "stages" / f"{name}.json"
        if path.exists():
            return self._kept(path, name)
        self.say(f"{name} ...")
        started = time.perf_counter()
        data = json.loads(to_json(make()))
        path.parent.mkdir(exist_ok=True)
        seconds = round(time.perf_counter() - started, 2)
        kept = {"format": STAGE_FORMAT, "stage": name, "fingerprint": self.fingerprint, "seconds": seconds}
        write_json(path, {**kept, "data": data}, indent=None)
        return data

    def finding(self, name: str, make: Callable[[], Finding]) -> Finding:
        """A finding made once and kept in NAME.sets.json (and its scores beside it)."""
        from patchclamp.find import Finding

        self._once(name)
        path = self.file(f"{name}.sets.json")
        if not path.exists():
            self.say(f"{name} ...")
            make().save(path)
        found = Finding.load(path)
        if found.model.get("fingerprint") != self.model.fingerprint:
            raise MismatchError(f"{path} is a finding of another model; give another folder with out= (--out)")
        return found

    def effects(self, name: str, make: Callable[[], Effects]) -> Effects:
        """Effects made once and kept in NAME.effects.json."""
        from patchclamp.measure import Effects

        self._once(name)
        path = self.file(f"{name}.effects.json")
        if not path.exists():
            self.say(f"{name} ...")
            make().save(path)
        return Effects.load(path)

    def file(self, name: str) -> Path:
        """Where to keep a file of the run; its folder exists."""
        if not _NAME.fullmatch(name):
            raise InputError(f"{name!r} given as a name in a study's folder; use letters, digits, dots, - and _")
        return self.out / name

    folder = file  # a recording's folder is made by `record(..., out=run.folder("rec"), resume=True)`

    def _once(self, name: str) -> None:
        self.file(name)
        if name in self.stages:
            raise InputError(f"a study uses the stage {name!r} twice; give each its own name")
        self.stages.append(name)

    def _kept(self, path: Path, name: str) -> Any:
        kept = read_json(path, format=STAGE_FORMAT)
        if kept.get("fingerprint") != self.fingerprint:
            raise MismatchError(f"{path} was made with another model or other arguments; give another folder (--out)")
        if kept.get("stage") != name or "data" not in kept:
            raise DamagedError(f"{path} is not the stage {name!r} as it was written; remove it and resume")
        return kept["data"]


Study = Callable[..., Report]
studies: Registry[Study] = Registry("study", room="patchclamp.studies")


def study(
    name: str,
    model: LanguageModel | str = "demo",
    *,
    out: str | Path,
    resume: bool = False,
    seed: int = 0,
    quiet: bool = False,
    **options: Any,
) -> Outcome:
    """Run a registered study on a model and write report.json, report.html and its parts into the folder `out`.

    name: as `studies` lists them. options: the study's own keyword arguments. resume: go on with an interrupted run of the
    same study, model, arguments and seed; a finished one is only read and drawn again.
    InputError for an unknown study or option, or a folder in use; MismatchError for a resumed run that differs.
    """
    from patchclamp.models import load

    make = studies[name]
    arguments = _arguments(name, make, options)
    loaded = load(model) if isinstance(model, str) else model
    folder = Path(out)
    model_identity = {key: value for key, value in loaded.identity.items() if key != "sites"}
    identity = {"study": name, "model": model_identity, "arguments": {k: described(v) for k, v in arguments.items()}}
    identity = json.loads(to_json({**identity, "seed": seed}))
    run = Run(loaded, folder, seed, quiet, identity, _fingerprint(identity))
    _open(folder, identity, resume)
    started = time.perf_counter()
    report = make(run, **arguments)
    source = provenance(
        f"study.{name}",
        arguments={**identity["arguments"], "seed": seed},
        inputs={"model": model_identity},
        seed=seed,
    )
    outcome = Outcome(name, _summary(make), report, source, run.out, round(time.perf_counter() - started, 1))
    outcome.save()
    page(outcome).save(outcome.files["page"])
    return outcome


def described(value: Any) -> Any:
    """Plain data that stands for an argument of a study: numbers and text as they are, tasks and texts by identity."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if hasattr(value, "identity"):
        return {type(value).__name__.lower(): value.identity}
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [described(item) for item in value]
    if isinstance(value, Path):
        return str(value.absolute())
    raise InputError(
        f"an argument of type {type(value).__name__} was given to a study; give numbers, text, tasks or texts"
    )


def _arguments(name: str, make: Study, options: Mapping[str, Any]) -> dict[str, Any]:
    """All keyword arguments of a study, defaults filled in; InputError for one that it doesn't have."""
    known = list(inspect.signature(make).parameters.values())[1:]
    names = [parameter.name for parameter in known]
    if unknown := [option for option in options if option not in names]:
        raise InputError(f"the study {name} has no option {unknown[0]!r}; it has {', '.join(names) or 'none'}")
    return {parameter.name: options.get(parameter.name, parameter.default) for parameter in known}


def _summary(make: Study) -> str:
    return (inspect.getdoc(make) or "").partition("\n")[0]


def _fingerprint(identity: Mapping[str, Any]) -> str:
    """SHA-256 of what decides the numbers; where a text or a model lies doesn't, its content does."""
    kept = {**identity, "model": {key: identity["model"][key] for key in ("fingerprint", "dtype")}}
    return sha256_text(to_json(_placeless(kept)))


def _placeless(value: Any) -> Any:
    """The value without the places of texts and tasks: in an identity a fingerprint stands for all beside it."""
    if isinstance(value, Mapping):
        if "fingerprint" in value:
            return {key: value[key] for key in ("fingerprint", "limits", "dtype") if key in value}
        return {key: _placeless(item) for key, item in value.items()}
    return [_placeless(item) for item in value] if isinstance(value, list) else value


def _open(folder: Path, identity: Mapping[str, Any], resume: bool) -> None:
    """Begin a run in a new or empty folder, or make sure that the one there is the same."""
    path = folder / RUN_FILE
    if path.is_file():
        if not resume:
            raise InputError(f"{folder} holds a run already; go on with resume=True (--resume) or give another folder")
        _check_same(path, read_json(path, format=RUN_FORMAT), identity)
        for place in (folder, folder / "stages"):
            for left in place.glob(".*.part"):  # what a killed run was writing
                left.unlink()
        return
    if folder.exists() and (not folder.is_dir() or any(not _is_part(found) for found in folder.iterdir())):
        raise InputError(f"{folder} is there already and holds no run of a study; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format": RUN_FORMAT, **identity})


def _is_part(path: Path) -> bool:
    """Whether a file is what a killed process left of run.json."""
    return path.name.startswith(f".{RUN_FILE}.")


def _check_same(path: Path, kept: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    if kept.get("study") != wanted["study"]:
        raise MismatchError(f"{path.parent} holds a run of the study {kept.get('study')}, not of {wanted['study']}")
    try:
        same = _fingerprint({key: kept[key] for key in wanted}) == _fingerprint(wanted)
    except (KeyError, TypeError) as problem:
        raise DamagedError(f"{path} does not say what the run was started with; remove its folder") from problem
    if same:
        return
    changed = []
    if kept["model"]["fingerprint"] != wanted["model"]["fingerprint"]:
        changed.append(f"the model ({kept['model']['name']} then, {wanted['model']['name']} now)")
    elif kept["model"]["dtype"] != wanted["model"]["dtype"]:
        changed.append(f"dtype ({kept['model']['dtype']} then, {wanted['model']['dtype']} now)")
    then, now = ({**source["arguments"], "seed": source["seed"]} for source in (kept, wanted))
    changed += [
        f"{key} ({_brief(then.get(key))} then, {_brief(now.get(key))} now)"
        for key in dict.fromkeys([*then, *now])
        if _placeless(then.get(key)) != _placeless(now.get(key))
    ]
    raise MismatchError(f"{path.parent} holds a run with other inputs: {'; '.join(changed)}; give another folder")


def _brief(value: Any) -> str:
    return "another one" if isinstance(value, Mapping | list) else str(value)


make_callable(__name__)
