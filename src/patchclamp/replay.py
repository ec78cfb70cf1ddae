"""Run a result again from what it says of itself, and compare the numbers: `patchclamp.replay("effects.json")`.

A result can be run again if its inputs can be opened again: models from a hub, a folder or the package, text from files
or the package, recordings from their folder. A result made from live objects says which of them to give.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.core.files import read_json
from patchclamp.core.provenance import versions
from patchclamp.data import Corpus, open_corpus
from patchclamp.data.batches import Selection
from patchclamp.find import Finding, finders
from patchclamp.measure import Effects, effect
from patchclamp.models import LanguageModel, UnitSet, load
from patchclamp.record import Recording, record

make_callable(__name__)


@dataclass(frozen=True)
class Replay:
    """Whether a result came out the same. compared: numbers compared; worst: largest relative difference among them.

    differences: where numbers or names differ beyond the tolerance (at most 20 listed); versions: library -> (then, now)
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
    recording: Recording | None = None,
    tolerance: float = 1e-6,
) -> Replay:
    """Run again what made a result and compare every number.

    result: a sets file, an effects file, or a recording's folder. model, text, recording: inputs that the result can't
    name a place for, because they were live objects. tolerance: relative difference that still agrees.
    Raises InputError if an input is missing, MismatchError if it is not the one that the result was made from.
    """
    path = Path(result)
    given = {"model": model, "text": text, "recording": recording}
    for fits, again in ((_is_recording, _recording_again), (_is_sets, _sets_again), (_is_effects, _effects_again)):
        if fits(path):
            source, then, now = again(path, given)
            return _report(source, then, now, tolerance)
    raise InputError(
        f"{path} is no result that can be replayed; give a sets file, an effects file or a recording folder"
    )


def _is_recording(path: Path) -> bool:
    return path.is_dir()


def _is_sets(path: Path) -> bool:
    return _format(path).startswith("patchclamp.sets/")


def _is_effects(path: Path) -> bool:
    return _format(path).startswith("patchclamp.effects/")


def _format(path: Path) -> str:
    found = read_json(path)
    return str(found.get("format", "")) if isinstance(found, dict) else ""


Result = tuple[Mapping[str, Any], Any, Any]


def _recording_again(path: Path, given: Mapping[str, Any]) -> Result:
    stored = Recording.open(path)
    arguments = dict(stored.arguments)
    again = record(_model(stored.model, given), _text(stored.corpus, given), **arguments)
    return stored.provenance, _recorded(stored), _recorded(again)


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
    named = source["inputs"].get("recording", {})
    recording = given["recording"]
    if recording is None:
        if not named.get("path"):
            raise InputError(f"{path} was found in a recording that was not kept on disk; give it as recording=")
        recording = Recording.open(named["path"])
    if recording.fingerprint != named.get("fingerprint"):
        raise MismatchError(f"the recording given is not the one that {path} was found in")
    room, _, name = source["call"].rpartition(".")
    if room != "find":
        raise InputError(f"{path} was made by {source['call']}, which is no finder")
    again = finders[name](recording, **source["arguments"])
    narrowed = stored.parameters.get("classes")
    sets = again.select(classes=narrowed) if narrowed else again.sets
    return source, _found(stored, stored.sets), _found(again, sets)


def _found(finding: Finding, sets: Mapping[str, UnitSet]) -> dict[str, Any]:
    names = {label: units.names() for label, units in sets.items()}
    return {"sets": names, "scores": finding.scores, "classes": finding.class_counts()}


def _effects_again(path: Path, given: Mapping[str, Any]) -> Result:
    stored = Effects.load(path)
    source = _source(path, stored.provenance)
    inputs, arguments = source["inputs"], dict(source["arguments"])
    model = _model(inputs["model"], given)
    sets = {name: UnitSet.from_dict(entry, model) for name, entry in inputs["sets"].items()}
    select = Selection(**arguments.pop("select", {}))
    if inputs.get("recording") and given["recording"] is None:
        raise InputError(f"{path} clamped to recorded means; give the recording as recording=")
    text = _text(inputs["text"], given)
    again = effect(model, sets, on=text, recording=given["recording"], select=select, **arguments)
    return source, stored.rows, again.rows


def _source(path: Path, source: Mapping[str, Any]) -> Mapping[str, Any]:
    if not {"call", "arguments", "inputs"} <= set(source):
        raise DamagedError(f"{path} does not say how it was made; it can't be replayed")
    return source


def _model(identity: Mapping[str, Any], given: Mapping[str, Any]) -> LanguageModel:
    model = given["model"]
    if model is None:
        if not identity.get("source"):
            raise InputError(f"the model {identity.get('name')!r} was a live object; give it as model=")
        model = load(identity["source"], dtype=identity.get("dtype"))
    if model.fingerprint != identity.get("fingerprint"):
        raise MismatchError(f"the model {model.name} is not the one of the result: its weights or its shape differ")
    return model


def _text(identity: Mapping[str, Any], given: Mapping[str, Any]) -> Corpus:
    if given["text"] is None:
        return open_corpus(identity)
    if given["text"].fingerprint != identity["fingerprint"]:
        raise MismatchError("the text given is not the one that the result was made from")
    return given["text"]


def _report(source: Mapping[str, Any], then: Any, now: Any, tolerance: float) -> Replay:
    differences: list[str] = []
    compared, worst = 0, 0.0
    for place, old, new in _pairs("", then, now):
        gap = _gap(old, new)
        compared, worst = compared + 1, max(worst, gap)
        if gap > tolerance and len(differences) < 20:
            differences.append(f"{place.lstrip('.')}: {old} then, {new} now")
    agrees = worst <= tolerance
    current = versions()
    changed = {
        name: (str(old), current[name])
        for name, old in source.get("versions", {}).items()
        if name in current and current[name] != old
    }
    return Replay(str(source.get("call", "record")), agrees, compared, worst, tolerance, differences, changed)


def _pairs(place: str, then: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Leaves of two nested results side by side; a missing one stands as None."""
    then, now = (value.tolist() if hasattr(value, "tolist") else value for value in (then, now))
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in sorted({*then, *now}, key=str):
            yield from _pairs(f"{place}.{key}", then.get(key), now.get(key))
    elif isinstance(then, list | tuple) and isinstance(now, list | tuple) and len(then) == len(now):
        for number, (old, new) in enumerate(zip(then, now, strict=True)):
            yield from _pairs(f"{place}[{number}]", old, new)
    else:
        yield place, then, now


def _gap(old: Any, new: Any) -> float:
    """Relative difference of two leaves: 0 for equal ones, infinite where they can't be compared."""
    numbers = [value for value in (old, new) if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == 2:
        if old == new or (math.isnan(old) and math.isnan(new)):
            return 0.0
        if not (math.isfinite(old) and math.isfinite(new)):
            return math.inf
        return abs(old - new) / max(abs(old), abs(new))
    return 0.0 if old == new else math.inf
