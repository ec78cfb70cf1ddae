"""One document: its text and named character spans; and the running fingerprint of a stream of documents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Spans = Mapping[str, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Document:
    """A piece of text that is read on its own.

    spans: name -> character ranges (start, stop) of `text`, such as "response" or "upos=NOUN". id: where it came from.
    """

    text: str
    spans: Spans = field(default_factory=dict)
    id: str | None = None


class Tally:
    """Counts documents and characters as they pass and hashes their text and spans (not their ids), in order."""

    def __init__(self) -> None:
        self.documents = 0
        self.characters = 0
        self._hash = hashlib.sha256()

    def add(self, document: Document) -> None:
        """Take one document in."""
        text = document.text.encode("utf-8", "surrogatepass")
        self._hash.update(b"%d:" % len(text))
        self._hash.update(text)
        if document.spans:
            self._hash.update(json.dumps({name: document.spans[name] for name in sorted(document.spans)}).encode())
        self.documents += 1
        self.characters += len(document.text)

    def over(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Pass documents through, counting them."""
        for document in documents:
            self.add(document)
            yield document

    @property
    def sha256(self) -> str:
        """Hex digest of everything taken in so far."""
        return self._hash.copy().hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return {"documents": self.documents, "characters": self.characters, "sha256": self.sha256}
