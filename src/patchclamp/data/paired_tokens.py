"""The token ids of paired tasks: aligned, padded on the right, with the places of their spots; and what can't be aligned."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from patchclamp.core.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Span = tuple[int, int]
END = "END"  # the last token of every prompt: always known, never given
SHIFTED = re.compile(r"(?P<name>.+?)(?P<shift>[+-]\d+)$")


@dataclass(frozen=True, eq=False)
class Pairs:
    """The token ids of a paired task: n pairs, padded on the right to L.

    clean, corrupt: (n, L) int64. mask: (n, L) bool, True at tokens. answer, wrong: (n,) int64, token ids. end: (n,) int64,
    index of the last token. spots: name -> (n,) int64 index of the spot's last token, -1 where an item has none; END too.
    lists: name -> (n, m) int64, filled up with -1. numbers: (n,) int64, the items' numbers in the task.
    """

    clean: Tensor
    corrupt: Tensor
    mask: Tensor
    answer: Tensor
    wrong: Tensor
    end: Tensor
    spots: Mapping[str, Tensor]
    lists: Mapping[str, Tensor]
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def changed(self) -> Tensor:
        """(n, L) bool: the positions at which clean and corrupted prompt have different tokens."""
        return (self.clean != self.corrupt) & self.mask

    def at(self, name: str) -> Tensor:
        """(n,) int64 token index of a spot, -1 where an item lacks it; "S1+1" is one token after "S1", "END" the last.

        InputError for a spot that no item has, or a shift that leaves the prompt (it names the item).
        """
        if name in self.spots:
            return self.spots[name]
        match = SHIFTED.fullmatch(name)
        if match is None or match["name"] not in self.spots:
            known = ", ".join([*self.spots, *self.lists])
            raise InputError(f"no spot is called {name!r}; spots are {known}, and each with +k or -k tokens")
        base = self.spots[match["name"]]
        return _shifted(base, int(match["shift"]), self.end, name, self.numbers)

    def rows(self, index: Any) -> Pairs:
        """The pairs of an index (a slice, a list of numbers, a mask), padding that all of them share cut off."""
        import torch

        picked = {
            name: getattr(self, name)[index]
            for name in ("clean", "corrupt", "mask", "answer", "wrong", "end", "numbers")
        }
        width = int(torch.as_tensor(picked["end"]).max()) + 1 if len(picked["end"]) else 0
        for name in ("clean", "corrupt", "mask"):
            picked[name] = picked[name][:, :width]
        spots = {name: values[index] for name, values in self.spots.items()}
        return Pairs(**picked, spots=spots, lists={name: values[index] for name, values in self.lists.items()})

    def batches(self, size: int) -> Iterator[Pairs]:
        """At most `size` pairs at a time, in order."""
        if size < 1:
            raise InputError(f"batches of {size} asked for; at least 1 pair is needed")
        for start in range(0, len(self), size):
            yield self.rows(slice(start, start + size))

    def to(self, device: torch.device | str) -> Pairs:
        """The same on another device."""
        plain = {
            name: getattr(self, name).to(device)
            for name in ("clean", "corrupt", "mask", "answer", "wrong", "end", "numbers")
        }
        moved = [{name: values.to(device) for name, values in table.items()} for table in (self.spots, self.lists)]
        return Pairs(**plain, spots=moved[0], lists=moved[1])


class Paired(Protocol):
    """What is asked of a `PairedTask`."""

    @property
    def name(self) -> str: ...
    @property
    def items(self) -> Sequence[Any]: ...
    @property
    def spots(self) -> Sequence[str]: ...
    @property
    def lists(self) -> Sequence[str]: ...


def encoded(task: Paired, tokenizer: Any, device: Any, special: bool) -> Pairs:
    """What `PairedTask.encode` gives."""
    import torch

    from patchclamp.data.batches import SpecialTokens

    before = SpecialTokens.of(tokenizer).before if special else ()
    clean, offsets = _ids(tokenizer, [item.clean for item in task.items], before)
    corrupt, _ = _ids(tokenizer, [item.corrupt for item in task.items], before)
    answers = {
        name: _answers(tokenizer, task, clean if name == "answer" else corrupt, before, name)
        for name in ("answer", "wrong")
    }
    for number, item in enumerate(task.items):
        if len(clean[number]) != len(corrupt[number]) or not clean[number]:
            raise InputError(
                f"item {number} of {task.name!r}: the clean prompt has {len(clean[number])} tokens, the corrupted one "
                f"{len(corrupt[number])}; they must have as many, at least one: {_short(item.clean)}"
            )
        if answers["answer"][number] == answers["wrong"][number]:
            raise InputError(f"item {number} of {task.name!r}: {item.answer!r} and {item.wrong!r} are the same token")
    pad = getattr(tokenizer, "pad_token_id", None)
    pad = getattr(tokenizer, "eos_token_id", None) if pad is None else pad
    width = max(map(len, clean))
    sides = []
    for side in (clean, corrupt):
        table = torch.full((len(side), width), int(pad or 0))
        for number, ids in enumerate(side):
            table[number, : len(ids)] = torch.tensor(ids)
        sides.append(table)
    end = torch.tensor([len(ids) - 1 for ids in clean])
    mask = torch.arange(width)[None, :] <= end[:, None]
    spots, lists = _places(task, offsets, end)
    found = Pairs(
        sides[0], sides[1], mask, torch.tensor(answers["answer"]), torch.tensor(answers["wrong"]), end,
        {END: end, **spots}, lists, torch.arange(len(task.items)),
    )  # fmt: skip
    return found if device is None else found.to(device)


def _ids(tokenizer: Any, texts: list[str], before: tuple[int, ...]) -> tuple[list[list[int]], list[list[Span]]]:
    """Ids of texts behind the special tokens, and the characters of each token ((0, 0) for a special one)."""
    fast = bool(getattr(tokenizer, "is_fast", False))
    extra = {"return_offsets_mapping": True} if fast else {}
    found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False, **extra)
    ids = [[*before, *row] for row in found["input_ids"]]
    if fast:
        offsets = [[(0, 0)] * len(before) + [(int(a), int(b)) for a, b in row] for row in found["offset_mapping"]]
    else:
        offsets = []
    return ids, offsets


def _answers(
    tokenizer: Any, task: Paired, contexts: Sequence[Sequence[int]], before: tuple[int, ...], name: str
) -> list[int]:
    """The one token that each answer is, after its prompt where the two don't merge, else by itself."""
    prompts = [item.clean if name == "answer" else item.corrupt for item in task.items]
    texts = [getattr(item, name) for item in task.items]
    whole, _ = _ids(tokenizer, [prompt + text for prompt, text in zip(prompts, texts, strict=True)], before)
    alone, _ = _ids(tokenizer, texts, ())
    unknown = getattr(tokenizer, "unk_token_id", None)
    found = []
    for number, (context, ids, apart) in enumerate(zip(contexts, whole, alone, strict=True)):
        tokens = ids[len(context) :] if list(ids[: len(context)]) == list(context) else apart
        tokens = tokens or apart
        if len(tokens) != 1 or tokens[0] == unknown:
            raise InputError(
                f"item {number} of {task.name!r}: {texts[number]!r} is {_count(tokens, unknown)} of this tokenizer; an answer "
                "must be one token that it knows"
            )
        found.append(int(tokens[0]))
    return found


def _places(task: Paired, offsets: list[list[Span]], end: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Token indices of all spots and lists."""
    import torch

    if not offsets and (task.spots or task.lists):
        raise InputError("finding spots needs a fast tokenizer, which knows character offsets; this one is slow")
    numbers = torch.arange(len(task.items))
    spots: dict[str, Tensor] = {}
    for name in task.spots:
        match = SHIFTED.fullmatch(name)
        rows = [
            _token(task, number, offsets[number], item.spots.get(name), name) for number, item in enumerate(task.items)
        ]
        spots[name] = torch.tensor(rows)
        if match is not None:
            spots[name] = _shifted(spots[name], int(match["shift"]), end, name, numbers)
    lists: dict[str, Tensor] = {}
    for name in task.lists:
        found = [
            [_token(task, number, offsets[number], span, name) for span in item.lists.get(name, ())]
            for number, item in enumerate(task.items)
        ]
        width = max(1, *(len(row) for row in found)) if len(found) > 1 else max(1, len(found[0]))
        lists[name] = torch.tensor([row + [-1] * (width - len(row)) for row in found])
    return spots, lists


def _token(task: Paired, number: int, offsets: list[Span], span: Span | None, name: str) -> int:
    """Index of the last token that shares a character with a span; -1 for no span."""
    if span is None:
        return -1
    for index in range(len(offsets) - 1, -1, -1):
        start, stop = offsets[index]
        if start < span[1] and stop > span[0]:
            return index
    raise InputError(f"item {number} of {task.name!r}: no token touches the spot {name!r}, characters {span}")


def _shifted(base: Tensor, shift: int, end: Tensor, name: str, numbers: Tensor) -> Tensor:
    moved = (base + shift).masked_fill(base < 0, -1)
    outside = ((moved < 0) | (moved > end)) & (base >= 0)
    if bool(outside.any()):
        row = int(outside.nonzero()[0, 0])
        raise InputError(
            f"item {int(numbers[row])}: the spot {name!r} would stand at token {int(base[row]) + shift}, but the prompt has "
            f"tokens 0 to {int(end[row])}"
        )
    return moved


def _count(tokens: Sequence[int], unknown: int | None) -> str:
    if len(tokens) == 1 and tokens[0] == unknown:
        return "the unknown token"
    return f"{len(tokens)} tokens"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"...{text[-57:]}")
