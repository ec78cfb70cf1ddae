"""Shards: fixed runs of documents of one label, cut by text and arguments alone, so that any worker can redo any of them."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data.batches import Selection, Tokens, encode, shortened
from patchclamp.data.corpora import Corpus
from patchclamp.data.documents import Document, Tally

_READ_AHEAD = 64


@dataclass(frozen=True)
class Cut:
    """How text becomes shards: the length of pieces, which tokens count, and when a shard is full."""

    max_length: int
    select: Selection
    shard_tokens: int
    shard_documents: int


@dataclass(frozen=True)
class Shard:
    """Consecutive documents `first .. stop - 1` of one label, encoded.

    number: place among the label's shards. tokens: how many count. text: SHA-256 of the documents.
    """

    label: str
    number: int
    first: int
    stop: int
    tokens: int
    text: str
    pieces: tuple[Tokens, ...]


class ShardStream:
    """The shards of one label in order; those that `finished` names are checked against the text and left out.

    finished: number -> the manifest's entry. After the iteration `tally` covers the documents read and `tokens` counts tokens.
    """

    def __init__(
        self, tokenizer: Any, text: Corpus, label: str, cut: Cut, finished: Mapping[int, Mapping[str, Any]]
    ) -> None:
        self.label = label
        self.tally = Tally()
        self.tokens = 0
        self._tokenizer = tokenizer
        self._cut = cut
        self._finished = finished
        self._limit = text.max_tokens
        self._documents = text.documents(label)
        self._raw: deque[Document] = deque()  # read, not encoded
        self._ready: deque[tuple[Document, list[Tokens]]] = deque()
        self._encoded = 0  # number of the next document to encode

    def __iter__(self) -> Iterator[Shard]:
        for number in itertools.count():
            if self._limit is not None and self.tokens >= self._limit:
                return
            entry = self._finished.get(number)
            if entry is not None:
                self._pass_over(number, entry)
                continue
            shard = self._shard(number)
            if shard is None:
                return
            yield shard

    def _shard(self, number: int) -> Shard | None:
        first, tally, tokens = self.tally.documents, Tally(), 0
        pieces: list[Tokens] = []
        while tokens < self._cut.shard_tokens and tally.documents < self._cut.shard_documents:
            if not self._ready and not self._encode():
                break
            document, mine = self._ready.popleft()
            tally.add(document)
            self.tally.add(document)
            for piece in mine:
                if self._limit is not None:
                    if self.tokens + tokens >= self._limit:
                        break
                    piece = shortened(piece, self._limit - self.tokens - tokens)
                if piece.counted:
                    pieces.append(piece)
                    tokens += piece.counted
            if self._limit is not None and self.tokens + tokens >= self._limit:
                break
        if not tally.documents:
            return None
        self.tokens += tokens
        return Shard(self.label, number, first, self.tally.documents, tokens, tally.sha256, tuple(pieces))

    def _encode(self) -> bool:
        """Encode the next documents; False at the end of the text."""
        while len(self._raw) < _READ_AHEAD and (document := next(self._documents, None)) is not None:
            self._raw.append(document)
        chunk = list(self._raw)
        self._raw.clear()
        pieces: dict[int, list[Tokens]] = {}
        for piece in encode(
            self._tokenizer, chunk, max_length=self._cut.max_length, select=self._cut.select, first=self._encoded
        ):
            pieces.setdefault(piece.document, []).append(piece)
        self._ready.extend((document, pieces.get(self._encoded + place, [])) for place, document in enumerate(chunk))
        self._encoded += len(chunk)
        return bool(chunk)

    def _pass_over(self, number: int, entry: Mapping[str, Any]) -> None:
        """Read the documents of a finished shard without encoding them, and compare them with what it recorded."""
        first, stop = entry["documents"]
        tally = Tally()
        while tally.documents < stop - first:
            if self._ready:
                document: Document | None = self._ready.popleft()[0]
            else:
                document = self._raw.popleft() if self._raw else next(self._documents, None)
                self._encoded += document is not None
            if document is None:
                break
            tally.add(document)
            self.tally.add(document)
        if tally.sha256 != entry["text"] or first != self.tally.documents - tally.documents:
            raise MismatchError(
                f"the text of label {self.label!r} is not the one that was being recorded: documents {first}-{stop - 1} differ; "
                "resume with the same text, or record into another folder"
            )
        self.tokens += int(entry["tokens"])


def default_shard_tokens(units: int) -> int:
    """Tokens per shard: more for larger models, so that the statistics on disk stay small beside the work that makes them."""
    return max(1 << 16, 8 * units)


def check_positive(**values: int | None) -> None:
    """InputError for numbers below 1."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"{name}={value} given; it must be at least 1")
