"""Profiles: how active each feature (or unit) is in a sample, averaged over its tokens, streamed over any number of samples.

Ma, Shang, Chen et al. 2025 (arXiv 2503.15573), steps 2 to 4: z_t = TopK(features of token t), z(s) = mean over the tokens.
The mean, not the sum: a sum would select samples by their length. Special tokens don't count unless asked for: the huge
norm of a BOS switches the same features on in every sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from patchclamp.core.errors import InputError, ModelError
from patchclamp.core.progress import progress
from patchclamp.data.batches import PIECE, Batch, Budget, Selection, Tokens, batches, encode
from patchclamp.data.documents import Document
from patchclamp.models.features import Dictionary
from patchclamp.models.hooks import Seen, observe, run

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

RUN = 2**17  # tokens held and sorted by length at once
CELLS = 2**24  # features of tokens, or profiles of samples, held at once: 64 MB
POOLINGS = ("mean", "sum")


@dataclass(frozen=True, eq=False)
class Block:
    """Profiles of some samples. document: (n,) int64 numbers of the samples; z: (n, width) float32; tokens: (n,) int64."""

    document: Tensor
    z: Tensor
    tokens: Tensor


@dataclass(frozen=True, eq=False)
class Profiler:
    """What a profile is made of: features of a dictionary, or the units of a site in a layer.

    top: keep the k largest features of each token (a TopK dictionary has done that already). pooling: mean or sum over
    tokens. clip: raise negative features to 0. special: count BOS and the like. max_length: tokens read of a sample.
    """

    model: LanguageModel
    site: str
    layer: int
    dictionary: Dictionary | None = None
    top: int | None = None
    pooling: str = "mean"
    clip: bool = False
    special: bool = False
    max_length: int | None = None
    batch_tokens: int = 4096
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS:
            raise InputError(f"pooling {self.pooling!r} given; it is one of {', '.join(POOLINGS)}")
        place = self.model.anatomy.site(self.site, self.layer)
        if self.dictionary is not None:
            if self.dictionary.model and self.dictionary.model.get("fingerprint") != self.model.fingerprint:
                warnings.warn(f"{self.dictionary!r} was made for another model", stacklevel=4)
            if self.dictionary.d_in != place.total_width:
                raise InputError(
                    f"{self.dictionary!r} takes vectors of {self.dictionary.d_in} numbers, but {self.site}.{self.layer} has "
                    f"{place.total_width}"
                )
        if self.top is not None and not 1 <= self.top <= self.width:
            raise InputError(f"the {self.top} largest of {self.width} features asked for; give 1 to {self.width}")

    @property
    def width(self) -> int:
        """Features, or units of the layer."""
        if self.dictionary is not None:
            return self.dictionary.n_features
        return self.model.layouts[self.site].widths[self.layer]

    def names(self, numbers: Iterable[int]) -> list[str]:
        """Names of features as units: "sae.3.17", or "gate.3.17" for the units of a site."""
        site = self.site if self.dictionary is None else self.dictionary.name
        labels = None if self.dictionary is None else self.dictionary.labels
        return [f"{site}.{self.layer}.{k}" + (f" ({labels[k]})" if labels else "") for k in numbers]

    def over(self, samples: Iterable[Document], what: str = "samples") -> Iterator[Block]:
        """Blocks of profiles, in no particular order; a sample without a token that counts has none.

        ModelError naming a sample whose activations are not finite.
        """
        length = min(self.model.max_length, PIECE) if self.max_length is None else self.max_length
        if not 1 <= length <= self.model.max_length:
            raise InputError(f"max_length={length}; this model takes up to {self.model.max_length} tokens at once")
        select = Selection(special=self.special)
        pieces = encode(self.model.tokenizer, samples, max_length=length, select=select)
        first = (piece for piece in pieces if piece.start == 0 and piece.counted)  # the rest is cut off
        budget = Budget(self.batch_tokens)
        with progress(f"features of {what}", unit="samples", quiet=self.quiet) as advance:
            for some in _runs(first):
                for batch in batches(some, token_budget=budget.tokens, pad_id=self.model.pad_id):
                    for part in self._bounded(batch):
                        yield from budget.run(self._block, part)
                        advance(len(part))

    def mean(self, samples: Iterable[Document], what: str = "target") -> tuple[Tensor, int]:
        """Mean profile of all samples that have one, (width,) float32, and their number (0: a profile of zeros)."""
        total, count = torch.zeros(self.width, dtype=torch.float64), 0
        for block in self.over(samples, what):
            total += block.z.sum(0, dtype=torch.float64).cpu()
            count += len(block.document)
        return (total / max(1, count)).float(), count

    def _bounded(self, batch: Batch) -> Iterator[Batch]:
        if len(batch) > 1 and len(batch) * self.width > CELLS:
            for half in batch.halves():
                yield from self._bounded(half)
        else:
            yield batch

    def _block(self, batch: Batch) -> Block:
        keep = batch.keep.flatten()
        x = self._activations(batch, keep)
        row = torch.arange(len(batch)).repeat_interleave(batch.keep.shape[1])[keep].to(x.device)
        tokens = batch.keep.sum(1)
        z = torch.zeros(len(batch), self.width, device=x.device)
        step = max(1, CELLS // self.width)
        for start in range(0, len(x), step):
            _add_rows(z, row[start : start + step], self._features(x[start : start + step]))
        if self.pooling == "mean":
            z /= tokens.to(x.device)[:, None]
        bad = (~torch.isfinite(z)).any(1).nonzero()[:, 0]
        if len(bad):
            number = int(batch.document[int(bad[0])])
            raise ModelError(f"the activations of sample {number} are NaN or infinite; load the model in float32")
        return Block(batch.document, z, tokens)

    def _activations(self, batch: Batch, keep: Tensor) -> Tensor:
        """(n_kept, site width) activations of the tokens that count."""
        width = self.model.layouts[self.site].widths[self.layer]
        found: list[Tensor] = []

        def see(seen: Seen) -> None:
            if not found:
                found.append(torch.zeros(keep.numel(), width, device=seen.values.device, dtype=seen.values.dtype))
            rows = slice(None) if seen.rows is None else seen.rows
            found[0][rows, seen.offset : seen.offset + seen.values.shape[1]] = seen.values

        placed = batch.to(self.model.device)
        with observe(self.model, [(self.site, self.layer)], see):
            run(self.model, placed.input_ids, placed.attention_mask, stop_after=(self.site, self.layer))
        if not found:
            raise ModelError(f"{self.site}.{self.layer} was never computed; choose another site or layer")
        return found[0][keep.to(found[0].device)]

    @torch.inference_mode()
    def _features(self, x: Tensor) -> Tensor:
        """(n, width) float32 features of activations (n, d_in)."""
        if self.dictionary is None:
            f = x.float()
        else:
            dictionary = self.dictionary.on(x.device)
            f = dictionary.encode(x.to(dictionary.dtype)).float()
        if self.clip:
            f = f.clamp(min=0)
        if self.top is not None and self.top < f.shape[1]:
            kept = f.topk(self.top, dim=1)
            f = torch.zeros_like(f).scatter_(1, kept.indices, kept.values)
        return f


def _add_rows(z: Tensor, row: Tensor, f: Tensor) -> None:
    """z[row] += f, in the same order every time: on a GPU as a product, where index_add_ would add in any order."""
    if z.device.type == "cpu":
        z.index_add_(0, row, f)
        return
    member = torch.zeros(len(z), len(f), device=z.device)
    member[row, torch.arange(len(f), device=z.device)] = 1
    z += member @ f


def _runs(pieces: Iterator[Tokens]) -> Iterator[list[Tokens]]:
    """Consecutive pieces, about RUN tokens at a time."""
    run_, size = [], 0
    for piece in pieces:
        run_.append(piece)
        size += len(piece.ids)
        if size >= RUN:
            yield run_
            run_, size = [], 0
    if run_:
        yield run_
