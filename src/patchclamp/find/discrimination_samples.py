"""Which words to look at: a class-balanced, seeded choice of places in tagged text, made before any model runs.

A sample is the last token of a word that has a class and is followed by a word with a class. What is kept depends on the
seed and the place alone, not on order or batching, and two reservoirs merge to what one pass over both texts keeps.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.data.corpora import Corpus
from patchclamp.data.documents import Document

READ_AHEAD = 64


@dataclass(frozen=True, order=True)
class Sample:
    """A place: token `token` (special tokens not counted) of document `document` of text `text`, where `word` ends.

    last: class of that word. next: class of the following word.
    """

    text: str
    document: int
    token: int
    word: str
    last: str
    next: str

    @property
    def place(self) -> tuple[str, int, int]:
        return self.text, self.document, self.token


class Reservoir:
    """At most `room` samples of every key, each equally likely to be kept; reservoirs of one seed merge."""

    def __init__(self, room: int, seed: int) -> None:
        self.room, self.seed = room, seed
        self.seen: dict[str, int] = {}
        self._kept: dict[str, list[tuple[int, Sample]]] = {}

    def offer(self, key: str, sample: Sample) -> None:
        """Take a sample in; the ones with the lowest hash of seed and place stay."""
        self.seen[key] = self.seen.get(key, 0) + 1
        self._push(key, (-_hash(self.seed, sample), sample))

    def merge(self, other: Reservoir) -> None:
        """Take another reservoir's samples in, as if its text had been offered here."""
        if (self.room, self.seed) != (other.room, other.seed):
            raise InputError("reservoirs of different size or seed don't merge")
        for key, count in other.seen.items():
            self.seen[key] = self.seen.get(key, 0) + count
            for entry in other._kept[key]:
                self._push(key, entry)

    def kept(self) -> dict[str, list[Sample]]:
        """Key -> samples in random order (that of their hashes); keys sorted."""
        return {key: [sample for _, sample in sorted(self._kept[key], reverse=True)] for key in sorted(self._kept)}

    def _push(self, key: str, entry: tuple[int, Sample]) -> None:
        heap = self._kept.setdefault(key, [])
        if len(heap) < self.room:
            heapq.heappush(heap, entry)
        elif entry > heap[0]:
            heapq.heapreplace(heap, entry)


@dataclass
class Plan:
    """Samples by what is compared: classes of the next word, of the last word, and both together; and what was left out."""

    next: Reservoir
    last: Reservoir
    pairs: Reservoir
    skipped: dict[str, int] = field(default_factory=lambda: {"token spans two words": 0, "two classes at one place": 0})
    words: int = 0

    @classmethod
    def empty(cls, per_class: int, seed: int) -> Plan:
        return cls(Reservoir(2 * per_class, seed), Reservoir(per_class, seed), Reservoir(max(per_class // 4, 10), seed))

    def add(self, sample: Sample) -> None:
        """Offer a sample to all three."""
        self.words += 1
        self.next.offer(sample.next, sample)
        self.last.offer(sample.last, sample)
        self.pairs.offer(f"{sample.last} {sample.next}", sample)

    def samples(self) -> list[Sample]:
        """Every sample that some comparison needs, once, in the order of the text."""
        found = {
            sample for one in (self.next, self.last, self.pairs) for kept in one.kept().values() for sample in kept
        }
        return sorted(found)


def planned(
    tokenizer: Any,
    text: Corpus,
    *,
    labels: str,
    drop: Sequence[str] = (),
    merge: Mapping[str, str] | None = None,
    per_class: int = 500,
    seed: int = 0,
) -> Plan:
    """Choose samples from all texts. labels: prefix of the spans, "upos" for spans such as upos=NOUN.

    drop: classes that count as no word. merge: class -> class that it counts as. InputError for text without such spans, or a
    tokenizer that knows no character offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("finding the last token of a word needs a fast tokenizer, which knows character offsets")
    plan = Plan.empty(per_class, seed)
    for label in text.labels:
        left = text.limits["tokens"]
        for number, document, offsets in _tokenized(tokenizer, text.documents(label)):
            words = words_of(document, labels, drop, merge or {}, plan.skipped)
            for sample in _samples(label, number, document.text, words, offsets, plan.skipped):
                if left is None or sample.token < left:
                    plan.add(sample)
            if left is not None:
                left -= len(offsets)
                if left <= 0:
                    break
    if not plan.words:
        raise InputError(
            f"the text has no two words with {labels}=CLASS spans in a row; give a CoNLL-U file or documents with spans"
        )
    return plan


def words_of(
    document: Document, labels: str, drop: Sequence[str], merge: Mapping[str, str], skipped: dict[str, int]
) -> list[tuple[int, int, str | None]]:
    """Words in order as (start, stop, class); the class is None for one that is dropped or has two classes."""
    found: dict[tuple[int, int], set[str]] = {}
    for name, places in document.spans.items():
        prefix, separator, kind = name.partition("=")
        if separator and prefix == labels:
            for place in places:
                found.setdefault(place, set()).add(merge.get(kind, kind))
    words: list[tuple[int, int, str | None]] = []
    for (start, stop), kinds in sorted(found.items()):
        skipped["two classes at one place"] += len(kinds) > 1
        kind = next(iter(kinds))
        words.append((start, stop, None if len(kinds) > 1 or kind in drop else kind))
    return words


def _samples(
    name: str,
    number: int,
    text: str,
    words: list[tuple[int, int, str | None]],
    offsets: Any,
    skipped: dict[str, int],
) -> Iterator[Sample]:
    if len(words) < 2 or not len(offsets):
        return
    starts, stops = np.asarray(offsets, dtype=np.int64).T
    for (start, stop, last), (following, _, coming) in itertools.pairwise(words):
        if last is None or coming is None:
            continue
        token = int(np.searchsorted(starts, stop, side="left")) - 1  # the last token that begins inside the word
        if token < 0 or stops[token] > following or stops[token] < stop:
            skipped["token spans two words"] += 1
            continue
        yield Sample(name, number, token, text[start:stop].casefold(), last, coming)


def _tokenized(tokenizer: Any, documents: Iterable[Document]) -> Iterator[tuple[int, Document, Any]]:
    stream = iter(documents)
    for first in itertools.count(0, READ_AHEAD):
        chunk = list(itertools.islice(stream, READ_AHEAD))
        if not chunk:
            return
        texts = [document.text for document in chunk]
        found = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        for at, document in enumerate(chunk):
            yield first + at, document, found["offset_mapping"][at]


def _hash(seed: int, sample: Sample) -> int:
    key = f"{seed}\x1f{sample.text}\x1f{sample.document}\x1f{sample.token}"
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest())
