"""Passages around tokens: documents are read again through the model, and the values of some units are kept part by part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data.batches import (
    Budget,
    Selection,
    SpecialTokens,
    Tokens,
    batches,
    encode,
    fitting_batch,
    overlapping,
)
from patchclamp.data.corpora import Corpus
from patchclamp.data.documents import Document
from patchclamp.models.hooks import Seen, Tap, observe, run
from patchclamp.models.units import Unit
from patchclamp.read.exemplar import Exemplar

_AHEAD = 64  # documents encoded before they are packed into batches


@dataclass(frozen=True, eq=False)
class Wanted:
    """A passage to cut out and the units whose values to keep.

    position: of the token to centre on, as recordings count (BOS of the document included); None: the token at `share` of the
    document's text. columns: (m,) int64, which of the reader's units.
    """

    label: str
    document: int
    position: int | None
    columns: NDArray[np.int64]
    share: float = 0.0


class PassageReader:
    """Reads passages of a text through a model.

    units: whose values are kept; a `Wanted` names them by their place in this list. max_length, select: as they were when the
    text was recorded, so that positions mean the same. window: tokens in a passage, at most.
    """

    def __init__(
        self,
        model: Any,
        text: Corpus,
        units: Sequence[Unit],
        *,
        max_length: int,
        select: Selection,
        window: int,
        batch_tokens: int | None = None,
    ) -> None:
        if window < 1:
            raise InputError(f"window={window}; a passage has at least 1 token")
        self.model, self.text, self.window = model, text, window
        self._max_length, self._select = max_length, select
        special = SpecialTokens.of(model.tokenizer)
        self._before, self._tail = len(special.before), special.after
        self._watch = _Watch(model, units)
        self._budget = Budget(batch_tokens or fitting_batch(model.device))

    def read(self, wanted: Sequence[Wanted]) -> Iterator[tuple[int, Exemplar, NDArray[np.float32]]]:
        """(place in `wanted`, the passage with values 0, values (m, n_parts) float32) in the order of the text.

        A passage without a token of text is left out. MismatchError if the text has no such document or position.
        """
        by_label: dict[str, dict[int, list[int]]] = {}
        for number, one in enumerate(wanted):
            by_label.setdefault(one.label, {}).setdefault(one.document, []).append(number)
        for label, documents in by_label.items():
            chunk: list[_Piece] = []
            for number, document in self._documents(label, documents):
                chunk += self._pieces(number, document, documents[number], wanted)
                if len(chunk) >= _AHEAD:
                    yield from self._values(label, chunk, wanted)
                    chunk = []
            yield from self._values(label, chunk, wanted)

    def _documents(self, label: str, wanted: Mapping[int, Any]) -> Iterator[tuple[int, Document]]:
        left, last = set(wanted), max(wanted)
        for number, document in enumerate(self.text.documents(label)):
            if number in left:
                left.discard(number)
                yield number, document
            if number >= last:
                break
        if left:
            raise MismatchError(
                f"the text has no document {min(left)} of label {label!r}; give the text that was recorded"
            )

    def _pieces(
        self, number: int, document: Document, mine: Sequence[int], wanted: Sequence[Wanted]
    ) -> Iterator[_Piece]:
        pieces = list(
            encode(self.model.tokenizer, [document], max_length=self._max_length, select=self._select, first=number)
        )
        total = sum(self._text_tokens(piece) for piece in pieces)
        if not total:
            return
        parts, tags = parts_of(self.model.tokenizer, document)
        if len(parts) != total:
            raise InputError("this tokenizer gives a text other tokens when asked for their places; it isn't supported")
        placed: dict[int, list[tuple[int, int]]] = {}
        for each in mine:
            position = wanted[each].position
            token = int(wanted[each].share * total) if position is None else position - self._before
            at = next(
                (i for i, piece in enumerate(pieces) if 0 <= token - piece.start < self._text_tokens(piece)), None
            )
            if at is None:
                raise MismatchError(
                    f"document {number} of label {wanted[each].label!r} has no token {position}; "
                    "give the text that was recorded"
                )
            placed.setdefault(at, []).append((each, token - pieces[at].start))
        for at, cuts in placed.items():
            piece = pieces[at]
            span = slice(piece.start, piece.start + self._text_tokens(piece))
            yield _Piece(piece, parts[span], {name: where[span] for name, where in tags.items()}, cuts)

    def _text_tokens(self, piece: Tokens) -> int:
        """Tokens of a piece without the special ones around; only a document's last piece has those at the end."""
        n = len(piece.ids) - self._before
        behind = len(self._tail)
        ends = bool(behind) and n >= behind and tuple(np.asarray(piece.ids)[-behind:].tolist()) == self._tail
        return n - behind if ends else n

    def _values(
        self, label: str, pieces: Sequence[_Piece], wanted: Sequence[Wanted]
    ) -> Iterator[tuple[int, Exemplar, NDArray[np.float32]]]:
        known = {(piece.tokens.document, piece.tokens.start): piece for piece in pieces}
        stream = batches((piece.tokens for piece in pieces), token_budget=self._budget.tokens, pad_id=self.model.pad_id)
        for batch in stream:
            for part, values in self._budget.run(lambda one: (one, self._watch.run(one)), batch):
                for row, (document, start) in enumerate(zip(part.document.tolist(), part.start.tolist(), strict=True)):
                    piece = known[document, start]
                    for each, token in piece.cuts:
                        yield each, *self._cut(label, piece, token, values[row], wanted[each].columns)

    def _cut(
        self, label: str, piece: _Piece, token: int, values: Tensor, columns: NDArray[np.int64]
    ) -> tuple[Exemplar, NDArray[np.float32]]:
        """The window around a token of the piece, moved inwards at its ends."""
        n = len(piece.parts)
        low = max(0, min(token - self.window // 2, n - self.window))
        high = min(n, low + self.window)
        own = values[self._before + low : self._before + high, torch.from_numpy(columns)].T.contiguous().numpy()
        tags = {name: where[low:high] for name, where in piece.tags.items() if where[low:high].any()}
        zeros = np.zeros(high - low, dtype=np.float32)
        document, start = piece.tokens.document, piece.tokens.start + low
        return Exemplar(tuple(piece.parts[low:high]), zeros, label, document, start, tags), own


@dataclass(frozen=True, eq=False)
class _Piece:
    """A piece of a document; parts and tags of its text tokens; cuts: (place in wanted, token of the piece)."""

    tokens: Tokens
    parts: Sequence[str]
    tags: Mapping[str, NDArray[np.bool_]]
    cuts: list[tuple[int, int]]


class _Watch:
    """An observer that keeps the values of some units: (B, S, units) float32 on the CPU."""

    def __init__(self, model: Any, units: Sequence[Unit]) -> None:
        self._model, self._count = model, len(units)
        layouts = model.layouts
        found: dict[Tap, list[tuple[int, int]]] = {}
        for column, unit in enumerate(units):
            if unit.site not in layouts:
                raise InputError(f"{unit}: this model has no site {unit.site!r}; it has {', '.join(layouts)}")
            inner = layouts[unit.site].position(unit) - layouts[unit.site].offsets[unit.layer]
            found.setdefault((unit.site, unit.layer), []).append((column, inner))
        self._taps: dict[Tap, Tensor] = {tap: torch.tensor(pairs).T for tap, pairs in found.items()}
        self._kept = torch.zeros(0)

    def run(self, batch: Any) -> Tensor:
        placed = batch.to(self._model.device)
        size = tuple(batch.input_ids.shape)
        self._kept = torch.zeros(size[0] * size[1], self._count)
        with observe(self._model, list(self._taps), self):
            run(self._model, placed.input_ids, placed.attention_mask)
        return self._kept.view(*size, self._count)

    def __call__(self, one: Seen) -> None:
        columns, inner = self._taps[one.site, one.layer]
        mine = (inner >= one.offset) & (inner < one.offset + one.values.shape[1])
        if not bool(mine.any()):
            return
        index = (inner[mine] - one.offset).to(one.values.device)
        new = one.values.detach().index_select(1, index).float().cpu()
        if one.rows is None:
            self._kept[:, columns[mine]] = new
        else:
            self._kept[one.rows.cpu()[:, None], columns[mine][None]] = new


def parts_of(tokenizer: Any, document: Document) -> tuple[list[str], dict[str, NDArray[np.bool_]]]:
    """The text of every token, which joined give the document's text; and which tokens each of its spans lies on.

    Tokens that are bytes of one character (rare scripts, emoji): the last of them has the character, the others have "".
    A tokenizer that knows no offsets gives decoded tokens and no spans.
    """
    if not getattr(tokenizer, "is_fast", False):
        ids = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        return [tokenizer.decode([one]) for one in ids], {}
    found = tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    offsets = found["offset_mapping"]
    parts, at = [], 0
    for number, (_, end) in enumerate(offsets):
        following = offsets[number + 1] if number + 1 < len(offsets) else None
        shared = following is not None and following[1] == end and following[0] < end
        stop = at if shared else max(at, end)
        parts.append(document.text[at:stop])
        at = stop
    if parts:
        parts[-1] += document.text[at:]
    tags = {name: overlapping(offsets, spans) for name, spans in document.spans.items()}
    return parts, tags
