"""One pass of the model over streams, kept as sums: per place in the sentence and group, per unit of time, per word form.

Nothing of size tokens x units is held. Sums of parts of the streams merge to those of one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from patchclamp.core.errors import Error, InputError, MismatchError
from patchclamp.core.progress import progress
from patchclamp.data.batches import Batch, Tokens, batches
from patchclamp.find.syntax_spectra import Rate, basis, profile_amplitudes
from patchclamp.find.syntax_streams import Sentences, Stream
from patchclamp.find.syntax_tokens import Mapped, mapped
from patchclamp.models.fast_passes import fast_passes
from patchclamp.models.hooks import Seen, observe, run

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


@dataclass(frozen=True)
class Plan:
    """What to sum. slots: sentences per stream that count; skip: sentences at the start that don't. off: rates that are no
    multiple of the sentence rate and need the whole series. nearest: at the nearest DFT bin.
    """

    sentences: Sentences
    slots: int
    skip: int
    groups: int
    rates: tuple[Rate, ...]
    nearest: bool = False

    @property
    def length(self) -> int:
        """T, units of a stream that count."""
        return self.slots * self.sentences.n_units

    @property
    def off(self) -> tuple[int, ...]:
        """Which rates are no multiple of the sentence rate."""
        return tuple(at for at, rate in enumerate(self.rates) if rate.harmonic is None)


@dataclass
class Sums:
    """Sums over the streams of one condition; n units of the model in the flat order of the site.

    places: (groups, U, n) float64, means of units of text, summed over sentences and streams. series: (T, n) float32, summed
    over streams. words: (word forms, n) float32; seen: (word forms, U) int64, how often a form stood at a place. off: (groups,
    off-bin rates, n) complex128. streams: (groups,) int64. tokens, overlapping: int.
    """

    plan: Plan
    places: NDArray[np.float64]
    series: NDArray[np.float32]
    words: NDArray[np.float32]
    seen: NDArray[np.int64]
    off: NDArray[np.complex128]
    streams: NDArray[np.int64]
    tokens: int = 0
    overlapping: int = 0

    @classmethod
    def empty(cls, plan: Plan, n: int) -> Sums:
        groups, places = plan.groups, plan.sentences.n_units
        forms = int(plan.sentences.words.max()) + 1
        return cls(
            plan,
            np.zeros((groups, places, n)),
            np.zeros((plan.length, n), dtype=np.float32),
            np.zeros((forms, n), dtype=np.float32),
            np.zeros((forms, places), dtype=np.int64),
            np.zeros((groups, len(plan.off), n), dtype=np.complex128),
            np.zeros(groups, dtype=np.int64),
        )

    def merge(self, other: Sums) -> Sums:
        """The sums of both; MismatchError unless they were planned alike."""
        if self.plan != other.plan or self.places.shape != other.places.shape:
            raise MismatchError("these sums were made with other sentences, groups or rates; they can't be merged")
        names = ("places", "series", "words", "seen", "off", "streams", "tokens", "overlapping")
        return Sums(self.plan, *(getattr(self, name) + getattr(other, name) for name in names))

    @property
    def profiles(self) -> NDArray[np.float64]:
        """(groups, U, n) mean at each place in the sentence."""
        return self.places / (self.streams * self.plan.slots)[:, None, None]

    @property
    def profile(self) -> NDArray[np.float64]:
        """(U, n) mean at each place over all streams."""
        return np.asarray(self.places.sum(axis=0) / (self.streams.sum() * self.plan.slots))

    @property
    def mean_series(self) -> NDArray[np.float32]:
        """(T, n) mean over all streams."""
        return np.asarray(self.series / np.float32(self.streams.sum()))

    def amplitudes(self) -> NDArray[np.float64]:
        """(rates, groups, n) amplitude of each group's mean series; from the means per place where that is exact."""
        plan = self.plan
        found = np.empty((len(plan.rates), len(self.places), self.places.shape[-1]))
        profiles = self.profiles
        for at, rate in enumerate(plan.rates):
            if rate.harmonic is not None:
                found[at] = profile_amplitudes(profiles, [rate.harmonic], plan.length)[0]
        for number, at in enumerate(plan.off):
            found[at] = np.abs(self.off[:, number] / self.streams[:, None])
        return found

    def word_means(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(forms, n) mean response to each word form that was read, and (forms, U) its share of what stood at each place."""
        times = self.seen.sum(axis=1)
        read = times > 0
        share = self.seen / self.seen.sum(axis=0)
        return self.words[read] / times[read, None], share[read]


def tag_sums(
    model: LanguageModel,
    plan: Plan,
    streams: Sequence[Stream],
    *,
    site: str = "mlp",
    special: bool = False,
    batch_tokens: int = 4096,
    title: str = "reading streams",
    quiet: bool = False,
) -> Sums:
    """Read the streams and sum what every unit of `site` did. Stream i belongs to group i * groups // len(streams)."""
    if site not in model.layouts:
        raise InputError(f"this model has no site {site!r}; it has {', '.join(model.layouts)}")
    layout = model.layouts[site]
    sums = Sums.empty(plan, layout.total)
    maps = mapped(model.tokenizer, streams, max_length=model.max_length, special=special)
    group = np.arange(len(streams)) * plan.groups // len(streams)
    sums.streams += np.bincount(group, minlength=plan.groups)
    for stream, one in zip(streams, maps, strict=True):
        sums.tokens += len(one.ids)
        sums.overlapping += one.overlapping
        np.add.at(sums.seen, (_forms(plan, stream), np.tile(np.arange(plan.sentences.n_units), plan.slots)), 1)
    pieces = [Tokens(one.ids, None, number, 0) for number, one in enumerate(maps)]
    taps = [(site, layer) for layer in range(layout.n_layers) if layout.widths[layer]]
    with fast_passes(model), progress(title, len(streams), unit="streams", quiet=quiet) as advance:
        for batch in batches(pieces, token_budget=batch_tokens, pad_id=model.pad_id):
            reader = _Reader(sums, layout, batch, [streams[d] for d in batch.document], maps, group)
            with observe(model, taps, reader.see):
                run(model, batch.input_ids, batch.attention_mask, stop_after=taps[-1])
            advance(len(batch))
    if not np.isfinite(sums.places).all():
        layer = int(np.searchsorted(layout.offsets, np.flatnonzero(~np.isfinite(sums.places).all((0, 1)))[0], "right"))
        raise Error(f"activations of {site} in layer {layer - 1} are NaN or infinite; load the model in float32")
    return sums


def _forms(plan: Plan, stream: Stream) -> NDArray[np.int64]:
    """Number of the word form of each unit that counts, (T,)."""
    skipped = plan.skip * plan.sentences.n_units
    return np.asarray(plan.sentences.words[stream.sentence[skipped:], stream.source[skipped:]])


class _Reader:
    """Adds what flows past the taps of one batch to the sums."""

    def __init__(
        self,
        sums: Sums,
        layout: Any,
        batch: Batch,
        streams: Sequence[Stream],
        maps: Sequence[Mapped],
        group: NDArray[np.int64],
    ) -> None:
        self.sums, self.layout = sums, layout
        self.rows, width = len(batch), int(batch.input_ids.shape[1])
        self.length = sums.plan.length
        token, unit, weight = [], [], []
        for row, (stream, number) in enumerate(zip(streams, batch.document.tolist(), strict=True)):
            one = maps[number]
            at = one.unit - (len(stream.sentence) - self.length)  # units of skipped sentences fall below 0
            kept = at >= 0
            token.append(one.token[kept] + row * width)
            unit.append(at[kept] + row * self.length)
            weight.append(one.weight[kept])
        self.token = torch.from_numpy(np.concatenate(token))
        self.unit = torch.from_numpy(np.concatenate(unit))
        self.weight = torch.from_numpy(np.concatenate(weight))[:, None]
        self.positions = self.rows * width
        self.group = torch.from_numpy(group[batch.document.numpy()])
        self.form = torch.from_numpy(np.concatenate([_forms(sums.plan, stream) for stream in streams]))
        plan = sums.plan
        waves = [basis(plan.rates[at], plan.length, nearest=plan.nearest) for at in plan.off]
        self.waves = torch.from_numpy(np.stack(waves).astype(np.complex64)) if waves else None

    def see(self, seen: Seen) -> None:
        values = seen.values.detach()
        token, unit, weight = self.token, self.unit, self.weight
        if seen.rows is not None:  # an expert saw some tokens only: for the others its neurons are 0
            place = torch.full((self.positions,), -1, dtype=torch.long)
            place[seen.rows.cpu()] = torch.arange(len(seen.rows))
            token = place[token]
            kept = token >= 0
            token, unit, weight = token[kept], unit[kept], weight[kept]
        device = values.device
        of_text = torch.zeros(self.rows * self.length, values.shape[-1], device=device)
        of_text.index_add_(0, unit.to(device), values[token.to(device)].float() * weight.to(device))
        start = self.layout.offsets[seen.layer] + seen.offset
        self._add(of_text.cpu(), slice(start, start + values.shape[-1]))

    def _add(self, x: torch.Tensor, where: slice) -> None:
        """x: (rows * T, width) float32."""
        sums, plan = self.sums, self.sums.plan
        each = x.view(self.rows, plan.slots, plan.sentences.n_units, -1)
        places = torch.zeros(plan.groups, *each.shape[2:], dtype=torch.float64)
        places.index_add_(0, self.group, each.double().sum(dim=1))
        sums.places[:, :, where] += places.numpy()
        sums.series[:, where] += x.view(self.rows, self.length, -1).sum(dim=0).numpy()
        words = torch.zeros(len(sums.words), x.shape[-1]).index_add_(0, self.form, x)
        sums.words[:, where] += words.numpy()
        if self.waves is not None:
            rates = torch.einsum("rt,btn->brn", self.waves, x.view(self.rows, self.length, -1).to(torch.complex64))
            off = torch.zeros(plan.groups, *rates.shape[1:], dtype=torch.complex128)
            off.index_add_(0, self.group, rates.to(torch.complex128))
            sums.off[:, :, where] += off.numpy()
