"""What a result was made from, opened again from what it says of it, or the live object that stands in for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchclamp.core.arrays import unpacked
from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.data import Corpus, Task, open_corpus, open_task
from patchclamp.data.batches import Selection
from patchclamp.data.paired import PairedTask, Pairs
from patchclamp.intervene.fits import units_of
from patchclamp.models import Dictionary, LanguageModel, load
from patchclamp.models.units import check_features
from patchclamp.read.dictionaries import open_dictionary
from patchclamp.record import Recording


@dataclass(frozen=True)
class Sources:
    """Opens models, text, tasks and recordings by their identities; objects given stand for what a file can't name.

    pairs: those given, if any; patching opens its own.
    Raises InputError for what can't be opened again and was not given, MismatchError for something else than was used.
    """

    path: Path
    model: LanguageModel | None = None
    text: Corpus | None = None
    task: Task | Mapping[str, Task] | None = None
    recording: Recording | None = None
    pairs: PairedTask | Pairs | None = None

    def recording_of(self, named: Mapping[str, Any]) -> Recording:
        """The recording of {"fingerprint", "path"}."""
        recording = self.recording
        if recording is None:
            folder = named.get("path") or named.get("folder")
            if not folder:
                raise InputError(
                    f"{self.path} was made from a recording that was not kept on disk; give it as recording="
                )
            recording = Recording.open(folder)
        if recording.fingerprint != named.get("fingerprint"):
            where = recording.folder or "given"
            raise MismatchError(f"the recording {where} is not the one that {self.path} was made from")
        return recording

    def model_of(self, identity: Mapping[str, Any]) -> LanguageModel:
        """The model of an identity, with its dictionaries."""
        model = self.model
        if model is None:
            if not identity.get("source"):
                raise InputError(f"the model {identity.get('name')!r} was a live object; give it as model=")
            model = load(identity["source"], dtype=identity.get("dtype")).with_features(*_dictionaries(identity))
        if model.fingerprint != identity.get("fingerprint"):
            raise MismatchError(f"the model {model.name} is not the one of the result: its weights or its shape differ")
        check_features("the units of the result", identity, model, identity.get("features", {}))
        return model

    def further_model_of(self, identity: Mapping[str, Any]) -> LanguageModel:
        """A further model of the result: the one given, if it is that one; otherwise from its place."""
        same = self.model is not None and self.model.fingerprint == identity.get("fingerprint")
        return (self if same else Sources(self.path)).model_of(identity)

    def text_of(self, identity: Mapping[str, Any]) -> Corpus:
        """The text of an identity."""
        if "fingerprint" not in identity:
            raise InputError(
                f"{self.path} was made from text that it names no place for; it can't be replayed from the file alone"
            )
        if self.text is None:
            return open_corpus(identity)
        if self.text.fingerprint != identity["fingerprint"]:
            raise MismatchError("the text given is not the one that the result was made from")
        return self.text

    def further_text_of(self, identity: Mapping[str, Any]) -> Corpus:
        """A further text of the result: the one given, if it is that one; otherwise from its place."""
        same = self.text is not None and self.text.fingerprint == identity.get("fingerprint")
        return (self if same else Sources(self.path)).text_of(identity)

    def tasks_of(self, identities: Mapping[str, Any], model: LanguageModel | None) -> dict[str, Task]:
        """Name -> task. model: whose tokenizer a chat template comes from."""
        if self.task is None:
            tokenizer = None if model is None else model.tokenizer
            return {name: open_task(entry, tokenizer=tokenizer) for name, entry in identities.items()}
        tasks = dict.fromkeys(identities, self.task) if isinstance(self.task, Task) else dict(self.task)
        for name, entry in identities.items():
            if name not in tasks or tasks[name].fingerprint != entry["fingerprint"]:
                raise MismatchError(f"the task {name!r} given is not the one that the result was made from")
        return {name: tasks[name] for name in identities}

    def argument(self, value: Any, model: LanguageModel | None, identity: Any) -> Any:
        """An argument from the plain data that `described` made of it. identity: whose units they are."""
        if isinstance(value, list):
            return tuple(self.argument(item, model, identity) for item in value)
        if not isinstance(value, Mapping):
            return value
        if len(value) != 1:
            return {name: self.argument(item, model, identity) for name, item in value.items()}
        kind, data = next(iter(value.items()))
        return self._opened(kind, data, model, identity)

    def _opened(self, kind: str, data: Any, model: LanguageModel | None, identity: Any) -> Any:
        """What {kind: data} stands for; a mapping of one entry where the kind is none of ours."""
        match kind if isinstance(data, Mapping | str) else "":
            case "corpus":
                return self.text_of(data)
            case "task":
                return self.tasks_of({data["name"]: data}, model)[data["name"]]
            case "recording":
                return self.recording_of(data)
            case "model" | "languagemodel":
                return self.further_model_of(data)
            case "units":
                return units_of(data, identity)
            case "array":
                return unpacked(data)
            case "dictionary":
                return dictionary_of(data)
            case "live":
                raise InputError(
                    f"{self.path} was made with a live {data}, which no file can hold; make it again by hand"
                )
        return {kind: self.argument(data, model, identity)}


def source_of(path: Path, source: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The provenance of a file, if it says enough to run the call again."""
    if not source or not {"call", "arguments", "inputs"} <= set(source):
        raise DamagedError(f"{path} does not say how it was made; it can't be replayed")
    return source


def dictionary_of(named: Mapping[str, Any]) -> Any:
    """The dictionary, or autoencoder, of {"name", "folder", "fingerprint"}."""
    if not named.get("folder"):
        raise InputError(f"the dictionary {named.get('name')!r} was not kept on disk; it can't be opened again")
    found = open_dictionary(named["folder"])
    if found.fingerprint != named.get("fingerprint"):
        raise MismatchError(f"the dictionary in {named['folder']} is not the one that the result was made from")
    return found


def selection_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments with `select` as a `Selection`."""
    return {**arguments, "select": Selection(**arguments.get("select", {}))}


def _dictionaries(identity: Mapping[str, Any]) -> list[Dictionary]:
    """The dictionaries whose features the model of a result had, from their folders."""
    found = []
    for site, features in identity.get("features", {}).items():
        for entry in features["dictionaries"]:
            if entry["folder"] is None:
                raise InputError(
                    f"the dictionary of {site}.{entry['layer']} was not kept on disk; give the model as model="
                )
            found.append(open_dictionary(entry["folder"]))
    return found
