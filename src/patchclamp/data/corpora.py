"""Labelled text: `corpus(en="en.txt", fr=["...", "..."])` gives a Corpus of re-iterable document streams with a fingerprint."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.core.files import sha256_text, to_json
from patchclamp.data.documents import Document, Tally
from patchclamp.data.sources import Source, folder_files, source_of
from patchclamp.data.tables import TABLES, Columns, distinct, frame_rows, is_frame, table_rows


def corpus(
    mapping: Any = None,
    /,
    *,
    unit: str = "line",
    text: str | None = None,
    prompt: str | None = None,
    response: str | None = None,
    tags: str | Sequence[str] = (),
    label: str | None = None,
    max_documents: int | None = None,
    max_tokens: int | None = None,
    **labels: Any,
) -> Corpus:
    """Labelled text from files, lists, tables, `datasets` objects, generators or standard input ("-").

    mapping: label -> text, for labels that are no Python names; or one table with a `label` column; or a folder with one file
    or subfolder per label. labels: the same as keywords. unit: what a document is in a plain text file ("line", "block" between
    blank lines, "file"); a sentence of a CoNLL-U file and a row of a table are always one. text, prompt, response, tags:
    columns of tables (see `Columns`). max_documents, max_tokens: at most so many per label; tokens are counted by whoever
    encodes the text, and are those that count (no padding, by default no special tokens).

    Raises InputError for missing or empty text, and warns where two labels hold the same text.
    """
    columns = Columns(text, prompt, response, (tags,) if isinstance(tags, str) else tuple(tags))
    for name, limit in (("max_documents", max_documents), ("max_tokens", max_tokens)):
        if limit is not None and limit < 1:
            raise InputError(f"{name}={limit} given; it must be at least 1, or None for no limit")
    sources: dict[str, Source] = {}
    if mapping is not None and not isinstance(mapping, Mapping):
        sources |= _split(mapping, label, columns, unit)
    else:
        mapping = mapping or {}
        named = {**mapping, **labels}
        if len(named) < len(mapping) + len(labels):
            raise InputError(f"label {next(iter({*mapping} & {*labels}))!r} is given twice")
        labels = named
    for name, value in labels.items():
        sources[_label(name)] = _labelled_source(name, value, unit, columns)
    return Corpus(sources, max_documents=max_documents, max_tokens=max_tokens)


class Corpus:
    """Labels, each with a stream of documents that can be read again and again without being held in memory."""

    def __init__(
        self, sources: Mapping[str, Source], *, max_documents: int | None = None, max_tokens: int | None = None
    ) -> None:
        if not sources:
            raise InputError("no text was given; name at least one, as in corpus(en='en.txt')")
        self._sources = dict(sources)
        self._tallies: dict[str, Tally] = {}
        self._same: list[set[str]] = []  # pairs of labels whose text is known to be the same
        self.max_documents = max_documents
        self.max_tokens = max_tokens
        for label in self._sources:  # an empty label must be known now, not hours into a recording
            next(self.documents(label))
        self._warn_of_same_source()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._sources)

    @property
    def limits(self) -> dict[str, int | None]:
        """{"documents": ..., "tokens": ...}: at most so many per label; None for no limit."""
        return {"documents": self.max_documents, "tokens": self.max_tokens}

    def documents(self, label: str) -> Iterator[Document]:
        """The documents of one label in order; at most `max_documents`. InputError if there are none."""
        self._check(label)
        none = True
        for document in itertools.islice(self._sources[label].documents(), self.max_documents):
            none = False
            yield document
        if none:
            where = self._sources[label].info.get("path")
            raise InputError(f"label {label!r} has no text{f' ({where} holds only blank lines)' if where else ''}")

    def source(self, label: str) -> dict[str, Any]:
        """Where one label's text comes from, as plain data."""
        self._check(label)
        return dict(self._sources[label].info)

    def cheap(self, label: str) -> bool:
        """Whether this label's text can be read twice at little cost (a file, a list), so that it may be hashed beforehand."""
        self._check(label)
        return self._sources[label].cheap

    def count(self, label: str) -> int:
        """Number of documents of one label (reads the text once)."""
        return self.tally(label).documents

    def subset(self, labels: Iterable[str]) -> Corpus:
        """The same text with some labels only, in the order given."""
        chosen = list(labels)
        for label in chosen:
            self._check(label)
        return Corpus({label: self._sources[label] for label in chosen}, **self._keywords())

    def limited(self, *, max_documents: int | None = None, max_tokens: int | None = None) -> Corpus:
        """The same text with other limits."""
        return Corpus(self._sources, max_documents=max_documents, max_tokens=max_tokens)

    @property
    def identity(self) -> dict[str, Any]:
        """{"fingerprint", "labels": {label: {"documents", "characters", "sha256", "source"}}, "limits"}; reads the text once.

        With `max_tokens`, at most that many documents of a label are read for it: a document has at least one token.
        """
        labels = {label: {**self.tally(label).to_dict(), "source": self.source(label)} for label in self.labels}
        return identity_of(labels, self.limits)

    @property
    def fingerprint(self) -> str:
        """Hex SHA-256 over labels, texts and spans, in order."""
        return str(self.identity["fingerprint"])

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any], *, check: bool = True) -> Corpus:
        """Open the text again from where an identity says it was.

        Raises InputError for text that was in memory or a stream, MismatchError (with `check`) if a file has changed.
        """
        sources, limits = {}, identity["limits"]
        for label, entry in identity["labels"].items():
            info = entry["source"]
            if "path" not in info or info.get("kind") not in ("file", "folder"):
                kind = info.get("type", "in memory")
                raise InputError(f"the text of label {label!r} was {kind} and can't be opened again; give it")
            sources[label] = source_of(info["path"], unit=info["unit"], columns=Columns.from_dict(info["columns"]))
        found = cls(sources, max_documents=limits["documents"], max_tokens=limits["tokens"])
        if check:
            for label, entry in identity["labels"].items():
                tally = Tally()
                for document in itertools.islice(found.documents(label), entry["documents"]):
                    tally.add(document)
                if tally.sha256 != entry["sha256"]:
                    raise MismatchError(
                        f"the text of label {label!r} in {entry['source']['path']} is not what was read before"
                    )
        return found

    def __len__(self) -> int:
        """Number of labels."""
        return len(self._sources)

    def __repr__(self) -> str:
        kinds = ", ".join(f"{label}: {s.info.get('path', s.info.get('type'))}" for label, s in self._sources.items())
        return f"Corpus({kinds})"

    def _keywords(self) -> dict[str, Any]:
        return {"max_documents": self.max_documents, "max_tokens": self.max_tokens}

    def _check(self, label: str) -> None:
        if label not in self._sources:
            raise InputError(f"no label {label!r} in this text; its labels are {', '.join(self._sources)}")

    def tally(self, label: str) -> Tally:
        """Documents, characters and SHA-256 of one label's text; reads it once."""
        if label not in self._tallies:
            tally = Tally()
            for document in itertools.islice(self.documents(label), self.max_tokens):
                tally.add(document)
            self._tallies[label] = tally
            unsaid = [name for name in self._tallies if {name, label} not in self._same]
            warn_of_same_text({name: self._tallies[name].sha256 for name in unsaid})
        return self._tallies[label]

    def _warn_of_same_source(self) -> None:
        seen: dict[str, str] = {}
        for label, source in self._sources.items():
            if source.info.get("kind") not in ("file", "folder"):
                continue
            key = to_json(source.info)
            if key in seen:
                self._same.append({seen[key], label})
                warnings.warn(
                    f"labels {seen[key]!r} and {label!r} hold the same text ({source.info['path']})", stacklevel=3
                )
            seen.setdefault(key, label)


def identity_of(labels: Mapping[str, Mapping[str, Any]], limits: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of labelled text from what is known of each label (documents, characters, sha256, source)."""
    fingerprint = sha256_text(to_json([[label, entry["sha256"]] for label, entry in labels.items()]))
    return {
        "fingerprint": fingerprint,
        "labels": {name: dict(entry) for name, entry in labels.items()},
        "limits": dict(limits),
    }


def warn_of_same_text(hashes: Mapping[str, str]) -> None:
    """Warn if the label that comes last has the text of an earlier one (label -> SHA-256 of its text)."""
    *earlier, last = hashes
    for label in earlier:
        if hashes[label] == hashes[last]:
            warnings.warn(f"labels {label!r} and {last!r} hold the same text", stacklevel=3)


def _label(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{name!r} is no label; a label is a text that isn't empty")
    return name


def _labelled_source(name: str, value: Any, unit: str, columns: Columns) -> Source:
    try:
        return source_of(value, unit=unit, columns=columns)
    except InputError as problem:
        raise InputError(f"label {name!r}: {problem}") from problem


def _split(value: Any, label: str | None, columns: Columns, unit: str) -> dict[str, Source]:
    """One source per label of a table with a label column, or per file or subfolder of a folder."""
    path = Path(value) if isinstance(value, str | os.PathLike) else None
    if path is not None and path.is_dir() and label is None:
        children = [child for child in sorted(path.iterdir()) if not child.name.startswith(".")]
        sources = {
            child.name if child.is_dir() else child.stem: source_of(child, unit=unit, columns=columns)
            for child in children
            if child.is_file() or folder_files(child)
        }
        if not sources:
            raise InputError(f"the folder {path} holds no files to read")
        if len(sources) < len(children):
            raise InputError(f"two files of {path} give the same label; name the labels yourself")
        return sources
    if label is None:
        raise InputError("text without a label: write corpus(en=...), or name the column with the label (label=...)")
    if path is not None:
        if not path.is_file() or path.suffix.lower() not in TABLES:
            raise InputError(f"{path} is no table with a {label!r} column; give one of {', '.join(TABLES)}")
        rows: Iterable[Mapping[str, Any]] = table_rows(path, Columns(text=label))
    else:
        rows = frame_rows(value) if is_frame(value) else value
        if isinstance(rows, Iterator) and not is_frame(value):
            raise InputError("a generator can be read only once, so it can't be split by label; give a list or a table")
    values = distinct(rows, label, str(path or type(value).__name__))
    named = {str(found): replace(columns, where=(label, found)) for found in values}
    return {name: source_of(value, unit=unit, columns=chosen) for name, chosen in named.items()}
