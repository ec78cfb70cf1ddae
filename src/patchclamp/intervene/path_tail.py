"""The last columns of a batch, run again and again on a KV cache of the columns before them, which nothing changes."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchclamp.intervene.path_runs import Recorded, close
from patchclamp.models.hooks import Seen, Tap, observe

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


class Tail:
    """Columns `start ..` of prompts, `times` copies of them as rows (all prompts, then all again, ...).

    ids: (n, seq); mask: (n, seq) bool, padded on the right, every prompt longer than `start`.
    """

    def __init__(self, model: LanguageModel, ids: Tensor, mask: Tensor, start: int, times: int) -> None:
        self.model, self.start = model, start
        self.ids, self.mask = ids[:, start:].repeat(times, 1), mask.repeat(times, 1).long()
        self.positions = torch.arange(start, ids.shape[1], device=ids.device).expand(len(self.ids), -1)
        takes = inspect.signature(model.trunk_module.forward).parameters
        self.wants_positions = "position_ids" in takes
        with torch.inference_mode():
            first = model.inputs(ids[:, :start]) | {"use_cache": True}
            self.cache = model.trunk_module(**first).past_key_values
            rows = torch.arange(len(ids), device=ids.device).repeat(times)
            self.kept = [(layer.keys[rows.to(layer.keys.device)], layer.values[rows.to(layer.values.device)])
                         for layer in self.cache.layers]  # fmt: skip
        self.plain = all(type(layer).__name__ == "DynamicLayer" for layer in self.cache.layers)

    def run(self) -> None:
        """Run the columns for the sake of active observers, under whatever changes are active."""
        for layer, (keys, values) in zip(self.cache.layers, self.kept, strict=True):
            layer.keys, layer.values = keys, values  # a pass makes longer tensors of its own, these stay as they are
        inputs: dict[str, Any] = {"input_ids": self.ids, "attention_mask": self.mask}
        if self.wants_positions:
            inputs["position_ids"] = self.positions
        with torch.inference_mode():
            self.model.trunk_module(**inputs, past_key_values=self.cache, use_cache=True)

    def reproduces(self, base: Recorded, tap: Tap, mask: Tensor) -> bool:
        """Whether nothing changed gives the final states that the plain pass recorded."""
        found: list[Tensor] = []

        def keep(seen: Seen) -> None:
            found.append(seen.values)

        with observe(self.model, [tap], keep):
            self.run()
        n, seq = mask.shape
        expected = base.values[tap].reshape(n, seq, -1)[:, self.start :]
        real = mask[:, self.start :].to(expected.device)
        got = found[0].reshape(-1, n, seq - self.start, expected.shape[-1])[0]
        return close(self.model, got[real], expected[real])


def tail_of(
    model: LanguageModel, ids: Tensor, mask: Tensor, start: int, times: int, base: Recorded | None, tap: Tap
) -> Tail | None:
    """A tail that gives the plain run's states (compared with `base`, if given); None where a model has no such cache."""
    try:
        tail = Tail(model, ids, mask, start, times)
        if tail.plain and (base is None or tail.reproduces(base, tap, mask)):
            return tail
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    return None
