"""Filling frames with words while keeping where each went, and which words a tokenizer takes whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from patchclamp.core.errors import InputError

Span = tuple[int, int]


@dataclass(frozen=True)
class Filled:
    """A text and the characters (start, stop) at which each slot's words stand, in order."""

    text: str
    spans: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)

    def __add__(self, other: Filled) -> Filled:
        spans = {name: list(found) for name, found in self.spans.items()}
        for name, found in other.spans.items():
            spans.setdefault(name, []).extend((a + len(self.text), b + len(self.text)) for a, b in found)
        return Filled(self.text + other.text, {name: tuple(found) for name, found in spans.items()})


def filled(frame: str, values: Mapping[str, str | Filled]) -> Filled:
    """The frame with its {slots} filled; a value that is itself filled keeps its own slots."""
    found = Filled("")
    for literal, slot, _, _ in Formatter().parse(frame):
        found += Filled(literal)
        if slot is not None:
            value = values[slot]
            found += value if isinstance(value, Filled) else Filled(value, {slot: ((0, len(value)),)})
    return found


def listed(parts: Sequence[Filled], comma: str, last: str) -> Filled:
    """Several parts in a row: comma between them, `last` before the last one."""
    found = parts[0]
    for number, part in enumerate(parts[1:], start=2):
        found += Filled(last if number == len(parts) else comma)
        found += part
    return found


def whole(tokenizer: Any, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> list[bool]:
    """Per text: is every span (with the space before it) exactly one token that the tokenizer knows?

    tokenizer None: there is none to please, all are. InputError for a tokenizer that knows no character offsets.
    """
    if not texts or tokenizer is None:
        return [True] * len(texts)
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("choosing words needs a fast tokenizer, which knows character offsets; this one is slow")
    found = tokenizer(
        list(texts), add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
    )
    unknown = getattr(tokenizer, "unk_token_id", None)
    return [
        all(_one(text, ids, offsets, span, unknown) for span in wanted)
        for text, wanted, ids, offsets in zip(texts, spans, found["input_ids"], found["offset_mapping"], strict=True)
    ]


def _one(text: str, ids: Sequence[int], offsets: Sequence[Span], span: Span, unknown: int | None) -> bool:
    start = span[0] - 1 if span[0] and text[span[0] - 1] == " " else span[0]
    touching = [number for number, (a, b) in enumerate(offsets) if a < span[1] and b > start]
    if len(touching) != 1 or ids[touching[0]] == unknown:
        return False
    a, b = offsets[touching[0]]
    return text[a:b].strip() == text[span[0] : span[1]]
