"""States that are about to write a concept, and states that are not, collected from what a model itself writes (EigenShift).

Shaik et al. 2025 (arXiv 2509.16660), steps 7 and 8: prompts are continued (greedily, 20 tokens), the continuations judged,
and the state that enters the output matrix is kept at the step that writes the first flagged token (Phi) and for
continuations that are not flagged (Psi).

Differs from the paper and its code: the first flagged token is found by the characters that the judge marked, not by
looking for decoded pieces inside words; and Psi is taken at the same steps as Phi, for the paper's Psi, the end of a prompt,
differs from Phi by position as much as by concept (`matched=False` gives it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.data.tasks import Task
from patchclamp.intervene.output_head import states_at
from patchclamp.measure.concept_rate import task_of
from patchclamp.measure.concepts import Judge, verdicts
from patchclamp.measure.continuations import prompt_ids
from patchclamp.measure.generation import cut_at
from patchclamp.measure.sampling import sampled
from patchclamp.measure.task_scores import tokenizer_of

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


@dataclass(frozen=True, eq=False)
class ConceptStates:
    """What enters the output matrix before a concept is written, and elsewhere.

    phi: (n, d) float64, states that wrote the first flagged token. psi: (m, d), states of continuations that are not
    flagged. phi_steps, psi_steps: which new token each state wrote, 0 is the first. phi_tokens: what Phi's states wrote.
    flagged: share of all continuations that were. texts: {"prompt", "text", "flagged"} of every continuation.
    """

    phi: NDArray[np.float64]
    psi: NDArray[np.float64]
    phi_steps: NDArray[np.int64]
    psi_steps: NDArray[np.int64]
    phi_tokens: tuple[str, ...]
    flagged: float
    texts: tuple[dict[str, Any], ...]


def concept_states(
    model: LanguageModel,
    prompts: Task | Sequence[str],
    judge: Judge,
    *,
    samples: int | None = None,
    max_new_tokens: int = 20,
    top_p: float = 0.95,
    threshold: float = 0.5,
    stop: Sequence[str] = (),
    matched: bool = True,
    seed: int = 0,
    batch_tokens: int = 4096,
    quiet: bool = True,
) -> ConceptStates:
    """Continue prompts, judge the continuations, and keep the states that write the concept and those that don't.

    judge: see `measure.concepts`; it should mark spans (`Words` does): where a flagged text has none, all of it counts, so
    that its state is the one at the end of the prompt. stop: texts before the first of which a continuation ends. samples:
    continuations per prompt by nucleus sampling; None: one, greedily, as in the paper. matched: for every state of Phi one
    of an unflagged continuation at the same step, drawn by the seed, each as rarely as can be; otherwise one state per
    unflagged continuation, at its first step.

    InputError if nothing was flagged, or everything, or if no unflagged continuation is long enough.
    """
    task = task_of(prompts)
    tokenizer = tokenizer_of(model)
    rows = prompt_ids(tokenizer, [item.prompt for item in task])
    number = 1 if samples is None else samples
    new = sampled(
        model, rows, samples=number, max_new_tokens=max_new_tokens, top_p=top_p,
        temperature=0.0 if samples is None else 1.0, seed=seed, batch_tokens=batch_tokens, quiet=quiet,
    )  # fmt: skip
    written = [(prompt, ids) for prompt, several in enumerate(new) for ids in several]
    decoded = [tokenizer.decode(ids, skip_special_tokens=True) for _, ids in written]
    texts = [cut_at(text, stop) for text in decoded]
    said = verdicts(judge, texts)
    phi: list[tuple[int, int]] = []  # (continuation, step)
    plain: list[int] = []
    for at, ((_, ids), text, verdict) in enumerate(zip(written, decoded, said, strict=True)):
        if verdict.flagged(threshold):
            start = verdict.spans[0][0] if verdict.spans else 0
            if ids:
                phi.append((at, token_at(tokenizer, ids, text, start)))
        elif ids:
            plain.append(at)
    if not phi or not plain:
        raise InputError(
            f"{len(phi)} of {len(written)} continuations are flagged and {len(plain)} are not; states of both are needed: "
            "give prompts of both kinds, or draw more samples"
        )
    psi = _matched(phi, plain, written, seed) if matched else [(at, 0) for at in plain]
    states = _states(model, rows, written, [*phi, *psi], batch_tokens)
    flagged = {at for at, _ in phi}
    return ConceptStates(
        phi=states[: len(phi)],
        psi=states[len(phi) :],
        phi_steps=np.array([step for _, step in phi], dtype=np.int64),
        psi_steps=np.array([step for _, step in psi], dtype=np.int64),
        phi_tokens=tuple(tokenizer.decode([written[at][1][step]]) for at, step in phi),
        flagged=len(phi) / len(written),
        texts=tuple(
            {"prompt": task[prompt].prompt, "text": text, "flagged": at in flagged}
            for at, ((prompt, _), text) in enumerate(zip(written, texts, strict=True))
        ),
    )


def token_at(tokenizer: Any, ids: Sequence[int], text: str, character: int) -> int:
    """Which of some ids writes a character of their decoded text (the first of several that write it together).

    Works for every tokenizer: what the first i ids decode to is compared with the whole text, so that a character whose
    bytes are spread over several tokens belongs to the first of them.
    """
    if not ids or not 0 <= character < len(text):
        raise InputError(f"character {character} of a text of {len(text)} written by {len(ids)} tokens asked for")
    parts = [tokenizer.decode(list(ids[:count]), skip_special_tokens=True) for count in range(len(ids) + 1)]
    settled = [_common(part, text) for part in parts]
    at = next((place for place in range(len(ids)) if settled[place + 1] > character), len(ids) - 1)
    while at > 0 and settled[at] == character < len(parts[at]):  # the tokens before it hold the character's first bytes
        at -= 1
    return at


def _common(part: str, text: str) -> int:
    """Characters that two texts have in common from their beginning."""
    for place, (one, other) in enumerate(zip(part, text, strict=False)):
        if one != other:
            return place
    return min(len(part), len(text))


def _matched(
    phi: list[tuple[int, int]], plain: list[int], written: list[tuple[int, list[int]]], seed: int
) -> list[tuple[int, int]]:
    """For every state of Phi an unflagged continuation at the same step; each serves as rarely as it can."""
    rng = np.random.default_rng([seed, 3])
    order = rng.permutation(plain).tolist()
    used = dict.fromkeys(order, 0)
    found = []
    for _, step in phi:
        able = [at for at in order if len(written[at][1]) > step]
        if not able:
            continue
        best = min(able, key=lambda at: used[at])  # ties by the drawn order
        used[best] += 1
        found.append((best, step))
    if not found:
        raise InputError("no continuation that is not flagged is as long as where the flagged ones show the concept")
    return found


def _states(
    model: LanguageModel,
    rows: Sequence[tuple[int, ...]],
    written: list[tuple[int, list[int]]],
    wanted: list[tuple[int, int]],
    batch_tokens: int,
) -> NDArray[np.float64]:
    """The states that wrote the given steps: what enters the output matrix one position before."""
    full = [(*rows[written[at][0]], *written[at][1][:step]) for at, step in wanted]
    return states_at(model, full, [len(ids) - 1 for ids in full], batch_tokens=batch_tokens)
