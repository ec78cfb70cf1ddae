"""A recording: the statistics of all units over labelled text, in a folder of shards with a manifest, or in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.core.files import read_json, sha256_text, to_json, write_json
from patchclamp.data.corpora import identity_of
from patchclamp.models.units import Layout, check_features, describe, feature_marks, layouts_of
from patchclamp.record.job import States
from patchclamp.record.recording_view import as_html, as_table, summary_rows
from patchclamp.record.shard_files import check_shard, map_shard, shard_metadata, shard_name, write_shard
from patchclamp.record.statistics import Statistic, statistics

RECORDING_FORMAT = "patchclamp.recording/1"
MANIFEST = "manifest.json"
_KEPT = 8  # merged statistics held for the next question


class Recording:
    """The statistics of every recorded unit, per label.

    `get("firing", "fr")` gives one statistic over one label's text, merged over shards in their order. `open(folder)` reads a
    recording; damaged or foreign shards are named when they are first used, or by `check()`.
    """

    def __init__(
        self, manifest: Mapping[str, Any], *, folder: Path | None = None, held: Mapping[str, States] | None = None
    ) -> None:
        """manifest: as `manifest_of` makes it. folder: where the shards are; else held: label -> its merged states."""
        self.manifest = dict(manifest)
        self.folder = folder
        self._held = dict(held or {})
        self._checked: set[str] = set()
        self._cache: dict[tuple[str, str, str], Statistic] = {}

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Recording:
        """Open a recording's folder. InputError if there is none or it isn't finished, DamagedError for foreign files in it."""
        path = Path(folder)
        if not path.is_dir():
            raise InputError(f"no recording at {path}: there is no such folder")
        if not (path / MANIFEST).is_file():
            raise InputError(f"{path} is no recording: it has no {MANIFEST}")
        manifest = read_json(path / MANIFEST, format=RECORDING_FORMAT)
        check_folder(path, manifest)
        if not manifest["complete"]:
            raise InputError(f"the recording in {path} isn't finished; resume it first (resume=True, --resume)")
        return cls(manifest, folder=path)

    @property
    def model(self) -> dict[str, Any]:
        """Identity of the model: name, fingerprint, sites."""
        return dict(self.manifest["model"])

    @property
    def corpus(self) -> dict[str, Any]:
        """Identity of the text that was read."""
        return dict(self.manifest["corpus"])

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.corpus["labels"])

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `record`, defaults filled in."""
        return dict(self.manifest["arguments"])

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.arguments["sites"])

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the statistics it holds."""
        return tuple(self.arguments["statistics"])

    @property
    def layouts(self) -> dict[str, Layout]:
        """Layout of each recorded site: where units lie in flat arrays."""
        return {site: layout for site, layout in layouts_of(self.manifest["model"]).items() if site in self.sites}

    @property
    def provenance(self) -> dict[str, Any]:
        """Call, arguments, inputs and versions, for `patchclamp replay`."""
        return dict(self.manifest["provenance"])

    def layers(self, site: str = "mlp") -> tuple[int, ...]:
        """The layers recorded of a site."""
        self._check_site(site)
        return tuple(self.arguments["layers"][site])

    def tokens(self, label: str) -> int:
        """How many tokens of a label count."""
        return int(self._label(label)["tokens"])

    def documents(self, label: str) -> int:
        """How many documents of a label were read."""
        return int(self._label(label)["documents"])

    def get(self, statistic: str, label: str, site: str = "mlp") -> Any:
        """One statistic (`Firing`, `Moments`, ...) of one label and site. InputError for what the recording doesn't hold."""
        self._label(label)
        self._check_site(site)
        if statistic not in self.statistics:
            raise InputError(f"the recording has no statistic {statistic!r}; it has {', '.join(self.statistics)}")
        key = (statistic, label, site)
        if key not in self._cache:
            while len(self._cache) >= _KEPT:
                del self._cache[next(iter(self._cache))]
            self._cache[key] = self._merged(statistic, label, site)
        return self._cache[key]

    def summary(self) -> dict[str, Any]:
        """What it holds, as plain data: model, text, sites, statistics, and tokens and documents of every label."""
        counts = {label: {"documents": self.documents(label), "tokens": self.tokens(label)} for label in self.labels}
        return {
            "folder": None if self.folder is None else str(self.folder),
            "model": {key: self.model.get(key) for key in ("name", "type", "fingerprint")},
            "corpus": self.corpus["fingerprint"],
            "sites": {site: layout.total for site, layout in self.layouts.items()},
            "statistics": self.arguments["statistics"],
            "labels": counts,
        }

    def check(self) -> None:
        """Read every shard and compare it with the manifest; DamagedError names the first that is wrong."""
        if self.folder is not None:
            for entry in self.manifest["shards"]:
                check_shard(self.folder / entry["file"], entry, self.manifest["recording"])
                self._checked.add(entry["file"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all numbers: the same however the text was cut into shards in memory or on disk, if the numbers are."""
        features = feature_marks(self.model, self.sites)
        marks = [features] if features else []  # recordings without features keep the fingerprint that they always had
        found = hashlib.sha256(
            to_json([self.model["fingerprint"], list(self.labels), self.arguments["statistics"], *marks]).encode()
        )
        for label in self.labels:
            for site in self.sites:
                for name in self.statistics:
                    for key, array in sorted(self.get(name, label, site).state().items()):
                        found.update(f"{label}/{site}/{name}/{key}/{array.dtype}/{array.shape}".encode())
                        for piece in getattr(array, "pieces", (array,)):  # what lies in pieces is never read whole
                            found.update(np.ascontiguousarray(piece).data)
        return found.hexdigest()

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write a recording that is in memory (or copy one) to a new folder, one shard per label."""
        path = Path(folder)
        new_folder(path)
        shards = []
        for number, label in enumerate(self.labels):
            entry = self._label(label)
            described = {"label": label, "number": 0, "documents": [0, entry["documents"]], "tokens": entry["tokens"]}
            metadata = {"recording": self.manifest["recording"], "label": label, "number": "0"}
            written = write_shard(path / shard_name(number, 0), self._states(label), metadata)
            shards.append({**described, "text": entry["sha256"], **written})
        write_json(path / MANIFEST, {**self.manifest, "shards": shards})
        return path

    def merge(self, *others: Recording) -> Recording:
        """One recording over this text and the others', in this order; a label that both have goes on with more documents.

        Raises MismatchError unless model, sites, layers, statistics and their arguments agree. The result is in memory.
        """
        found = self
        for other in others:
            found = _merged_pair(found, other)
        return found

    def _merged(self, statistic: str, label: str, site: str) -> Statistic:
        arguments = self.arguments
        kind = statistics[statistic]
        settings = {**arguments["statistics"][statistic], "layers": self.layers(site), "folds": arguments["folds"]}
        layout = self.layouts[site]
        merged: Statistic | None = None
        for states in self._shard_states(label, f"{site}/{statistic}"):
            part = kind.from_state(layout, states, **settings)
            merged = part if merged is None else merged.merge(part)
        return kind(layout, **settings) if merged is None else merged

    def _shard_states(self, label: str, key: str) -> Iterable[dict[str, Any]]:
        if self.folder is None:
            yield self._held[label][key]
            return
        for entry in sorted((e for e in self.manifest["shards"] if e["label"] == label), key=lambda e: e["number"]):
            path = self.folder / entry["file"]
            if entry["file"] not in self._checked:
                check_shard(path, entry, self.manifest["recording"])
                self._checked.add(entry["file"])
            arrays = map_shard(path)
            yield {name.removeprefix(f"{key}/"): array for name, array in arrays.items() if name.startswith(f"{key}/")}

    def _states(self, label: str) -> States:
        return {
            f"{site}/{name}": self.get(name, label, site).state() for site in self.sites for name in self.statistics
        }

    def _label(self, label: str) -> dict[str, Any]:
        labels = self.manifest["corpus"]["labels"]
        if label not in labels:
            raise InputError(f"the recording has no label {label!r}; it has {', '.join(labels)}")
        return dict(labels[label])

    def _check_site(self, site: str) -> None:
        if site not in self.sites:
            raise InputError(f"site {site!r} was not recorded; the recording has {', '.join(self.sites)}")

    def __repr__(self) -> str:
        where = "in memory" if self.folder is None else str(self.folder)
        total = sum(self.tokens(label) for label in self.labels)
        return (
            f"Recording({describe(self.model)}, {', '.join(self.labels)}: {total} tokens; "
            f"{', '.join(self.sites)}: {', '.join(self.statistics)}; {where})"
        )

    def __rich__(self) -> Any:
        return as_table(repr(self), summary_rows(self))

    def _repr_html_(self) -> str:
        return as_html(repr(self), summary_rows(self))


def new_folder(path: Path) -> None:
    """Make the folder of a recording; InputError if it exists already or its parent doesn't."""
    if path.exists():
        raise InputError(
            f"{path} exists already; resume the recording in it (resume=True, --resume) or choose another folder"
        )
    if not path.parent.is_dir():
        raise InputError(f"can't make {path}: the folder {path.parent} does not exist")
    path.mkdir()


def check_folder(path: Path, manifest: Mapping[str, Any]) -> None:
    """DamagedError for shards that are missing, of the wrong size, or that another recording left here."""
    listed = {entry["file"] for entry in manifest["shards"]}
    for entry in manifest["shards"]:
        file = path / entry["file"]
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            check_shard(file, entry, manifest["recording"])
    for file in sorted(path.glob("shard-*.safetensors")):
        if file.name not in listed and shard_metadata(file).get("recording") != manifest["recording"]:
            raise DamagedError(f"{file} doesn't belong to this recording; move it away")


def manifest_of(
    model: Mapping[str, Any], arguments: Mapping[str, Any], declared: Mapping[str, Any], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest of a recording that begins. declared: label -> {"source", "sha256" or None} before anything is read."""
    marked = [model["fingerprint"], model["dtype"], arguments, {k: v["sha256"] for k, v in declared.items()}]
    if features := feature_marks(model, arguments["sites"]):
        marked.append(features)
    mark = sha256_text(to_json(marked))
    return {
        "format": RECORDING_FORMAT,
        "recording": mark,
        "complete": False,
        "model": dict(model),
        "arguments": dict(arguments),
        "declared": dict(declared),
        "corpus": identity_of({}, arguments["limits"]),
        "shards": [],
        "provenance": dict(provenance),
    }


def _merged_pair(first: Recording, second: Recording) -> Recording:
    _check_alike(first, second)
    labels: dict[str, dict[str, Any]] = {}
    held: dict[str, States] = {}
    for label in dict.fromkeys([*first.labels, *second.labels]):
        if label in first.labels and label in second.labels:
            labels[label], held[label] = _joined(first, second, label)
        else:
            owner = first if label in first.labels else second
            labels[label], held[label] = owner._label(label), owner._states(label)
    corpus = identity_of(labels, first.corpus["limits"])
    mark = sha256_text(to_json([first.manifest["recording"], second.manifest["recording"]]))
    inputs = {"recordings": [first.provenance, second.provenance]}
    provenance = {**first.provenance, "call": "Recording.merge", "inputs": inputs}
    changed = {"recording": mark, "corpus": corpus, "shards": [], "provenance": provenance}
    return Recording({**first.manifest, **changed}, held=held)


def _joined(first: Recording, second: Recording, label: str) -> tuple[dict[str, Any], States]:
    """Entry and states of a label that both recordings have."""
    a, b = first._label(label), second._label(label)
    states: States = {}
    for site in first.sites:
        for name in first.statistics:
            later = second.get(name, label, site).shifted(a["documents"])
            states[f"{site}/{name}"] = first.get(name, label, site).merge(later).state()
    entry = {key: a[key] + b[key] for key in ("documents", "characters", "tokens")}
    return {
        **entry,
        "sha256": sha256_text(a["sha256"] + b["sha256"]),
        "source": {"merged": [a["source"], b["source"]]},
    }, states


def _check_alike(first: Recording, second: Recording) -> None:
    if first.model["fingerprint"] != second.model["fingerprint"]:
        raise MismatchError(f"recordings of {describe(first.model)} and {describe(second.model)} can't be merged")
    check_features("the units of the first recording", first.model, second.model, first.sites)
    for name in ("sites", "layers", "statistics", "folds", "select"):
        a, b = first.arguments[name], second.arguments[name]
        if a != b:
            raise MismatchError(f"recordings with {name}={a} and {name}={b} can't be merged; record both alike")
