"""`Prefix`: the blocks below a layer run once; what is above runs again and again under different changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from patchclamp.core.errors import InputError
from patchclamp.models.hooks import changed_layers, forward_replaced, run

# model -> layer -> whether skipping the blocks below gives the very same logits
_EXACT: WeakKeyDictionary[nn.Module, dict[int, bool]] = WeakKeyDictionary()


class Prefix:
    """The residual stream that enters block `layer` for one batch, kept for repeated runs of the blocks above.

    input_ids, attention_mask: (batch, seq). Changes may be active at layers >= `layer` only (InputError otherwise).
    The first prefix of a layer is compared with the full forward pass; where a model's upper blocks need more of the
    lower ones than the residual stream (shared keys and values, say), `exact` is False and full passes are run.
    """

    def __init__(self, model: Any, layer: int, input_ids: Tensor, attention_mask: Tensor | None = None) -> None:
        if not 0 <= layer < model.anatomy.n_layers:
            raise InputError(f"layer {layer} asked for, but the model has {model.anatomy.n_layers}")
        self.model, self.layer = model, layer
        self.input_ids, self.attention_mask = input_ids, attention_mask
        self._refuse_changes_below()
        self._blocks = [model.anatomy.module(path) for path in model.anatomy.blocks[:layer]]
        self._output = self._run_below() if self._usable() else None
        self.exact = self._usable() and self._verified()

    def logits(self, *, grad: bool = False) -> Tensor:
        """(batch, seq, vocabulary) logits under whatever changes are active at the layer or above."""
        self._refuse_changes_below()
        with self._skipping() if self.exact else contextlib.nullcontext():
            logits: Tensor = self.model.logits(self.input_ids, self.attention_mask, grad=grad)
        return logits

    def _usable(self) -> bool:
        anatomy = self.model.anatomy
        paths = anatomy.sites.get("resid")
        return self.layer > 0 and paths is not None and paths[0].path == anatomy.blocks[0]

    def _refuse_changes_below(self) -> None:
        below = [layer for layer in changed_layers(self.model) if layer < self.layer]
        if below:
            raise InputError(f"layer {below[0]} is being changed; a prefix of layer {self.layer} can't serve that")

    def _run_below(self) -> Any:
        kept: list[Any] = []
        last = self._blocks[-1]
        plain = last.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            kept.append(plain(*args, **kwargs))
            return kept[-1]

        with forward_replaced(last, forward):
            run(self.model, self.input_ids, self.attention_mask, stop_after=("resid", self.layer - 1))
        return _copied(kept[-1])

    @contextlib.contextmanager
    def _skipping(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for block in self._blocks:
                stack.enter_context(forward_replaced(block, lambda *args, **kwargs: self._output))
            yield

    def _verified(self) -> bool:
        known = _EXACT.setdefault(self.model.hf, {})
        if self.layer not in known:
            full = self.model.logits(self.input_ids, self.attention_mask)
            try:
                with self._skipping():
                    known[self.layer] = torch.equal(self.model.logits(self.input_ids, self.attention_mask), full)
            except (RuntimeError, ValueError, KeyError, IndexError, TypeError, AttributeError):
                known[self.layer] = False
        return known[self.layer]


def _copied(output: Any) -> Any:
    """A block's output as ordinary tensors (made under inference mode, they could not enter a gradient)."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, tuple | list):
        return type(output)(_copied(item) for item in output)
    return output
