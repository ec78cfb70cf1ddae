"""Recordings, findings, effects and studies run again: each gives what was stored and what comes out now."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.core.files import read_json, to_json
from patchclamp.data.batches import Selection
from patchclamp.find import Finding, finders
from patchclamp.measure import Effects, effect
from patchclamp.measure.effect_subjects import given_again
from patchclamp.models import UnitSet
from patchclamp.record import Recording, record
from patchclamp.replay.sources import Sources, selection_of, source_of
from patchclamp.studies.study import study

Result = tuple[Mapping[str, Any], Any, Any]  # provenance, then, now


def recording_again(path: Path, sources: Sources) -> Result:
    """Every state of every statistic."""
    stored = Recording.open(path)
    source = source_of(path, stored.provenance)
    if source["call"] != "record":
        raise InputError(f"{path} was made by {source['call']}, from recordings: replay those")
    arguments = {key: value for key, value in stored.arguments.items() if key not in ("layers", "limits", "gated")}
    arguments["layers"] = sorted({layer for layers in stored.arguments["layers"].values() for layer in layers})
    arguments["select"] = Selection(**arguments["select"])
    again = record(sources.model_of(stored.model), sources.text_of(stored.corpus), **arguments)
    return source, _recorded(stored), _recorded(again)


def sets_again(path: Path, sources: Sources) -> Result:
    """Sets, classes, null, scores and p-values of a finding."""
    stored = Finding.load(path)
    source = source_of(path, stored.provenance)
    room, _, name = source["call"].rpartition(".")
    if room != "find":
        raise InputError(f"{path} was made by {source['call']}, which is no finder")
    subject, read = _subject(source["inputs"], sources)
    again = finders[name](subject, **read, **source["arguments"])
    narrowed = stored.parameters.get("classes")
    sets = again.select(classes=narrowed) if narrowed else again.sets
    kept = stored.scores is not None  # a file saved without its scores differs in nothing else
    return source, _found(stored, stored.sets, scores=kept), _found(again, sets, scores=kept)


def effects_again(path: Path, sources: Sources) -> Result:
    """Rows and documents of an effects file."""
    stored = Effects.load(path)
    source = source_of(path, stored.provenance)
    if source["call"] != "effect":
        raise InputError(f"{path} was taken from a result of {source['call']}: replay that one's own file")
    inputs, arguments = source["inputs"], dict(source["arguments"])
    model = sources.model_of(inputs["model"])
    sets = {name: given_again(entry, model) for name, entry in inputs["sets"].items()}
    recording = sources.recording_of(inputs["recording"]) if inputs.get("recording") else None
    on: Any
    if "tasks" in inputs:
        on = sources.tasks_of(inputs["tasks"], model)
    else:
        on, arguments = sources.text_of(inputs["text"]), selection_of(arguments)
    again = effect(model, sets, on=on, recording=recording, **arguments)
    return source, _measured(stored), _measured(again)


def study_again(path: Path, sources: Sources) -> Result:
    """Tables and verdict of a study's report.json."""
    stored = read_json(path)
    source = source_of(path, stored.get("provenance", {}))
    model = sources.model_of(source["inputs"]["model"])
    arguments = {name: sources.argument(value, model, model) for name, value in source["arguments"].items()}
    with tempfile.TemporaryDirectory() as folder:
        again = study(source["call"].removeprefix("study."), model, out=Path(folder) / "run", quiet=True, **arguments)
    shown = ("tables", "beside", "verdict")
    return source, {key: stored[key] for key in shown}, plain({key: again.to_dict()[key] for key in shown})


def plain(value: Any) -> Any:
    """Plain data as it comes back from a file, where NaN and infinities are null."""
    return json.loads(to_json(value))


def _subject(inputs: Mapping[str, Any], sources: Sources) -> tuple[Any, dict[str, Any]]:
    """What a finder worked on: a recording, or a model and the text or tasks that it was run on, by parameter."""
    if "model" not in inputs:
        return sources.recording_of(inputs.get("recording", {})), {}
    model = sources.model_of(inputs["model"])
    read: dict[str, Any] = {"text": sources.text_of(inputs["text"])} if "text" in inputs else {}
    return model, read | sources.tasks_of(inputs.get("tasks", {}), model)


def _recorded(recording: Recording) -> dict[str, Any]:
    return {
        f"{statistic}.{site}.{label}": recording.get(statistic, label, site).state()
        for label in recording.labels
        for site in recording.sites
        for statistic in recording.statistics
    }


def _found(finding: Finding, sets: Mapping[str, UnitSet], *, scores: bool) -> dict[str, Any]:
    names = {label: units.names() for label, units in sets.items()}
    found = {"sets": names, "classes": finding.classes, "null": plain(finding.null)}
    return {**found, "scores": finding.scores, "p_values": finding.p_values} if scores else found


def _measured(effects: Effects) -> dict[str, Any]:
    return {"rows": plain(effects.rows), "documents": plain(effects.documents)}
