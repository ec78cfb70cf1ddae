"""A model asked for the logits of some columns only: the LM head is not computed where nobody looks.

The model's own forward does the choosing (`logits_to_keep`), so that soft caps and logit scales are its own too.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor


class Columns:
    """A view of a LanguageModel whose `logits` are (batch, len(columns), vocabulary); all else is the model's.

    columns: (k,) int64, ascending. A model that can't choose computes all logits, and the others are dropped.
    """

    def __init__(self, model: Any, columns: Tensor) -> None:
        self._model, self._columns = model, columns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def logits(self, input_ids: Tensor, attention_mask: Tensor | None = None, *, grad: bool = False) -> Tensor:
        """Logits of the chosen columns, under whatever changes are active."""
        if not can_choose(self._model):
            return self._model.logits(input_ids, attention_mask, grad=grad)[:, self._columns]
        inputs = self._model.inputs(input_ids, attention_mask)
        with torch.set_grad_enabled(True) if grad else torch.inference_mode():
            found: Tensor = self._model.hf(**inputs, logits_to_keep=self._columns).logits
        return found


def can_choose(model: Any) -> bool:
    """Whether the model's forward can leave out logits."""
    return "logits_to_keep" in inspect.signature(model.hf.forward).parameters
