"""What an abstention would do, prompt by prompt, without doing it: which key tripped it, and how near the others came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.intervene.abstention import Abstention, end_id
from patchclamp.intervene.refusing import Distances, Looking
from patchclamp.models.hooks import Seen, observe, run

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

BATCH = 16  # prompts at once


@dataclass(frozen=True)
class Verdict:
    """One prompt. nearness: of the prompt's key, then of each token written, distance over the box's size: 1 or less is inside.

    With when="all" the first is that of the prompt's farthest key. step: 0 if the prompt tripped it, n for the n-th token
    written, None if nothing did. Of several boxes the nearest counts.
    """

    prompt: str
    nearness: tuple[float, ...]
    step: int | None

    @property
    def refused(self) -> bool:
        return self.step is not None


def verdicts(
    model: LanguageModel, change: Abstention, prompts: Sequence[str], *, max_new_tokens: int = 0
) -> list[Verdict]:
    """The verdict on every prompt, and on what the model goes on to write after it (greedily, unrefused).

    max_new_tokens: how much is written; 0 judges prompts only. The change itself must not be active.
    """
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens={max_new_tokens}; it is at least 0")
    change.check_model(model)
    found: list[Verdict] = []
    for start in range(0, len(prompts), BATCH):
        found += _batch(model, change, list(prompts[start : start + BATCH]), max_new_tokens)
    return found


def trips_per_100_tokens(found: Sequence[Verdict]) -> float:
    """How many of 100 tokens written (prompts left aside) have a key inside; NaN if nothing was written.

    Of queries that should be answered these are the false trips that when="any" adds to when="prompt".
    """
    written = [near for verdict in found for near in verdict.nearness[1:]]
    return 100 * sum(near <= 1 for near in written) / len(written) if written else float("nan")


def _batch(model: LanguageModel, change: Abstention, prompts: list[str], max_new_tokens: int) -> list[Verdict]:
    rows = [model.tokenize(prompt) for prompt in prompts]
    if not all(rows):
        raise InputError("a prompt is empty, so it has no key")
    width = max(map(len, rows))
    ids = torch.tensor([[model.pad_id] * (width - len(row)) + row for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    watch = _Watch(change)
    with observe(model, [box.tap for box in watch.boxes], watch):
        if max_new_tokens:
            with torch.no_grad():
                out = model.hf.generate(
                    ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=model.pad_id
                )
        else:
            run(model, ids, mask)
            out = ids
    near = watch.nearness()
    end = end_id(model)
    return [
        _verdict(change.when, prompt, near[row, : _written(out[row, width:].tolist(), end) + 1].tolist())
        for row, prompt in enumerate(prompts)
    ]


def _written(new: list[int], end: int | None) -> int:
    """How many of the new tokens were fed back to the model: all but the last, and none from the end of the text on."""
    return min(new.index(end), len(new) - 1) if end in new else max(len(new) - 1, 0)


def _verdict(when: str, prompt: str, nearness: list[float]) -> Verdict:
    looked_at = nearness if when == "any" else nearness[:1]
    step = next((number for number, near in enumerate(looked_at) if near <= 1), None)
    return Verdict(prompt, tuple(nearness), step)


class _Watch:
    """An observer that keeps each pass's nearness: (batch, positions looked at)."""

    def __init__(self, change: Abstention) -> None:
        self.when = change.when
        self.boxes = [Distances(box.region, box.alpha) for box in change.boxes]
        self.passes: list[Tensor] = []
        self._now: Looking | None = None

    def __call__(self, seen: Seen) -> None:
        if self._now is None or self._now.step is not seen.step:
            self._close()
            self._now = Looking(seen.step, "all" if self.when == "all" and seen.step.start == 0 else "any")
            for box in self.boxes:
                box.begin()
        for box in self.boxes:
            if box.tap == (seen.site, seen.layer):
                box.add(seen, self._now.places)

    def nearness(self) -> Tensor:
        """(batch, 1 + tokens written) of all passes."""
        self._close()
        return torch.cat(self.passes, dim=1)

    def _close(self) -> None:
        now, self._now = self._now, None
        if now is None:
            return
        far = torch.stack([_over(box.of_all(), box.limit) for box in self.boxes]).amin(0)
        wide = torch.full((now.checked.numel(),), -torch.inf, dtype=far.dtype, device=far.device)
        wide[now.places.to(far.device)] = far
        self.passes.append(wide.view(now.checked.shape).amax(1, keepdim=True).cpu())


def _over(far: Any, limit: float) -> Tensor:
    """Distance over the box's size; a box of no size holds its exact middle only."""
    values: Tensor = far.nan_to_num(nan=torch.inf)
    return values / limit if limit > 0 else torch.where(values > 0, torch.inf, torch.zeros_like(values))
