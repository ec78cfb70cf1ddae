"""Masks that choose tokens by their place in the prompt: `At([-1])` is the last prompt token of every row, however padded."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from patchclamp.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from patchclamp.models.hooks import Step


class At:
    """A mask for interventions: the tokens at some places of each row's prompt, padding not counted.

    places: from 0 for the first token (BOS, where there is one), from -1 for the last token of the prompt. Where nothing is
    generated the whole row is the prompt. Generated tokens are never chosen: use scope="generated" for them. Padding on
    either side, KV caches and beams change nothing. Rows that are shorter simply lack the place.
    """

    def __init__(self, places: int | Iterable[int]) -> None:
        given = list(places) if isinstance(places, Iterable) else [places]
        if not given or not all(isinstance(place, int) and not isinstance(place, bool) for place in given):
            raise InputError(f"positions={places!r}; give whole numbers, from 0 for the first token or -1 for the last")
        self.places = tuple(given)

    def __call__(self, step: Step) -> Tensor:
        """bool (batch, seq) for the columns of a step."""
        columns = torch.arange(step.seq, device=step.device).expand(step.batch, -1)
        real = torch.ones_like(columns, dtype=torch.bool)
        if step.start:
            return ~real  # the prompt came in an earlier step
        if step.attention_mask is not None:
            real = step.attention_mask.to(step.device).bool()
        if step.prompt_length is not None:
            length = torch.as_tensor(step.prompt_length, device=step.device).reshape(-1, 1)
            real = real & (columns < length)
        place = real.long().cumsum(1) - 1
        count = real.sum(1, keepdim=True)
        chosen = torch.zeros_like(real)
        for wanted in self.places:
            chosen |= place == (wanted if wanted >= 0 else count + wanted)
        return chosen & real

    def to_dict(self) -> dict[str, list[int]]:
        """Plain data: what a file of interventions holds in place of a table."""
        return {"positions": list(self.places)}

    def __repr__(self) -> str:
        return f"At({list(self.places)})"
