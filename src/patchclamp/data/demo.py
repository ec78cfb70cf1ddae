"""The text that comes with the package: 240 short documents, each in six languages, written for patchclamp."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data.corpora import Corpus
from patchclamp.data.documents import Document
from patchclamp.data.sources import Source

LANGUAGES = ("en", "de", "fr", "ru", "zh", "ja")
SPLITS = ("all", "find", "measure")
KIND = "demo"
MEASURE_EVERY = 6  # documents 5, 11, 17, ... are kept for measuring, so that effects are seen on text no finder saw


def demo_text(labels: Iterable[str] | None = None, *, split: str = "all") -> Corpus:
    """Parallel documents labelled by language; document k of every label says the same thing.

    labels: some of en, de, fr, ru, zh, ja; all by default. split: `find` (200 documents a language),
    `measure` (the 40 others) or `all`.
    """
    chosen = LANGUAGES if labels is None else tuple(labels)
    if unknown := [label for label in chosen if label not in LANGUAGES]:
        raise InputError(f"the demo text has no label {unknown[0]!r}; it has {', '.join(LANGUAGES)}")
    if split not in SPLITS:
        raise InputError(f"split {split!r} asked for; there are {', '.join(SPLITS)}")
    return Corpus({label: _source(label, split) for label in chosen})


def open_corpus(identity: Mapping[str, Any]) -> Corpus:
    """Open text again from the identity in a result: files and the demo's text; InputError for what was in memory."""
    entries = identity["labels"]
    demo = {label: entry["source"] for label, entry in entries.items() if entry["source"].get("kind") == KIND}
    if not demo:
        return Corpus.from_identity(identity)
    if len(demo) < len(entries) or len({source["split"] for source in demo.values()}) > 1:
        raise InputError("this text mixes the demo's text with other text and can't be opened again; give it")
    found = demo_text(demo, split=next(iter(demo.values()))["split"]).limited(
        max_documents=identity["limits"]["documents"], max_tokens=identity["limits"]["tokens"]
    )
    if found.fingerprint != identity["fingerprint"]:
        raise MismatchError(
            "the demo's text has changed since this result was made; it was another version of patchclamp"
        )
    return found


def _source(label: str, split: str) -> Source:
    def documents() -> Iterator[Document]:
        for number, row in enumerate(demo_documents()):
            if split in ("all", _split_of(number)):
                yield Document(row[label], id=f"demo/{row['id']}")

    return Source(documents, {"kind": KIND, "type": "the demo's text", "language": label, "split": split})


def _split_of(number: int) -> str:
    return "measure" if number % MEASURE_EVERY == MEASURE_EVERY - 1 else "find"


@cache
def demo_documents() -> list[dict[str, Any]]:
    """All documents: `id`, `topic` and one text per language."""
    text = files("patchclamp.data").joinpath("demo_text", "documents.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
