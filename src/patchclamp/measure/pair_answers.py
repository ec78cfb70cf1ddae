"""How a model answers the prompts of minimal pairs: logit difference, right among the candidates, right among all tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.intervene.path_runs import Readout, Recorded

if TYPE_CHECKING:
    from patchclamp.data.paired import PairedTask, Pairs
    from patchclamp.models.load import LanguageModel


@dataclass(frozen=True, eq=False)
class PairAnswers:
    """Answers to n prompts. difference: (n,) float64, logit of the answer minus logit of the wrong one. among, first: (n,) bool,
    whether the answer has the highest logit of the candidates, of all tokens; ties go against it."""

    difference: NDArray[np.float64]
    among: NDArray[np.bool_]
    first: NDArray[np.bool_]


def pair_answers(
    model: LanguageModel, pairs: Pairs, candidates: Tensor | None = None, *, side: str = "clean"
) -> PairAnswers:
    """Answers at the last token of one side's prompts, under whatever changes are active. One forward pass: give batches.

    candidates: (n, m) token ids that compete, filled up with -1; by default answer and wrong. side: "clean" or "corrupt" (then
    the wrong one is the answer that is asked for, and the difference keeps its sign: answer - wrong of the clean side).
    """
    if side not in ("clean", "corrupt"):
        raise InputError(f"side={side!r} given; it is clean or corrupt")
    readout = Readout(model)
    seq = pairs.clean.shape[1]
    rows = torch.arange(len(pairs), device=pairs.end.device) * seq + pairs.end
    states = Recorded(model, getattr(pairs, side), pairs.mask, [readout.tap]).values[readout.tap]
    states = states[rows.to(states.device)]
    asked = (pairs.answer if side == "clean" else pairs.wrong).to(states.device)
    several = torch.stack([pairs.answer, pairs.wrong], 1) if candidates is None else candidates
    several = several.to(states.device)
    logits = torch.cat([readout.every(part) for part in states.split(256)])  # (n, vocabulary)
    own = logits.gather(1, asked[:, None])
    rival = logits.gather(1, several.clamp(min=0)).masked_fill((several < 0) | (several == asked[:, None]), -torch.inf)
    best = logits.scatter(1, asked[:, None], -torch.inf).amax(1)
    return PairAnswers(
        readout.difference(states, pairs).numpy(),
        (own > rival).all(1).cpu().numpy(),
        (own[:, 0] > best).cpu().numpy(),
    )


def candidate_tokens(task: PairedTask, pairs: Pairs, listed: str, tokenizer: Any) -> Tensor:
    """(n, m) int64 token ids of the words of a list of spots, as they are answered; -1 fills up.

    Answers may be spelled otherwise than the words in the prompts (" Red" beside "a red cup"): a word takes the token of an
    item that it answers, else its own, with the space and the capital of the item's answer. InputError, with the item's
    number, for a word that is not one token.
    """
    known: dict[str, int] = {}
    for number, item in enumerate(task):
        known[item.answer.strip().lower()] = int(pairs.answer[number])
        known[item.wrong.strip().lower()] = int(pairs.wrong[number])
    rows = []
    for number, item in enumerate(task):
        words = [item.clean[start:stop].strip() for start, stop in item.lists.get(listed, ())]
        if not words:
            raise InputError(
                f"item {number} of {task.name!r} has no list {listed!r}; lists are {', '.join(task.lists)}"
            )
        for word in words:
            if word.lower() not in known:
                known[word.lower()] = _token(word, item.answer, tokenizer, f"item {number} of {task.name!r}")
        rows.append(sorted({known[word.lower()] for word in words}))
    width = max(map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def _token(word: str, like: str, tokenizer: Any, where: str) -> int:
    """The one token of a word that is written like an answer."""
    stem = like.strip()
    text = like[: len(like) - len(like.lstrip())] + (word[:1].upper() + word[1:] if stem[:1].isupper() else word)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if len(ids) != 1:
        raise InputError(f"{where}: the candidate {text!r} is {len(ids)} tokens of this tokenizer; it must be one")
    return int(ids[0])
