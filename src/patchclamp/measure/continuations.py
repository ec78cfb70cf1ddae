"""A prompt and what may follow it, as token ids: `continuations(tokenizer, pairs, max_length=...)`.

Where the prompt's ids are a prefix of the ids of prompt and continuation written together, the continuation is the rest;
where they are not (a token would straddle the place where the answer starts), the two are tokenized apart. Special tokens
stand before the prompt as the tokenizer puts them, once, and never after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.batches import SpecialTokens


@dataclass(frozen=True)
class Continuation:
    """context: ids that are read, at least one. tokens: ids that are scored, at least one."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]

    def first(self, k: int | None) -> Continuation:
        """Only the first k tokens (None: all)."""
        return self if k is None else Continuation(self.context, self.tokens[:k])


def continuations(tokenizer: Any, pairs: Sequence[tuple[str, str]], *, max_length: int) -> list[Continuation]:
    """One Continuation per (prompt, text).

    An empty prompt is read as BOS, or EOS where a tokenizer has no BOS. Raises InputError for a text without tokens, a
    pair of more than max_length tokens, and an empty prompt where the tokenizer has neither BOS nor EOS.
    """
    frame = SpecialTokens.of(tokenizer)
    prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
    contexts = dict(zip(prompts, _encoded(tokenizer, prompts), strict=True))
    whole = _encoded(tokenizer, [prompt + text for prompt, text in pairs])
    rest = [_after(contexts[prompt], ids) for (prompt, _), ids in zip(pairs, whole, strict=True)]
    apart = list(dict.fromkeys(text for (_, text), tokens in zip(pairs, rest, strict=True) if not tokens))
    alone = dict(zip(apart, _encoded(tokenizer, apart), strict=True))
    found = []
    for (prompt, text), tokens in zip(pairs, rest, strict=True):
        tokens = tokens or alone[text]
        if not tokens:
            raise InputError(f"the answer {text!r} has no tokens")
        context = _framed(tokenizer, frame, contexts[prompt])
        if len(context) + len(tokens) > max_length:
            raise InputError(
                f"the prompt {_short(prompt)} with {_short(text)} has {len(context) + len(tokens)} tokens; this model "
                f"takes {max_length} at once: give fewer shots or shorter items"
            )
        found.append(Continuation(context, tokens))
    return found


def prompt_ids(tokenizer: Any, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """Ids of prompts as `continuations` reads them."""
    frame = SpecialTokens.of(tokenizer)
    return [_framed(tokenizer, frame, ids) for ids in _encoded(tokenizer, prompts)]


def _encoded(tokenizer: Any, texts: Sequence[str]) -> list[tuple[int, ...]]:
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [tuple(ids) for ids in found["input_ids"]]


def _after(prompt: tuple[int, ...], whole: tuple[int, ...]) -> tuple[int, ...]:
    """What follows the prompt in the ids of both; empty if the prompt is no prefix of them."""
    return whole[len(prompt) :] if whole[: len(prompt)] == prompt else ()


def _framed(tokenizer: Any, frame: SpecialTokens, ids: tuple[int, ...]) -> tuple[int, ...]:
    """With the special tokens that stand before a text; a chat template has put them there already."""
    if frame.before and ids[: len(frame.before)] != frame.before:
        ids = frame.before + ids
    if ids:
        return ids
    for name in ("bos_token_id", "eos_token_id"):
        start = getattr(tokenizer, name, None)
        if start is not None:
            return (int(start),)
    raise InputError("an empty prompt can't be read: this tokenizer has neither BOS nor EOS; give every item a prompt")


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"...{text[-37:]}")
