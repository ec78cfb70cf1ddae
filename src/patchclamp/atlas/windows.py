"""The text around a token: where exemplars lie in their documents, cut out with the token's place in the cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.atlas.writer import Window
from patchclamp.data.documents import Document

CHARACTERS = 120  # on either side of the token
_TOKENS = 32  # on either side, for tokenizers that know no character offsets


def windows(
    documents: Iterable[Document], tokenizer: Any, wanted: NDArray[np.int64], *, characters: int = CHARACTERS
) -> Iterator[Window]:
    """The text around tokens: (document, position, text, token_start, token_end) for each.

    wanted: (n, 2) int64, number of the document and position of the token in it as recorded (special tokens in front
    included), sorted. Without a tokenizer the text is the document's beginning and the token's place is None.
    """
    from patchclamp.data.batches import SpecialTokens  # brings torch, which reading an atlas must not need

    before = len(SpecialTokens.of(tokenizer).before) if tokenizer is not None else 0
    at = 0
    for number, document in enumerate(documents):
        stop = at + int(np.searchsorted(wanted[at:, 0], number, side="right"))
        if stop > at:
            positions = wanted[at:stop, 1].tolist()
            for position, cut in zip(
                positions, _cuts(document.text, tokenizer, positions, before, characters), strict=True
            ):
                yield (number, position, *cut)
        at = stop
        if at == len(wanted):
            return


def _cuts(
    text: str, tokenizer: Any, positions: list[int], before: int, characters: int
) -> Iterator[tuple[str, int | None, int | None]]:
    if tokenizer is None:
        for _ in positions:
            yield text[: 2 * characters], None, None
        return
    if not getattr(tokenizer, "is_fast", False):
        yield from _decoded(text, tokenizer, positions, before)
        return
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    for position in positions:
        start, end = _place(position - before, offsets, len(text))
        left = max(0, start - characters)
        yield text[left : end + characters], start - left, end - left


def _place(token: int, offsets: list[tuple[int, int]], length: int) -> tuple[int, int]:
    """Characters of the so-many-th token of the text; special tokens before and behind it have an empty place there."""
    if token < 0:
        return 0, 0
    return tuple(offsets[token]) if token < len(offsets) else (length, length)  # type: ignore[return-value]


def _decoded(text: str, tokenizer: Any, positions: list[int], before: int) -> Iterator[tuple[str, int, int]]:
    """The same from the decoded tokens around: close to the text, not always equal to it."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    for position in positions:
        token = position - before
        spans = (
            ids[max(0, token - _TOKENS) : max(0, token)],
            ids[max(0, token) : token + 1],
            ids[max(0, token + 1) :][:_TOKENS],
        )
        left, own, right = (tokenizer.decode(span) for span in spans)
        yield left + own + right, len(left), len(left) + len(own)
