"""`record(model, text)`: one streaming pass over labelled text fills the requested statistics of every unit."""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import Error, InputError, MismatchError
from patchclamp.core.files import read_json, write_json
from patchclamp.core.memory import kept_memory
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance, versions
from patchclamp.data.batches import PIECE, Selection, fitting_batch
from patchclamp.data.corpora import Corpus, identity_of, warn_of_same_text
from patchclamp.models.units import UnitSet, check_features, describe
from patchclamp.record.engines import ENGINES
from patchclamp.record.job import Job, States
from patchclamp.record.recording import MANIFEST, RECORDING_FORMAT, Recording, check_folder, manifest_of, new_folder
from patchclamp.record.shard_files import check_shard, shard_name, write_shard
from patchclamp.record.shards import Cut, Shard, ShardStream, check_positive, default_shard_tokens
from patchclamp.record.statistics import Statistic
from patchclamp.record.statistics import statistics as known_statistics

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

# what a resumed recording must have in common with the one that was interrupted
_FIXED = (
    "sites",
    "layers",
    "statistics",
    "folds",
    "batch_tokens",
    "max_length",
    "select",
    "shard_tokens",
    "shard_documents",
    "limits",
)


class Interrupted(Error, KeyboardInterrupt):  # noqa: N818 (not an error of anybody's)
    """Ctrl-C while recording; the message says what was kept and how to go on."""


def record(
    model: LanguageModel,
    text: Corpus,
    *,
    sites: Iterable[str] = ("mlp",),
    statistics: Iterable[str] | Mapping[str, Mapping[str, Any]] = ("firing", "moments"),
    layers: Iterable[int] | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    batch_tokens: int | None = None,
    max_length: int | None = None,
    max_tokens: int | None = None,
    select: Selection | None = None,
    folds: int = 8,
    shard_tokens: int | None = None,
    shard_documents: int | None = None,
    engine: str = "local",
    workers: int = 1,
    quiet: bool = False,
) -> Recording:
    """Record statistics of all units over labelled text, in one pass that stops after the last layer asked for.

    sites: kinds of units. statistics: names, or name -> arguments, such as {"firing": {"threshold": 0.1}}; `patchclamp list`
    shows them. layers: only these. out: folder to write to, which must not exist; None keeps everything in memory. resume: go
    on where a recording into `out` stopped, with bit-identical results. batch_tokens: positions per batch (default: 1,024 on a
    CPU, else 4,096), at least one sequence; halved where memory runs out. max_length: longest sequence (default: the model's,
    at most 2,048); longer documents are cut. max_tokens: tokens per label that count. select: which tokens count; padding
    never does. folds: document d of a label belongs to fold d % folds. shard_tokens, shard_documents: what is written at
    once. engine: "local", "processes" or "ray", with so many workers. quiet: no progress bar.

    Raises InputError for what can't be recorded, MismatchError if `out` holds a recording of another model, text or arguments,
    ModelError for NaN or infinite activations.
    """
    if engine not in ENGINES:
        raise InputError(f"no engine is called {engine!r}; there are {', '.join(ENGINES)}")
    if not isinstance(text, Corpus):
        raise InputError(f"text is {type(text).__name__}; give a corpus, as in record(model, corpus(en='en.txt'))")
    check_positive(batch_tokens=batch_tokens, max_length=max_length, folds=folds, workers=workers)
    check_positive(shard_tokens=shard_tokens, shard_documents=shard_documents)
    if max_tokens is not None:
        text = text.limited(max_documents=text.max_documents, max_tokens=max_tokens)
    if resume and out is None:
        raise InputError("resume=True needs out=, the folder of the recording to go on with")
    tokens = fitting_batch(model.device) if batch_tokens is None else batch_tokens
    job = _job(model, sites, layers, statistics, folds, tokens)
    cut = _cut(model, job, max_length, select or Selection(), shard_tokens, shard_documents)
    arguments = _arguments(job, cut, text)
    target = None if out is None else Path(out)
    kept = _begin(model, text, arguments, target, resume)
    total = text.max_tokens and text.max_tokens * len(text)
    with progress("recording", total, unit="tokens", quiet=quiet) as advance, _explained(kept), kept_memory():
        for label in text.labels:
            stream = ShardStream(model.tokenizer, text, label, cut, kept.done(label))
            for shard, states in ENGINES[engine](model, job, iter(stream), workers, advance):
                kept.add(shard, states)
            kept.close_label(stream, cut.select, text.source(label))
    return kept.finished()


class _Kept:
    """Where results go, shard by shard: a folder that can be resumed, or memory."""

    def __init__(self, manifest: dict[str, Any], job: Job, model: LanguageModel, folder: Path | None) -> None:
        self.manifest, self.folder = manifest, folder
        self._job, self._layouts = job, model.layouts
        self._merged: dict[str, dict[str, Statistic]] = {}
        self._early: dict[int, States] = {}
        self._next = 0

    def done(self, label: str) -> dict[int, dict[str, Any]]:
        """Finished shards of a label by number."""
        return {entry["number"]: entry for entry in self.manifest["shards"] if entry["label"] == label}

    def add(self, shard: Shard, states: States) -> None:
        """Keep a finished shard: on disk at once, in memory merged in the order of the text."""
        if self.folder is None:
            self._early[shard.number] = states
            while self._next in self._early:
                self._merge(shard.label, self._early.pop(self._next))
                self._next += 1
            return
        label_number = list(self.manifest["declared"]).index(shard.label)
        metadata = {"recording": self.manifest["recording"], "label": shard.label, "number": str(shard.number)}
        written = write_shard(self.folder / shard_name(label_number, shard.number), states, metadata)
        described = {"label": shard.label, "number": shard.number, "documents": [shard.first, shard.stop]}
        self.manifest["shards"].append({**described, "tokens": shard.tokens, "text": shard.text, **written})
        self._write()

    def _merge(self, label: str, states: States) -> None:
        mine = self._merged.setdefault(label, {})
        for key, state in states.items():
            site, _, name = key.partition("/")
            arguments = {**self._job.statistics[name], "layers": self._job.layers[site], "folds": self._job.folds}
            part = known_statistics[name].from_state(self._layouts[site], state, **arguments)
            mine[key] = mine[key].merge(part) if key in mine else part

    def close_label(self, stream: ShardStream, select: Selection, source: Mapping[str, Any]) -> None:
        """All shards of a label are there. InputError if not a single token of it counts."""
        label = stream.label
        if not stream.tokens:
            what = f" inside {select.inside!r}" if select.inside else ""
            raise InputError(f"label {label!r} has no tokens that count{what}; give it more text, or select others")
        self._next = 0
        corpus = self.manifest["corpus"]
        entry = {**stream.tally.to_dict(), "source": dict(source), "tokens": stream.tokens}
        before = corpus["labels"].get(label)
        if before is not None and before != entry:
            raise MismatchError(
                f"the text of label {label!r} is not the one that was recorded; resume with the same text"
            )
        labels = {**corpus["labels"], label: entry}
        if self.manifest["declared"][label]["sha256"] is None:
            warn_of_same_text({name: each["sha256"] for name, each in labels.items()})
        self.manifest["corpus"] = identity_of(labels, corpus["limits"])
        self._write()

    def finished(self) -> Recording:
        self.manifest["complete"] = True
        self.manifest["shards"].sort(key=lambda entry: (self.labels.index(entry["label"]), entry["number"]))
        self._write()
        if self.folder is not None:
            return Recording(self.manifest, folder=self.folder)
        held = {
            label: {key: statistic.state() for key, statistic in named.items()} for label, named in self._merged.items()
        }
        return Recording(self.manifest, held=held)

    def discarded(self, problem: Error) -> bool:
        """Remove a folder without a single token in it that can't be gone on with: other arguments are needed."""
        if self.folder is None or not isinstance(problem, InputError):
            return False
        if any(entry["tokens"] for entry in self.manifest["shards"]):
            return False
        for entry in self.manifest["shards"]:
            (self.folder / entry["file"]).unlink(missing_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not ours alone
            self.folder.rmdir()
        return True

    @property
    def labels(self) -> list[str]:
        return list(self.manifest["declared"])

    def _write(self) -> None:
        if self.folder is not None:
            write_json(self.folder / MANIFEST, self.manifest)


def _job(
    model: LanguageModel,
    sites: Iterable[str],
    layers: Iterable[int] | None,
    wanted: Iterable[str] | Mapping[str, Mapping[str, Any]],
    folds: int,
    batch_tokens: int,
) -> Job:
    layouts = model.layouts
    chosen = tuple(dict.fromkeys([sites] if isinstance(sites, str) else sites))
    for site in chosen:
        if site not in layouts:
            raise InputError(f"site {site!r} asked for, but {model.name} has {', '.join(layouts)}")
    if not chosen:
        raise InputError("no site asked for; give at least one, such as sites=('mlp',)")
    n_layers = max(layout.n_layers for layout in layouts.values())
    numbers = list(range(n_layers)) if layers is None else sorted({int(layer) for layer in layers})
    for layer in numbers:
        if not 0 <= layer < n_layers:
            raise InputError(f"layer {layer} asked for, but {model.name} has {n_layers} (0-{n_layers - 1})")
    present = {
        site: tuple(layer for layer in numbers if layer < layouts[site].n_layers and layouts[site].widths[layer])
        for site in chosen
    }
    for site, mine in present.items():
        if not mine:
            raise InputError(f"none of the layers asked for has a site {site!r}")
    named = (
        wanted
        if isinstance(wanted, Mapping)
        else {name: {} for name in ([wanted] if isinstance(wanted, str) else wanted)}
    )
    if not named:
        raise InputError("no statistic asked for; give at least one, such as statistics=('firing',)")
    plain = {name: _plain(model, arguments) for name, arguments in named.items()}
    job = Job(chosen, present, plain, folds, batch_tokens, _gated(model, present, plain))
    try:
        job.fresh(layouts)
    except TypeError as problem:
        raise InputError(f"a statistic doesn't take these arguments: {problem}") from problem
    return job


def _gated(
    model: LanguageModel, layers: Mapping[str, Sequence[int]], wanted: Mapping[str, Mapping[str, Any]]
) -> tuple[int, ...]:
    """Layers whose neurons fire at a gate of their own, which differs from the vector that enters the down projection."""
    if "gate" not in model.layouts or wanted.get("firing", {}).get("signal", "gate") != "gate":
        return ()
    anatomy, gate, mlp = model.anatomy, model.layouts["gate"].widths, model.layouts["mlp"].widths
    return tuple(n for n in layers.get("mlp", ()) if anatomy.forms[n] == "gated" and gate[n] == mlp[n])


def _plain(model: LanguageModel, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a statistic as plain data: a unit set becomes its names."""
    plain = {}
    for key, value in arguments.items():
        if isinstance(value, UnitSet):
            value.check_model(model)
            value = value.names()
        plain[key] = list(value) if isinstance(value, tuple | set) else value
    return plain


def _cut(
    model: LanguageModel, job: Job, max_length: int | None, select: Selection, tokens: int | None, documents: int | None
) -> Cut:
    if max_length is not None and max_length > model.max_length:
        raise InputError(f"max_length={max_length} given, but {model.name} takes at most {model.max_length} tokens")
    layouts = model.layouts
    limits = [
        known_statistics[name].documents_per_shard(layouts[site], **arguments)
        for name, arguments in job.statistics.items()
        for site in job.sites
    ]
    most = min((limit for limit in limits if limit is not None), default=1 << 16)
    units = sum(layouts[site].widths[layer] for site, layer in job.taps)
    length = min(model.max_length, PIECE) if max_length is None else max_length
    kept = [
        known_statistics[name].tokens_per_shard(layouts[site], job.layers[site], **arguments)
        for name, arguments in job.statistics.items()
        for site in job.sites
    ]
    usual = min([default_shard_tokens(units), *(limit for limit in kept if limit is not None)])
    return Cut(length, select, tokens or usual, documents or most)


def _arguments(job: Job, cut: Cut, text: Corpus) -> dict[str, Any]:
    """Everything that the numbers depend on, defaults filled in, as plain data."""
    return {
        "sites": list(job.sites),
        "layers": {site: list(layers) for site, layers in job.layers.items()},
        "statistics": {name: dict(arguments) for name, arguments in job.statistics.items()},
        "folds": job.folds,
        "batch_tokens": job.batch_tokens,
        "gated": list(job.gated),
        "max_length": cut.max_length,
        "select": cut.select.to_dict(),
        "shard_tokens": cut.shard_tokens,
        "shard_documents": cut.shard_documents,
        "limits": text.limits,
    }


def _begin(model: LanguageModel, text: Corpus, arguments: dict[str, Any], folder: Path | None, resume: bool) -> _Kept:
    """A place for results: memory, a new folder, or one that a recording was interrupted in."""
    job = Job(
        tuple(arguments["sites"]),
        {site: tuple(layers) for site, layers in arguments["layers"].items()},
        arguments["statistics"],
        arguments["folds"],
        arguments["batch_tokens"],
        tuple(arguments["gated"]),
    )
    if folder is not None and folder.exists() and not resume:
        new_folder(folder)  # says why not, before the text is read
    # text that can be read twice is hashed now: another text, or bytes that aren't UTF-8, should show before the work
    declared = {
        label: {"source": text.source(label), "sha256": text.tally(label).sha256 if text.cheap(label) else None}
        for label in text.labels
    }
    identity = model.identity
    inputs = {"model": {k: identity[k] for k in ("name", "fingerprint", "source", "dtype")}, "corpus": declared}
    made = provenance("record", arguments=arguments, inputs={**inputs, "device": model.device.type})
    manifest = manifest_of(identity, arguments, declared, made)
    if folder is None:
        return _Kept(manifest, job, model, None)
    if folder.exists() and resume:
        leftovers = _half_written(folder)
        if len(leftovers) < len(list(folder.iterdir())):
            manifest = _resumed(folder, manifest)
        for path in leftovers:
            path.unlink()
    elif not folder.exists():
        new_folder(folder)
    write_json(folder / MANIFEST, manifest)
    return _Kept(manifest, job, model, folder)


def _half_written(folder: Path) -> list[Path]:
    """What a killed process left: files of ours that were not renamed yet, and the ones that safetensors writes first."""
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; out= names a folder")
    return [path for path in folder.iterdir() if re.fullmatch(r"\..+\.part|\.tmp\w{6}", path.name)]


def _resumed(folder: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """The manifest of the recording in a folder, if it is the one that is wanted and its shards are sound."""
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder} holds files but no {MANIFEST}: it is no recording to go on with")
    found: dict[str, Any] = read_json(folder / MANIFEST, format=RECORDING_FORMAT)
    if found["model"]["fingerprint"] != wanted["model"]["fingerprint"]:
        raise MismatchError(
            f"{folder} holds a recording of model {describe(found['model'])}, not of {describe(wanted['model'])}"
        )
    if found["model"]["dtype"] != wanted["model"]["dtype"]:
        raise MismatchError(
            f"{folder} was recorded in {found['model']['dtype']}, the model is in {wanted['model']['dtype']} now"
        )
    check_features(f"the units recorded in {folder}", found["model"], wanted["model"], found["arguments"]["sites"])
    for name in _FIXED:
        if found["arguments"][name] != wanted["arguments"][name]:
            raise MismatchError(
                f"{folder} was recorded with {name}={found['arguments'][name]}, now {name}={wanted['arguments'][name]} is given"
            )
    if list(found["declared"]) != list(wanted["declared"]):
        raise MismatchError(
            f"{folder} holds the labels {', '.join(found['declared'])}, but {', '.join(wanted['declared'])} are given now"
        )
    for label, entry in wanted["declared"].items():
        if entry["sha256"] != found["declared"][label]["sha256"]:
            raise MismatchError(f"the text of label {label!r} is not the one that {folder} is a recording of")
    before = {
        "kernels": "plain",
        **found["provenance"]["versions"],
        "device": found["provenance"]["inputs"].get("device"),
    }
    now = {**versions(), "device": wanted["provenance"]["inputs"]["device"]}
    watched = [name for name in ("torch", "transformers", "kernels", "device") if before.get(name) != now[name]]
    changed = [f"{name} {before.get(name)} -> {now[name]}" for name in watched]
    if changed:
        warnings.warn(
            f"resumed with {', '.join(changed)}: last digits may differ from an uninterrupted recording", stacklevel=4
        )
    found["shards"] = [
        entry for entry in found["shards"] if (folder / entry["file"]).is_file()
    ]  # a removed shard is made anew
    check_folder(folder, found)
    for entry in found["shards"]:
        check_shard(folder / entry["file"], entry, found["recording"])
    found["complete"] = False
    return found


@contextlib.contextmanager
def _explained(kept: _Kept) -> Iterator[None]:
    """Say of an interruption what was kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt as problem:
        raise Interrupted(f"interrupted; {_advice(kept)}") from problem
    except Error as problem:
        if kept.folder is None or isinstance(problem, MismatchError) or kept.discarded(problem):
            raise
        problem.args = (f"{problem}; {_advice(kept)}",)
        raise


def _advice(kept: _Kept) -> str:
    if kept.folder is None:
        return "nothing was kept: record with out=FOLDER to be able to go on"
    count = len(kept.manifest["shards"])
    return f"{count} finished shards are kept in {kept.folder}; go on with resume=True (--resume)"
