"""How the weights of two models of one shape differ, and the same difference dealt out at random: a control for any edit.

Of every tensor that differs, the control adds the same numbers to random places: the same norm, the same sizes, no aim.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.intervene.copies import copied
from patchclamp.models.load import load

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


class WeightChange:
    """The difference between an original and another model. Raises InputError where their tensors can't be compared.

    differing: names of the tensors that differ.
    """

    def __init__(self, original: LanguageModel, other: LanguageModel) -> None:
        self.original, self.other = original, other
        before, after = _parameters(original), _parameters(other)
        if set(before) != set(after):
            extra = sorted(set(before) ^ set(after))
            raise InputError(f"only one of the two models has the weight {extra[0]} ({len(extra)} such weights)")
        for name, weight in before.items():
            if weight.shape != after[name].shape or not (
                weight.is_floating_point() and after[name].is_floating_point()
            ):
                raise InputError(f"the weight {name} has another shape or type in the two models")
        self.differing = tuple(name for name in before if not _same(before[name], after[name]))
        self._copy: LanguageModel | None = None

    def describe(self) -> str:
        """How many weights differ, in words."""
        before, after = _parameters(self.original), _parameters(self.other)
        moved = sum(int(torch.count_nonzero(_difference(before[name], after[name]))) for name in self.differing)
        total = sum(weight.numel() for weight in before.values())
        return f"{moved:,} of {total:,} weights differ, in {len(self.differing)} of {len(before)} tensors"

    def shuffled(self, seed: int) -> LanguageModel:
        """The original with the same numbers added to random places of the same tensors.

        One copy of the original serves all seeds: what an earlier call returned changes with the next.
        """
        if self._copy is None:
            self._copy = load(copied(self.original, "change"), tokenizer=self.original.tokenizer, check=False)
            self._copy.name = f"{self.original.name} (random weight change)"
        before, after, target = (_parameters(model) for model in (self.original, self.other, self._copy))
        rng = np.random.default_rng(seed)
        with torch.no_grad():
            for name in self.differing:
                gap = _difference(before[name], after[name]).reshape(-1)
                order = torch.from_numpy(rng.permutation(gap.numel())).to(gap.device)
                target[name].copy_(before[name] + gap[order].reshape(before[name].shape))
        for known in ("fingerprint", "identity"):
            vars(self._copy).pop(known, None)
        return self._copy


def _parameters(model: LanguageModel) -> dict[str, Any]:
    return dict(model.hf.named_parameters())


def _same(before: Tensor, after: Tensor) -> bool:
    return torch.equal(before, after.to(before.device, before.dtype))


def _difference(before: Tensor, after: Tensor) -> Tensor:
    return after.to(before.device, torch.float32) - before.float()
