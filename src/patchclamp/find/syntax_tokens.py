"""Which tokens make up which unit of a stream, by character offsets; any fast tokenizer, any script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.data.batches import SpecialTokens
from patchclamp.find.syntax_streams import Stream


@dataclass(frozen=True)
class Mapped:
    """Token ids of a stream and its pairs of token and unit.

    ids: (tokens,) int32. token, unit: (pairs,) int64; a token that overlaps two units is in both. weight: (pairs,)
    float32, 1 / tokens of the unit, so that a weighted sum is the unit's mean. overlapping: tokens in several units.
    """

    ids: NDArray[np.int32]
    token: NDArray[np.int64]
    unit: NDArray[np.int64]
    weight: NDArray[np.float32]
    overlapping: int


def mapped(tokenizer: Any, streams: Sequence[Stream], *, max_length: int, special: bool = False) -> list[Mapped]:
    """Tokenize streams and map their tokens to units.

    special: put the tokenizer's first special tokens (BOS) in front; they belong to no unit. Raises InputError for a
    tokenizer without offsets, a stream longer than `max_length` tokens, and a unit without a token.
    """
    if tokenizer is None:
        raise InputError("this model has no tokenizer, so it can't read text; load it with tokenizer=...")
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("tagging units needs a fast tokenizer, which knows character offsets")
    before = np.array(SpecialTokens.of(tokenizer).before if special else (), dtype=np.int32)
    found = tokenizer(
        [stream.text for stream in streams],
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    made = []
    for stream, ids, offsets in zip(streams, found["input_ids"], found["offset_mapping"], strict=True):
        whole = np.concatenate([before, np.asarray(ids, dtype=np.int32)])
        if len(whole) > max_length:
            size = len(np.unique(stream.sentence))
            raise InputError(
                f"a stream of {size} sentences has {len(whole)} tokens, but this model reads {max_length}; "
                f"give per_stream={max(1, int(0.9 * size * max_length / len(whole)))} or fewer"
            )
        made.append(_mapped(stream, whole, np.asarray(offsets, dtype=np.int64).reshape(-1, 2), len(before)))
    return made


def _mapped(stream: Stream, ids: NDArray[np.int32], offsets: NDArray[np.int64], shift: int) -> Mapped:
    start, stop = offsets.T
    first = np.searchsorted(stream.spans[:, 1], start, side="right")  # first unit that ends after the token begins
    last = np.searchsorted(stream.spans[:, 0], stop, side="left")  # first unit that begins where the token has ended
    count = np.where(stop > start, np.maximum(last - first, 0), 0)
    token = np.repeat(np.arange(len(offsets)), count)
    within = np.arange(len(token)) - np.repeat(np.cumsum(count) - count, count)
    unit = first[token] + within
    per_unit = np.bincount(unit, minlength=len(stream.spans))
    if not per_unit.all():
        at = int(np.flatnonzero(per_unit == 0)[0])
        left, right = stream.spans[at]
        raise InputError(f"the unit {stream.text[left:right]!r} has no token of its own: the tokenizer drops it")
    weight = (1 / per_unit[unit]).astype(np.float32)
    return Mapped(ids, token + shift, unit, weight, int((count > 1).sum()))
