"""The values at one site of one layer while a model reads text, batch by batch, beside the tokens that they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.data.batches import Batch, Selection
from patchclamp.data.corpora import Corpus
from patchclamp.measure.likelihood import Reading
from patchclamp.models.hooks import Seen, Tap, observe, run

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


@dataclass(frozen=True, eq=False)
class TappedBatch:
    """A batch and the values at the tap.

    values: (B, S, width) float32 on the model's device, whatever its dtype; columns of padding and of tokens that don't
    count are there too: `batch.keep` says which count. An expert that a token was not sent to has 0.
    """

    batch: Batch
    values: Tensor

    @property
    def kept(self) -> Tensor:
        """(n, width): the rows of the tokens that count, in the order of `keep.nonzero()`."""
        return self.values[self.batch.keep.to(self.values.device)]


def tapped(
    model: LanguageModel,
    text: Corpus,
    label: str,
    tap: Tap,
    *,
    select: Selection | None = None,
    batch_tokens: int = 4096,
) -> Iterator[TappedBatch]:
    """Read one label of a text, up to the layer of the tap. InputError for a tap that the model lacks."""
    width = tap_width(model, tap)
    reading = Reading(batch_tokens=batch_tokens, select=select or Selection())
    for batch in reading.batches(model, text, label):
        yield TappedBatch(batch, values_at(model, tap, width, batch.input_ids, batch.attention_mask))


def values_at(model: LanguageModel, tap: Tap, width: int, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B, S, width) float32 at a tap in one forward pass that ends there."""
    count = input_ids.numel()
    found: list[Tensor] = []

    def see(one: Seen) -> None:
        values = one.values.detach().float()
        if one.rows is None and values.shape[1] == width:
            found.append(values.clone())
            return
        if not found:
            found.append(values.new_zeros(count, width))
        columns = slice(one.offset, one.offset + values.shape[1])
        rows = torch.arange(count, device=values.device) if one.rows is None else one.rows
        found[0][rows, columns] += values

    with observe(model, [tap], see):
        run(model, input_ids, attention_mask, stop_after=tap)
    return found[0].view(*input_ids.shape, width)


def tap_width(model: LanguageModel, tap: Tap) -> int:
    """Units of a site in a layer; InputError, naming what there is, for a site or layer that the model lacks."""
    site, layer = tap
    layouts = model.layouts
    if site not in layouts or site == "head":
        raise InputError(
            f"site {site!r} asked for; choose from {', '.join(name for name in layouts if name != 'head')}"
        )
    widths = layouts[site].widths
    if not 0 <= layer < len(widths) or not widths[layer]:
        has = [number for number, width in enumerate(widths) if width]
        raise InputError(f"{site} of layer {layer} asked for; this model has it in the layers {has[0]} to {has[-1]}")
    return int(widths[layer])
