"""Build an atlas from recordings, findings, effects and token maps of one model, or add some to an existing one."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.atlas import schema
from patchclamp.atlas.connection import scratch_folder, writing
from patchclamp.atlas.query import Atlas
from patchclamp.atlas.sources import (
    descriptions_of,
    effects_of,
    finding_of,
    model_of,
    recording_of,
    run_entries,
    sets_of_effects,
    tokens_of,
    unit_columns,
)
from patchclamp.atlas.windows import windows
from patchclamp.atlas.writer import Window, Writer, check_same_model
from patchclamp.core.errors import InputError, MismatchError
from patchclamp.core.files import atomic_write
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.data.documents import Tally
from patchclamp.models.units import Layout, UnitSet, joint_identity
from patchclamp.read.descriptions import Descriptions
from patchclamp.read.token_map import TokenMap

if TYPE_CHECKING:
    from patchclamp.data.corpora import Corpus
    from patchclamp.find.finding import Finding
    from patchclamp.measure.effect_table import Effects
    from patchclamp.models.load import LanguageModel
    from patchclamp.record.recording import Recording


def build(
    path: str | os.PathLike[str],
    *,
    recordings: Iterable[Any] = (),
    findings: Iterable[Any] = (),
    effects: Iterable[Any] = (),
    tokens: Iterable[Any] = (),
    descriptions: Iterable[Any] = (),
    corpus: Corpus | None = None,
    model: LanguageModel | None = None,
    overwrite: bool = False,
    append: bool = False,
    memory_limit: str | None = None,
    threads: int | None = None,
    quiet: bool = False,
) -> Atlas:
    """Write an atlas file and open it.

    recordings: `Recording` objects or folders. findings: `Finding` objects, mappings name -> UnitSet, or
    `patchclamp.sets/1` files. effects: `Effects` objects or `patchclamp.effects/1` files. tokens: `TokenMap` objects of
    `read.tokens`, or the files that they were saved in. descriptions: `Descriptions` of `read.describe`, or their files. All
    of one model. corpus: the text that was recorded; exemplars are then stored with the text around them. model: gives
    the tokenizer that says where in the text the token is. append: add to the atlas at `path`. memory_limit ("1GB"),
    threads: for DuckDB.

    The file appears, or changes, when it is complete. Raises InputError if it exists (unless overwrite or append) or
    something is given twice, MismatchError for things of different models or another corpus.
    """
    target = Path(path)
    if overwrite and append:
        raise InputError("overwrite and append were both given; one replaces the atlas, the other adds to it")
    opened = [recording_of(given) for given in _several(recordings)]
    sources: list[tuple[Any, str | None]] = [
        *opened,
        *[finding_of(given) for given in _several(findings)],
        *[effects_of(given) for given in _several(effects)],
        *[tokens_of(given) for given in _several(tokens)],
        *[descriptions_of(given) for given in _several(descriptions)],
    ]
    if not sources:
        raise InputError(
            "nothing to put into an atlas; give recordings=, findings=, effects=, tokens= or descriptions="
        )
    identity = _one_model([source for source, _ in sources], model)
    if append:
        with Atlas.open(target) as existing:
            check_same_model(existing.model, identity, str(target))
    text = _Text(corpus, None if model is None else model.tokenizer)
    text.check([recording for recording, _ in opened])
    with atomic_write(target, overwrite=overwrite or append) as part, scratch_folder(target.parent) as scratch:
        part.unlink()  # DuckDB wants to make the file itself
        try:
            if append:
                shutil.copyfile(target, part)
            with writing(part, Path(scratch), memory_limit=memory_limit, threads=threads, shown=target) as connection:
                if append:
                    schema.complete(connection)
                else:
                    schema.create(connection, created=_now())
                writer = Writer(connection, identity)
                total = sum(_parts(source) for source, _ in sources)
                with progress("atlas", total, unit="parts", quiet=quiet) as advance:
                    for source, where in sources:
                        for _ in _written(writer, source, where, text, Path(scratch)):
                            advance(1)
                schema.create_views(connection)
        finally:
            part.with_name(part.name + ".wal").unlink(missing_ok=True)
    return Atlas.open(target, memory_limit=memory_limit, threads=threads)


def _several(given: Any) -> list[Any]:
    """A single object or path is taken for a list of one, which is what is meant."""
    if isinstance(given, str | os.PathLike) or not isinstance(given, Iterable) or isinstance(given, Mapping):
        return [given]
    return list(given)


def _one_model(sources: Sequence[Any], model: LanguageModel | None) -> Mapping[str, Any]:
    identities = [model_of(source) for source in sources]
    if model is not None:
        identities.append(model.identity)
    found = identities[0]
    for other in identities[1:]:
        check_same_model(found, other, "the first thing given")
        found = joint_identity(found, other)
    return found


def _parts(source: Any) -> int:
    """In how many steps `_written` writes a source."""
    if not _is_recording(source):
        return 1
    exemplars = len(source.labels) if "exemplars" in source.statistics else 0
    return len(source.sites) * (1 + exemplars)


def _written(writer: Writer, source: Any, where: str | None, text: _Text, scratch: Path) -> Iterator[None]:
    """Write one source; yields after every step."""
    if _is_recording(source):
        yield from _write_recording(writer, source, where, text, scratch)
        return
    if isinstance(source, TokenMap):
        _write_tokens(writer, source, where)
    elif isinstance(source, Descriptions):
        _write_descriptions(writer, source, where)
    elif isinstance(source, Mapping):
        _write_sets(writer, source, where)
    elif hasattr(source, "chosen"):
        _write_finding(writer, source, where)
    else:
        _write_effects(writer, source, where)
    yield


def _is_recording(source: Any) -> bool:
    return hasattr(source, "statistics") and hasattr(source, "corpus")


def _write_recording(
    writer: Writer, recording: Recording, where: str | None, text: _Text, scratch: Path
) -> Iterator[None]:
    run = writer.run("recording", **run_entries(recording, where))
    ids = writer.labels(run, {label: _size(recording, label) for label in recording.labels})
    for site in recording.sites:
        _write_statistics(writer, recording, site, ids, scratch)
        yield
        if "exemplars" in recording.statistics:
            for label, label_id in zip(recording.labels, ids, strict=True):
                _write_exemplars(writer, recording, site, label, label_id, text)
                yield


def _size(recording: Recording, label: str) -> tuple[int, int]:
    return int(recording.documents(label)), int(recording.tokens(label))


def _write_statistics(writer: Writer, recording: Recording, site: str, ids: Sequence[int], scratch: Path) -> None:
    """All labels of a site. Columns lie in files while they are gathered: rows are wanted by unit, arrays come by label."""
    columns: dict[str, NDArray[Any]] = {}
    recorded: NDArray[np.bool_] | None = None
    try:
        for number, label in enumerate(recording.labels):
            for name in recording.statistics:
                statistic = recording.get(name, label, site)
                recorded = statistic.recorded if recorded is None else recorded | statistic.recorded
                for column, values in unit_columns(name, statistic).items():
                    if column not in columns:
                        columns[column] = _column(
                            scratch / f"column-{len(columns)}", len(ids), recording.layouts[site], values
                        )
                    columns[column][number] = values
        if columns:
            writer.statistics(ids, site, columns, keep=recorded)
    finally:
        for values in columns.values():
            Path(str(values.filename)).unlink(missing_ok=True)  # type: ignore[attr-defined]


def _column(path: Path, n_labels: int, layout: Layout, like: NDArray[Any]) -> NDArray[Any]:
    kind = {"i": np.int64, "u": np.int64, "b": np.bool_}.get(like.dtype.kind, np.float64)
    return np.memmap(path, dtype=kind, mode="w+", shape=(n_labels, layout.total))


def _write_exemplars(writer: Writer, recording: Recording, site: str, label: str, label_id: int, text: _Text) -> None:
    state = recording.get("exemplars", label, site).state()
    document, position, value = (np.asarray(state[name]).T for name in ("document", "position", "value"))  # (units, k)
    pairs = np.stack([document.ravel(), position.ravel()], axis=1)
    wanted = np.unique(pairs[pairs[:, 0] >= 0], axis=0)
    writer.exemplars(label_id, site, document, position, value, text.windows(recording, label, wanted))


def _write_finding(writer: Writer, finding: Finding, where: str | None) -> None:
    run = writer.run("finding", **run_entries(finding, where))
    ids = writer.labels(run, dict.fromkeys(finding.labels, (None, None)))
    scores = finding.scores if finding.scores is not None else finding.kept_scores
    columns = {"score": scores, "p": finding.p_values, "chosen": finding.chosen, "member": finding.member}
    for site in finding.sites:
        own = {name: None if values is None else finding.by_site(values)[site] for name, values in columns.items()}
        writer.scores(ids, site, own)
        classes, unit_score = (
            None if values is None else finding.by_site(values)[site]
            for values in (finding.classes, finding.unit_score)
        )
        writer.classes(run, site, classes, finding.class_names, unit_score)
    for label_id, (name, units) in zip(ids, finding.sets.items(), strict=True):
        writer.set(run, name, units, label_id=label_id)


def _write_sets(writer: Writer, sets: Mapping[str, UnitSet], where: str | None) -> None:
    run = writer.run("sets", **run_entries(sets, where))
    for name, units in sets.items():
        writer.set(run, name, units)


def _write_tokens(writer: Writer, found: TokenMap, where: str | None) -> None:
    """Both ends of every unit, without units that point at nothing; the strings of the tokens in `vocabulary`."""
    run = writer.run("tokens", **run_entries(found, where))
    ids = np.array(sorted(found.vocabulary), dtype=np.int64)
    writer.vocabulary(ids, [found.vocabulary[one] for one in ids.tolist()])
    for site, positions in found.positions.items():
        span = found.rows_of(site)
        kept = np.flatnonzero(~found.undefined[span])
        for sign, token_ids, values in (
            (1, found.top_ids, found.top_values),
            (-1, found.bottom_ids, found.bottom_values),
        ):
            if token_ids.shape[1]:
                writer.tokens(run, site, positions[kept], token_ids[span][kept], values[span][kept], sign=sign)


def _write_descriptions(writer: Writer, found: Descriptions, where: str | None) -> None:
    """One row per unit that was described."""
    writer.descriptions(writer.run("descriptions", **run_entries(found, where)), found.rows())


def _write_effects(writer: Writer, effects: Effects, where: str | None) -> None:
    """The rows, tied to the sets that were clamped: those of the atlas where they are the same, else stored now."""
    run = writer.run("effects", **run_entries(effects, where))
    ids = {}
    for name, units in sets_of_effects(effects).items():
        known = writer.find_set(name, units)
        ids[name] = writer.set(run, name, units) if known is None else known
    writer.effects(run, effects.rows, ids)


class _Text:
    """The corpus given and the tokenizer; knows which recorded labels the corpus is the text of."""

    def __init__(self, corpus: Corpus | None, tokenizer: Any) -> None:
        self._corpus, self._tokenizer = corpus, tokenizer
        self._known: dict[tuple[str, str], bool] = {}

    def check(self, recordings: Sequence[Recording]) -> None:
        """Raise MismatchError if a corpus was given that is the text of no label with exemplars."""
        if self._corpus is None:
            return
        kept = [recording for recording in recordings if "exemplars" in recording.statistics]
        if not kept:
            raise InputError("corpus= is for the text of exemplars, but no recording with exemplars was given")
        pairs = [(recording, label) for recording in kept for label in recording.labels]
        if not any(self._belongs(recording, label) for recording, label in pairs):
            labels = ", ".join(dict.fromkeys(label for _, label in pairs))
            raise MismatchError(f"corpus= is not the text recorded under the labels {labels}; give that text, or none")

    def windows(self, recording: Recording, label: str, wanted: NDArray[np.int64]) -> Iterable[Window]:
        """The text around some tokens of a label; nothing if the corpus does not hold what was recorded."""
        if self._corpus is None or not self._belongs(recording, label):
            return ()
        return windows(self._corpus.documents(label), self._tokenizer, wanted)

    def _belongs(self, recording: Recording, label: str) -> bool:
        """Whether the label's first documents, as many as were recorded, have the recorded SHA-256."""
        recorded = recording.corpus["labels"][label]
        key = (label, recorded["sha256"])
        if key not in self._known:
            tally = Tally()
            if self._corpus is not None and label in self._corpus.labels:
                for document in itertools.islice(self._corpus.documents(label), recorded["documents"]):
                    tally.add(document)
            self._known[key] = tally.sha256 == recorded["sha256"]
        return self._known[key]


def _now() -> str:
    return str(provenance("atlas.build", arguments={}, inputs={})["created"])
