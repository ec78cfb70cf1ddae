"""Batches of tokens that know which of their tokens count: documents are encoded, cut into pieces, sorted by length, packed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import Error, InputError
from patchclamp.data.documents import Document

T = TypeVar("T")
PIECE = 2048  # default longest piece in tokens; models made for more are not driven to their limit unasked
_READ_AHEAD = 64  # documents given to the tokenizer at once
_FITTING = {"cpu": 1024}  # tokens a batch; on a CPU larger ones leave the cache and take longer
_LARGE = 4096


@dataclass(frozen=True)
class Selection:
    """Which tokens count. special: also BOS, EOS and the like. skip_first: not the first k positions of a sequence.

    inside: only tokens that overlap a character span of this name ("response", "upos=NOUN", any tag column).
    """

    special: bool = False
    skip_first: int = 0
    inside: str | None = None

    def __post_init__(self) -> None:
        if self.skip_first < 0:
            raise InputError(f"skip_first={self.skip_first} given; it is a number of positions, at least 0")

    def to_dict(self) -> dict[str, Any]:
        return {"special": self.special, "skip_first": self.skip_first, "inside": self.inside}


@dataclass(frozen=True)
class Tokens:
    """One piece of a document, short enough for one forward pass.

    ids: token ids, int. keep: which of them count, None for all. document: number of the document in its stream. start:
    position in the document of the first token, so that token i stands at `start + i`; position p of a document that fits in
    one piece is simply its p-th token, BOS included. Later pieces begin with BOS again, but positions of text run on.
    """

    ids: NDArray[np.int32] | list[int]
    keep: NDArray[np.bool_] | list[bool] | None
    document: int
    start: int

    @property
    def counted(self) -> int:
        """How many tokens count."""
        return len(self.ids) if self.keep is None else int(np.count_nonzero(self.keep))


@dataclass
class Batch:
    """Sequences padded to one length.

    input_ids, attention_mask: (B, S) int64. keep: (B, S) bool, tokens that count (never padding). document: (B,) int64.
    start: (B,) int64, document position of column 0 of each sequence (below 0 under left padding), so that column s stands at
    `start + s`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    keep: Tensor
    document: Tensor
    start: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return int(self.input_ids.shape[0])

    def halves(self) -> tuple[Batch, Batch]:
        """The first and the second half of the sequences."""
        middle = (len(self) + 1) // 2
        names = list(self.__dataclass_fields__)
        return (
            Batch(*(getattr(self, name)[:middle] for name in names)),
            Batch(*(getattr(self, name)[middle:] for name in names)),
        )


def encode(
    tokenizer: Any,
    documents: Iterable[Document],
    *,
    max_length: int,
    max_tokens: int | None = None,
    select: Selection | None = None,
    first: int = 0,
) -> Iterator[Tokens]:
    """Pieces of at most `max_length` tokens, special tokens added as the tokenizer does; long documents are cut.

    max_tokens: stop as soon as so many tokens that count have passed. first: number of the first document. A document that has
    no tokens gives no piece. Documents are read up to 64 ahead. Raises InputError without a tokenizer, or with `inside` and a
    tokenizer that knows no offsets.
    """
    select = select or Selection()
    frame = SpecialTokens.of(tokenizer)
    room = max_length - len(frame.before) - len(frame.after)
    if room < 1:
        raise InputError(f"max_length={max_length} leaves no room for text beside {max_length - room} special tokens")
    left = max_tokens
    stream = iter(documents)
    for number in itertools.count(first, _READ_AHEAD):
        chunk = list(itertools.islice(stream, _READ_AHEAD))
        if not chunk:
            return
        for offset, (ids, inside) in enumerate(_tokenized(tokenizer, chunk, select)):
            for piece in _pieces(
                ids, _counting(ids, inside, select, frame), number + offset, max_length, room, frame, select
            ):
                if left is None:
                    yield piece
                    continue
                piece = shortened(piece, left)
                left -= piece.counted
                yield piece
                if left <= 0:
                    return


@dataclass(frozen=True)
class SpecialTokens:
    """What a tokenizer puts before and after a text, and all ids that stand for no text."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    ids: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any) -> SpecialTokens:
        if tokenizer is None:
            raise InputError("this model has no tokenizer, so it can't read text; load it with tokenizer=...")
        bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
        framed = list(tokenizer("a")["input_ids"])
        for start in range(len(framed) - len(bare) + 1):
            if framed[start : start + len(bare)] == bare:
                ids = {*framed[:start], *framed[start + len(bare) :], *_special_ids(tokenizer)}
                return cls(tuple(framed[:start]), tuple(framed[start + len(bare) :]), frozenset(ids))
        raise InputError("this tokenizer changes a text when it adds special tokens; such a tokenizer isn't supported")


def _special_ids(tokenizer: Any) -> set[int]:
    """Ids of special tokens; the unknown token is text unless it also serves as another."""
    special = set(getattr(tokenizer, "all_special_ids", ()))
    unknown = getattr(tokenizer, "unk_token_id", None)
    others = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "cls", "sep", "mask")}
    return special - ({unknown} - others)


def _tokenized(tokenizer: Any, chunk: list[Document], select: Selection) -> Iterator[tuple[NDArray[np.int32], Any]]:
    """Ids of each document without special tokens, and which of them lie inside the selected spans (None: not asked)."""
    if select.inside is not None and not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"selecting tokens inside {select.inside!r} needs a fast tokenizer, which knows character offsets"
        )
    extra = {} if select.inside is None else {"return_offsets_mapping": True}
    found = tokenizer(
        [document.text for document in chunk],
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
        **extra,
    )
    for number, document in enumerate(chunk):
        ids = np.asarray(found["input_ids"][number], dtype=np.int32)
        inside = None
        if select.inside is not None:
            inside = overlapping(found["offset_mapping"][number], document.spans.get(select.inside, ()))
        yield ids, inside


def overlapping(offsets: Sequence[tuple[int, int]], spans: Iterable[tuple[int, int]]) -> NDArray[np.bool_]:
    """(n_tokens,) bool: which tokens share a character with a span; offsets and spans are character ranges (start, stop)."""
    inside = np.zeros(len(offsets), dtype=bool)
    if len(offsets):
        start, stop = np.asarray(offsets, dtype=np.int64).T
        stop = np.maximum(stop, start + 1)
        for left, right in spans:
            inside |= (start < right) & (stop > left)
    return inside


def _counting(ids: NDArray[np.int32], inside: Any, select: Selection, frame: SpecialTokens) -> NDArray[np.bool_]:
    keep = np.ones(len(ids), dtype=bool) if inside is None else inside
    if not select.special and frame.ids:
        keep = keep & ~np.isin(ids, list(frame.ids))
    return keep


def _pieces(
    ids: NDArray[np.int32],
    keep: NDArray[np.bool_],
    document: int,
    max_length: int,
    room: int,
    frame: SpecialTokens,
    select: Selection,
) -> Iterator[Tokens]:
    before, after = np.array(frame.before, dtype=np.int32), np.array(frame.after, dtype=np.int32)
    special = select.special and select.inside is None
    for start in range(0, len(ids), room):
        stop = min(start + room, len(ids))
        tail = after if stop == len(ids) else after[:0]
        whole = np.concatenate([before, ids[start:stop], tail])
        counted = np.concatenate([np.full(len(before), special), keep[start:stop], np.full(len(tail), special)])
        counted[: select.skip_first] = False
        yield Tokens(whole, None if counted.all() else counted, document, start)


def shortened(piece: Tokens, tokens: int) -> Tokens:
    """The piece up to and with its `tokens`-th token that counts; the whole piece if it has no more than that."""
    if piece.counted <= tokens:
        return piece
    if piece.keep is None:
        return Tokens(piece.ids[:tokens], None, piece.document, piece.start)
    last = int(np.flatnonzero(piece.keep)[tokens - 1]) + 1
    return Tokens(piece.ids[:last], piece.keep[:last], piece.document, piece.start)


def fitting_batch(device: torch.device | str) -> int:
    """Tokens a batch that suit a device, where nobody asked for a number."""
    return _FITTING.get(torch.device(device).type, _LARGE)


def batches(
    pieces: Iterable[Tokens], *, token_budget: int = 4096, pad_id: int = 0, side: str = "right"
) -> Iterator[Batch]:
    """Batches of pieces of like length, longest first, with at most `token_budget` positions (at least one sequence).

    The order depends on lengths, documents and starts only. Pieces are held in memory: give a bounded run of them.
    """
    if token_budget < 1:
        raise InputError(f"a token budget of {token_budget} given; it must be at least 1")
    ordered = sorted(pieces, key=lambda piece: (-len(piece.ids), piece.document, piece.start))
    start = 0
    while start < len(ordered):
        rows = max(1, token_budget // max(1, len(ordered[start].ids)))
        yield padded(ordered[start : start + rows], pad_id=pad_id, side=side)
        start += rows


def padded(pieces: Sequence[Tokens], *, pad_id: int = 0, side: str = "right") -> Batch:
    """One batch of the pieces in the order given, padded on one side to the longest."""
    if side not in ("left", "right"):
        raise InputError(f"side {side!r} given; padding goes left or right")
    shape = (len(pieces), max(len(piece.ids) for piece in pieces))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    attention = np.zeros(shape, dtype=np.int64)
    keep = np.zeros(shape, dtype=bool)
    start = np.empty(len(pieces), dtype=np.int64)
    for row, piece in enumerate(pieces):
        length = len(piece.ids)
        first = shape[1] - length if side == "left" else 0
        input_ids[row, first : first + length] = piece.ids
        attention[row, first : first + length] = 1
        keep[row, first : first + length] = True if piece.keep is None else piece.keep
        start[row] = piece.start - first
    document = np.array([piece.document for piece in pieces], dtype=np.int64)
    return Batch(*map(torch.from_numpy, (input_ids, attention, keep, document, start)))


class Budget:
    """A token budget that shrinks when a device runs out of memory, and remembers."""

    def __init__(self, tokens: int = 4096) -> None:
        self.tokens = tokens

    def run(self, function: Callable[[Batch], T], batch: Batch) -> list[T]:
        """Results of `function` on the batch, or on parts of it that fit; `function` must not keep what a failed call began.

        Raises Error if even one sequence doesn't fit.
        """
        if len(batch) > 1 and batch.input_ids.numel() > self.tokens:
            first, second = batch.halves()
            return self.run(function, first) + self.run(function, second)
        try:
            return [function(batch)]
        except RuntimeError as problem:
            if not is_out_of_memory(problem):
                raise
            if len(batch) == 1:
                raise Error(
                    f"out of memory with a single sequence of {batch.input_ids.shape[1]} tokens; give a smaller max_length"
                ) from problem
        self.shrink(int(batch.input_ids.numel()))
        return self.run(function, batch)

    def shrink(self, used: int | None = None) -> None:
        """Halve the budget, to below what was just too much."""
        self.tokens = max(1, min(self.tokens, used or self.tokens) // 2)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an error says that a device (or the machine) has no memory left."""
    return isinstance(problem, torch.OutOfMemoryError) or (
        isinstance(problem, RuntimeError)
        and ("out of memory" in str(problem) or "can't allocate memory" in str(problem))
    )
