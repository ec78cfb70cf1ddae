"""One layer's MLP inside `core_sparse`: what its projections do in a pass over prompts, over new tokens, and in a refresh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patchclamp.generate.counting import Counts
from patchclamp.generate.cuts import Cut, cut_to, membership, only
from patchclamp.generate.guides import Guide, size_of
from patchclamp.generate.maps import MlpMaps
from patchclamp.generate.texts import Texts
from patchclamp.generate.weights import Call, Weights
from patchclamp.models.hooks import Step


@dataclass(frozen=True)
class Settings:
    """What `core_sparse` was asked for; its docstring explains each."""

    share: float
    token_share: float
    by: str
    shared_k: bool
    refresh: int | None
    keep: float
    form: str
    min_tokens: int


class Layer:
    """The projections of one MLP. counts: of the texts' token cores, None where they aren't needed. cuts: whether it is cut."""

    def __init__(
        self, maps: MlpMaps, guide: Guide, weights: Weights, settings: Settings, *, counted: bool, cuts: bool
    ) -> None:
        self.maps, self.guide, self.weights, self.settings = maps, guide, weights, settings
        self.counted, self.cuts = counted, cuts
        self.size = size_of(settings.share, maps.width, maps.layer)
        self.counts: Counts | None = None
        self.cores: list[Tensor] = []
        self.cut: Cut | None = None
        self.plain: tuple[Call, ...] = tuple(weights.dense(module) for module in maps.modules)
        self.calls: Sequence[Call] = self.plain
        self._x: Tensor | None = None
        self._recent: list[Tensor] = []
        self._device: torch.device | None = None

    def forward(self, number: int) -> Call:
        """What takes the place of a projection's forward."""

        def forward(x: Tensor) -> Tensor:
            return self.calls[number](x)

        return forward

    # --- a pass over prompts ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """New prompts: forget the old ones."""
        self.counts, self.cores, self.cut, self._recent = None, [], None, []

    def split(self, texts: Sequence[int]) -> None:
        """The texts became more; each goes on with the counts of the one it comes from."""
        if self.counts is not None:
            self.counts = self.counts.chosen(texts)

    def read(self, step: Step, texts: Texts, prompt: Tensor | None) -> None:
        """Be whole in this pass and count; with `prompt` (batch, seq) bool, only the core at the other positions."""
        self.cut, self._recent = None, []
        mixed = prompt is not None and self.cuts
        if not (self.counted or mixed):
            self.calls = (partial(self._placed, self.plain[0]), *self.plain[1:])
            return
        down = partial(self._read_down, step, texts, prompt if mixed else None)
        self.calls = (partial(self._kept, self.plain[0]), *self.plain[1:-1], down)

    def _placed(self, call: Call, x: Tensor) -> Tensor:
        self._device = x.device
        return call(x)

    def _kept(self, call: Call, x: Tensor) -> Tensor:
        self._x = x if self.guide.per_token else None
        return self._placed(call, x)

    def _read_down(self, step: Step, texts: Texts, prompt: Tensor | None, h: Tensor) -> Tensor:
        values = h.view(step.batch, step.seq, -1)
        if self.counted:
            if self.counts is None:
                self.counts = Counts(texts.count, self.maps.width, h.device)
            for text, (row, columns) in enumerate(texts.parts):
                self._add(text, values[row, columns.to(h.device)])
        if prompt is not None:
            keep = self._mask(h, texts).view(step.batch, -1, values.shape[-1]) | prompt.to(h.device)[..., None]
            h = values.masked_fill(~keep, 0).view(h.shape)
        return self.plain[-1](h)

    def _add(self, text: int, values: Tensor) -> None:
        asked = self.settings
        if self.counts is not None:
            self.counts.add(text, values, token_share=asked.token_share, by=asked.by, shared_k=asked.shared_k)

    def _mask(self, h: Tensor, texts: Texts) -> Tensor:
        """What to keep: (..., width) per token, or (batch, width) per row."""
        if self.guide.per_token and self._x is not None:
            return self.guide.mask(self.maps.layer, self._x, h, self.size)
        self.choose(texts.count, {} if self.counts is None else {self.maps.layer: self.counts})
        return membership(self.cores, self.maps.width)[texts.rows].to(h.device)

    # --- passes over new tokens ------------------------------------------------------------------------------------

    def choose(self, texts: int, counts: dict[int, Counts]) -> None:
        """Choose the core of every text. counts: of every layer that was counted."""
        if self.settings.share >= 1 and self.guide.name != "fixed":
            self.cores = [torch.arange(self.maps.width)] * texts
        else:
            self.cores = self.guide.cores(self.maps.layer, self.size, self.maps.width, texts, counts)

    def go_on(self, texts: Texts) -> None:
        """Compute new tokens with the cores: cut them out, or mask by token."""
        if not self.cuts:
            self.calls = self.plain
            return
        if self.guide.per_token:
            self.calls = (partial(self._kept, self.plain[0]), *self.plain[1:-1], self._mask_down)
            return
        device = self._device or torch.device("cpu")
        self.cut = cut_to(self.maps, self.cores, texts.rows, self.weights, self.settings.form, device)
        self.calls = self.cut.calls
        self._recent = []
        if self.settings.refresh is not None:
            self.calls = (partial(self._remembered, len(texts.rows), self.calls[0]), *self.calls[1:])

    def _mask_down(self, h: Tensor) -> Tensor:
        if self._x is None:
            return self.plain[-1](h)
        keep = self.guide.mask(self.maps.layer, self._x, h, self.size)
        return self.plain[-1](h.masked_fill(~keep, 0))

    def _remembered(self, batch: int, call: Call, x: Tensor) -> Tensor:
        self._recent.append(x.view(batch, -1, x.shape[-1]))
        return call(x)

    def release(self) -> None:
        """Let go of the parts of weights."""
        self.calls, self._recent, self._x = self.plain, [], None
        if self.cut is not None:
            self.cut = Cut((), self.cut.bytes, self.cut.form)

    # --- choosing anew ---------------------------------------------------------------------------------------------

    def refresh(self, step: Step, texts: Texts) -> None:
        """In this pass also compute, whole, what the last tokens' neurons would have been, count them, and choose anew.

        What enters the MLP was kept for every new token, so that this costs one wide product and no second pass.
        """
        if self.cuts and self.counts is not None:
            ups = [partial(self._wide, number, step.batch) for number in range(len(self.plain) - 1)]
            self.calls = (*ups, partial(self._refreshed, step, texts))

    def _wide(self, number: int, batch: int, x: Tensor) -> Tensor:
        if number == 0:
            self._x = torch.cat([*self._recent, x.view(batch, -1, x.shape[-1])], dim=1)
        given: Any = self._x
        out = self.plain[number](given)
        return out if x.dim() > 2 else out.flatten(0, 1)

    def _refreshed(self, step: Step, texts: Texts, h: Tensor) -> Tensor:
        values = h.view(step.batch, -1, h.shape[-1])
        counts: Any = self.counts
        counts.fade(self.settings.keep)
        for text in range(texts.count):
            self._add(text, values[texts.of_text(text)].flatten(0, 1))
        self.choose(texts.count, {self.maps.layer: counts})
        last = values[:, values.shape[1] - step.seq :].contiguous()
        out = self.plain[-1](only(last, membership(self.cores, self.maps.width)[texts.rows].to(h.device)))
        self._x = None
        return out if h.dim() > 2 else out.flatten(0, 1)
