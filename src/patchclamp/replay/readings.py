"""Readings run again: the file is made anew and the two files are compared, arrays included."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.core.files import read_json
from patchclamp.read import readings
from patchclamp.read.files import load_reading
from patchclamp.replay.results import Result
from patchclamp.replay.sources import Sources, selection_of, source_of

PLACES = ("format", "provenance", "arrays", "model")  # entries that say where numbers come from, and hold none


def reading_again(path: Path, sources: Sources) -> Result:
    """All numbers and names in the file of a reading; what a reading saves as sets is one as well."""
    source = source_of(path, read_json(path).get("provenance"))
    again = made_again(path, source, sources)
    with tempfile.TemporaryDirectory() as folder:
        return source, contents(path), contents(again.save(Path(folder) / "again.json"))


def contents(path: Path) -> dict[str, Any]:
    """Entries and arrays of a reading's file, without those that say where they come from."""
    data = read_json(path)
    arrays: Mapping[str, Any] = {}
    if "arrays" in data:
        data, arrays = load_reading(path, data["reading"])
    return {key: value for key, value in data.items() if key not in PLACES} | {"arrays": dict(arrays)}


def made_again(path: Path, source: Mapping[str, Any], sources: Sources) -> Any:
    """What the call of a reading's provenance gives now. InputError for a call that no file can repeat."""
    room, _, name = source["call"].partition(".")
    if room == "read" and name in CALLS:
        return CALLS[name](source, sources)
    if room != "read" or name not in readings:
        raise InputError(f"{path} was made by {source['call']} from what was in memory; it can't be replayed")
    function, inputs = readings[name], source["inputs"]
    known = inspect.signature(function).parameters
    arguments = {key: value for key, value in source["arguments"].items() if key in known}
    if "seed" in known and source.get("seed") is not None:
        arguments["seed"] = source["seed"]
    if next(iter(known)) == "recording":
        return function(sources.recording_of(inputs["recording"]), **arguments)
    model = sources.model_of(inputs["model"])
    if "text" in inputs:
        arguments["text"] = sources.text_of(inputs["text"])
    if "tasks" in inputs:
        arguments["tasks"] = sources.tasks_of(inputs["tasks"], model)
    if "units" in inputs:
        arguments["units"] = inputs["units"]
    if "head" in inputs:
        arguments["head"] = sources.further_model_of(inputs["head"])
    return function(model, **arguments)


def _exemplars(source: Mapping[str, Any], sources: Sources) -> Any:
    recording = sources.recording_of(source["inputs"]["recording"])
    return readings["exemplars"](recording, model=sources.model, text=sources.text, **source["arguments"])


def _descriptions(source: Mapping[str, Any], sources: Sources) -> Any:
    """Descriptions of exemplars that are read again first."""
    shown = source["inputs"]["exemplars"]
    if shown.get("call") != "read.exemplars":
        raise InputError(f"these descriptions are of exemplars made by {shown.get('call')}, which can't be made again")
    return readings["describe"](_exemplars(shown, sources), **source["arguments"], seed=source["seed"])


def _evaluation(source: Mapping[str, Any], sources: Sources) -> Any:
    """An autoencoder's evaluation; the autoencoder is not trained again, only measured again."""
    from patchclamp.read.sae import evaluate_sae, load_sae

    named = source["inputs"]["features"]
    if not named.get("folder"):
        raise InputError(f"the autoencoder {named.get('name')!r} was not kept on disk, so it can't be measured again")
    sae = load_sae(named["folder"])
    if sae.fingerprint != named.get("fingerprint"):
        raise MismatchError(f"the autoencoder in {named['folder']} is not the one that was measured")
    model, text = sources.model_of(source["inputs"]["model"]), sources.text_of(source["inputs"]["text"])
    return evaluate_sae(sae, model, text, quiet=True, **selection_of(source["arguments"]))


CALLS: dict[str, Callable[[Mapping[str, Any], Sources], Any]] = {
    "describe": _descriptions,
    "evaluate_sae": _evaluation,
    "exemplars": _exemplars,
}
