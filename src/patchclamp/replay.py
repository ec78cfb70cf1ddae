"""Run a result again from what it says of itself, and compare the numbers: `patchclamp.replay("effects.json")`.

A result can be run again if its inputs can be opened again: models from a hub, a folder or the package, text from files
or the package, recordings from their folder. A result made from live objects says which of them to give.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.core.files import read_json, to_json
from patchclamp.core.provenance import versions
from patchclamp.data import Corpus, Task, open_corpus, open_task
from patchclamp.data.batches import Selection
from patchclamp.find import Finding, finders
from patchclamp.measure import Effects, effect
from patchclamp.models import Dictionary, LanguageModel, UnitSet, load, load_dictionary
from patchclamp.models.units import check_features
from patchclamp.record import Recording, record
from patchclamp.studies.study import study

make_callable(__name__)

LISTED = 20  # differences that a report names


@dataclass(frozen=True)
class Replay:
    """Whether a result came out the same. compared: numbers compared; worst: largest relative difference among them.

    differences: where numbers or names differ beyond the tolerance (the first 20); versions: library -> (then, now)
    for those that changed.
    """

    call: str
    agrees: bool
    compared: int
    worst: float
    tolerance: float
    differences: list[str] = field(default_factory=list)
    versions: dict[str, tuple[str, str]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self)}

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        verdict = "agrees" if self.agrees else "does NOT agree"
        yield f"{self.call}: {verdict} ({self.compared:,} values compared, largest relative difference {self.worst:.2g})"
        yield from (f"  {line}" for line in self.differences)
        yield from (f"  {name}: made with {then}, now {now}" for name, (then, now) in self.versions.items())


def replay(
    result: str | Path,
    *,
    model: LanguageModel | None = None,
    text: Corpus | None = None,
    task: Task | Mapping[str, Task] | None = None,
    recording: Recording | None = None,
    tolerance: float = 1e-6,
) -> Replay:
    """Run again what made a result and compare every number.

    result: a sets or effects file, a study's report.json, or a recording's folder. model, text, task, recording: inputs
    that the result can't name a place for, because they were live objects. tolerance: relative difference that still agrees.
    Raises InputError if an input is missing, MismatchError if it is not the one that the result was made from.
    """
    path = Path(result)
    given = {"model": model, "text": text, "task": task, "recording": recording}
    kinds = (
        (_is_recording, _recording_again),
        (_is_sets, _sets_again),
        (_is_effects, _effects_again),
        (_is_study, _study_again),
    )
    for fits, again in kinds:
        if fits(path):
            source, then, now = again(path, given)
            return _report(source, then, now, tolerance)
    raise InputError(
        f"{path} is no result that can be replayed; give a sets or effects file, a study's report.json, or a recording's folder"
    )


def _is_recording(path: Path) -> bool:
    return path.is_dir()


def _is_sets(path: Path) -> bool:
    return _format(path).startswith("patchclamp.sets/")


def _is_effects(path: Path) -> bool:
    return _format(path).startswith("patchclamp.effects/")


def _is_study(path: Path) -> bool:
    return _format(path).startswith("patchclamp.study/")


def _format(path: Path) -> str:
    found = read_json(path)
    return str(found.get("format", "")) if isinstance(found, dict) else ""


Result = tuple[Mapping[str, Any], Any, Any]


def _recording_again(path: Path, given: Mapping[str, Any]) -> Result:
    stored = Recording.open(path)
    source = _source(path, stored.provenance)
    if source["call"] != "record":
        raise InputError(f"{path} was made by {source['call']}, from recordings: replay those")
    arguments = {key: value for key, value in stored.arguments.items() if key not in ("layers", "limits", "gated")}
    arguments["layers"] = sorted({layer for layers in stored.arguments["layers"].values() for layer in layers})
    arguments["select"] = Selection(**arguments["select"])
    again = record(_model(stored.model, given), _text(stored.corpus, given), **arguments)
    return source, _recorded(stored), _recorded(again)


def _recorded(recording: Recording) -> dict[str, Any]:
    return {
        f"{statistic}.{site}.{label}": recording.get(statistic, label, site).state()
        for label in recording.labels
        for site in recording.sites
        for statistic in recording.statistics
    }


def _sets_again(path: Path, given: Mapping[str, Any]) -> Result:
    stored = Finding.load(path)
    source = _source(path, stored.provenance)
    room, _, name = source["call"].rpartition(".")
    if room != "find":
        raise InputError(f"{path} was made by {source['call']}, which is no finder")
    subject, read = _subject(path, source["inputs"], given)
    again = finders[name](subject, **read, **source["arguments"])
    narrowed = stored.parameters.get("classes")
    sets = again.select(classes=narrowed) if narrowed else again.sets
    kept = stored.scores is not None  # a file saved without its scores differs in nothing else
    return source, _found(stored, stored.sets, scores=kept), _found(again, sets, scores=kept)


def _subject(path: Path, inputs: Mapping[str, Any], given: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What a finder worked on: a recording, or a model and the text or tasks that it was run on, by parameter."""
    if "model" not in inputs:
        return _recording(path, inputs.get("recording", {}), given), {}
    model = _model(inputs["model"], given)
    if "fingerprint" not in inputs.get("text", {"fingerprint": None}):
        raise InputError(
            f"{path} was made from text that it names no place for; it can't be replayed from the file alone"
        )
    read: dict[str, Any] = {"text": _text(inputs["text"], given)} if "text" in inputs else {}
    return model, read | _tasks(inputs.get("tasks", {}), model, given)


def _found(finding: Finding, sets: Mapping[str, UnitSet], *, scores: bool) -> dict[str, Any]:
    names = {label: units.names() for label, units in sets.items()}
    found = {"sets": names, "classes": finding.classes, "null": _stored(finding.null)}
    return {**found, "scores": finding.scores, "p_values": finding.p_values} if scores else found


def _effects_again(path: Path, given: Mapping[str, Any]) -> Result:
    stored = Effects.load(path)
    source = _source(path, stored.provenance)
    inputs, arguments = source["inputs"], dict(source["arguments"])
    model = _model(inputs["model"], given)
    sets = {name: UnitSet.from_dict(entry, model) for name, entry in inputs["sets"].items()}
    recording = _recording(path, inputs["recording"], given) if inputs.get("recording") else None
    on: Any
    if "tasks" in inputs:
        on = _tasks(inputs["tasks"], model, given)
    else:
        on = _text(inputs["text"], given)
        arguments["select"] = Selection(**arguments.get("select", {}))
    again = effect(model, sets, on=on, recording=recording, **arguments)
    return source, _measured(stored), _measured(again)


def _study_again(path: Path, given: Mapping[str, Any]) -> Result:
    stored = read_json(path)
    source = _source(path, stored.get("provenance", {}))
    model = _model(source["inputs"]["model"], given)
    arguments = {name: _argument(value, model, given) for name, value in source["arguments"].items()}
    with tempfile.TemporaryDirectory() as folder:
        again = study(source["call"].removeprefix("study."), model, out=Path(folder) / "run", quiet=True, **arguments)
    shown = ("tables", "beside", "verdict")
    return source, {key: stored[key] for key in shown}, _stored({key: again.to_dict()[key] for key in shown})


def _argument(value: Any, model: LanguageModel, given: Mapping[str, Any]) -> Any:
    """An argument of a study from what `described` made of it: texts and tasks are opened again."""
    if isinstance(value, Mapping):
        if set(value) == {"corpus"}:
            return _text(value["corpus"], given)
        if set(value) == {"task"}:
            return _tasks({value["task"]["name"]: value["task"]}, model, given)[value["task"]["name"]]
        return {name: _argument(item, model, given) for name, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _measured(effects: Effects) -> dict[str, Any]:
    return {"rows": _stored(effects.rows), "documents": _stored(effects.documents)}


def _stored(value: Any) -> Any:
    """Plain data as it comes back from a file, where NaN and infinities are null."""
    return json.loads(to_json(value))


def _source(path: Path, source: Mapping[str, Any]) -> Mapping[str, Any]:
    if not {"call", "arguments", "inputs"} <= set(source):
        raise DamagedError(f"{path} does not say how it was made; it can't be replayed")
    return source


def _recording(path: Path, named: Mapping[str, Any], given: Mapping[str, Any]) -> Recording:
    recording: Recording | None = given["recording"]
    if recording is None:
        if not named.get("path"):
            raise InputError(f"{path} was made from a recording that was not kept on disk; give it as recording=")
        recording = Recording.open(named["path"])
    if recording.fingerprint != named.get("fingerprint"):
        where = recording.folder or "given"
        raise MismatchError(f"the recording {where} is not the one that {path} was made from")
    return recording


def _model(identity: Mapping[str, Any], given: Mapping[str, Any]) -> LanguageModel:
    model = given["model"]
    if model is None:
        if not identity.get("source"):
            raise InputError(f"the model {identity.get('name')!r} was a live object; give it as model=")
        model = load(identity["source"], dtype=identity.get("dtype")).with_features(*_dictionaries(identity))
    if model.fingerprint != identity.get("fingerprint"):
        raise MismatchError(f"the model {model.name} is not the one of the result: its weights or its shape differ")
    check_features("the units of the result", identity, model, identity.get("features", {}))
    return model


def _dictionaries(identity: Mapping[str, Any]) -> list[Dictionary]:
    """The dictionaries whose features the model of a result had, from their folders."""
    found = []
    for site, features in identity.get("features", {}).items():
        for entry in features["dictionaries"]:
            if entry["folder"] is None:
                raise InputError(
                    f"the dictionary of {site}.{entry['layer']} was not kept on disk; give the model as model="
                )
            found.append(load_dictionary(entry["folder"]))
    return found


def _text(identity: Mapping[str, Any], given: Mapping[str, Any]) -> Corpus:
    if given["text"] is None:
        return open_corpus(identity)
    if given["text"].fingerprint != identity["fingerprint"]:
        raise MismatchError("the text given is not the one that the result was made from")
    return given["text"]


def _tasks(identities: Mapping[str, Any], model: LanguageModel, given: Mapping[str, Any]) -> dict[str, Task]:
    """The tasks of a result, opened again or given."""
    task = given["task"]
    if task is None:
        return {name: open_task(entry, tokenizer=model.tokenizer) for name, entry in identities.items()}
    tasks = dict.fromkeys(identities, task) if isinstance(task, Task) else dict(task)
    for name, entry in identities.items():
        if name not in tasks or tasks[name].fingerprint != entry["fingerprint"]:
            raise MismatchError(f"the task {name!r} given is not the one that the result was made from")
    return {name: tasks[name] for name in identities}


def _report(source: Mapping[str, Any], then: Any, now: Any, tolerance: float) -> Replay:
    differences: list[str] = []
    compared, worst = 0, 0.0
    for place, old, new in _pairs("", then, now):
        gaps = _gaps(old, new)
        compared, worst = compared + gaps.size, max(worst, float(gaps.max(initial=0.0)))
        for at in np.argwhere(gaps > tolerance)[: LISTED - len(differences)]:
            index = tuple(at.tolist())
            here = f"{place}[{', '.join(map(str, index))}]" if index else place
            differences.append(f"{here.lstrip('.')}: {_cell(old, index)} then, {_cell(new, index)} now")
    current = versions()
    changed = {
        name: (str(old), current[name])
        for name, old in source.get("versions", {}).items()
        if name in current and current[name] != old
    }
    call = str(source.get("call", "record"))
    return Replay(call, worst <= tolerance, compared, worst, tolerance, differences, changed)


def _pairs(place: str, then: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Leaves of two nested results side by side: whole arrays and single values; a missing one stands as None."""
    then, now = (_array(value) for value in (then, now))
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in sorted({*then, *now}, key=str):
            yield from _pairs(f"{place}.{key}", then.get(key), now.get(key))
    elif isinstance(then, list | tuple) and isinstance(now, list | tuple) and len(then) == len(now):
        for number, (old, new) in enumerate(zip(then, now, strict=True)):
            yield from _pairs(f"{place}[{number}]", old, new)
    else:
        yield place, then, now


def _array(value: Any) -> Any:
    """Tensors, and lists of numbers or of names, as arrays: results hold millions of them."""
    if hasattr(value, "numpy"):
        return value.numpy()
    if isinstance(value, list) and value and all(type(item) is type(value[0]) for item in value):
        return np.array(value) if isinstance(value[0], bool | int | float | str) else value
    return value


def _gaps(old: Any, new: Any) -> NDArray[np.float64]:
    """Relative differences of two leaves: 0 where they are equal, infinite where they can't be compared."""
    a, b = np.asarray(old), np.asarray(new)
    if a.shape != b.shape:
        return np.array(np.inf)
    if a.dtype.kind not in "iufb" or b.dtype.kind not in "iufb":
        return np.where(np.asarray(a == b), 0.0, np.inf)
    if np.array_equal(a, b):
        return np.broadcast_to(0.0, a.shape)  # the usual case, without copies in float64 of what may be large
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        gaps = np.abs(a - b) / np.maximum(np.abs(a), np.abs(b))
    gaps = np.where(np.isnan(gaps), np.inf, gaps)  # a NaN or an infinity beside another value
    return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, gaps)


def _cell(value: Any, index: tuple[int, ...]) -> Any:
    """The value at a place of a leaf; what doesn't have that place is described by its shape."""
    array = np.asarray(value)
    if index or not array.ndim:
        return array[index].item() if array.ndim == len(index) and array.dtype.kind != "O" else value
    return f"{array.shape} values"
