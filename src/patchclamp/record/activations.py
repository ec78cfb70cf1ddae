"""Activation vectors of one site of one layer in blocks: from a recording, from a running model, or from a tensor.

Whatever learns from activations (sparse autoencoders, matrix factorisation, PCA, differences of means) reads `Activations`, so
that the same code works on what is on disk and on what is computed on the way.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError, ModelError
from patchclamp.data.batches import PIECE, Batch, Budget, Selection, batches
from patchclamp.data.corpora import Corpus
from patchclamp.models.fast_passes import fast_passes
from patchclamp.models.hooks import Seen, observe, run
from patchclamp.record.shards import Cut, Shard, ShardStream, check_positive
from patchclamp.record.statistics.activations import RawActivations, StoredRows

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel
    from patchclamp.record.recording import Recording

_AT_ONCE = 16  # batches of tokens that a running model's rows are gathered over
_SHUFFLED = 16  # blocks that a running model's rows are shuffled within
_SHARD_DOCUMENTS = 1 << 16


class Activations(abc.ABC):
    """Rows of activations, (n, width): what a site of a layer holds for each token that counts.

    width: units. n: rows, None while it isn't known. site, layer: where they come from, None for a plain tensor. model: name
    and fingerprint of their model, {} if unknown. `blocks()` can be called again and gives the same rows.
    """

    width: int
    n: int | None
    site: str | None = None
    layer: int | None = None
    model: dict[str, Any]

    @staticmethod
    def of_recording(
        recording: Recording, site: str, layer: int, labels: str | Sequence[str] | None = None
    ) -> Activations:
        """The rows that a recording kept (statistic "activations"), label after label; read from disk as they are needed."""
        return _Recorded(recording, site, layer, labels)

    @staticmethod
    def live(
        model: LanguageModel,
        text: Corpus,
        site: str,
        layer: int,
        *,
        select: Selection | None = None,
        batch_tokens: int = 1024,
        max_tokens: int | None = None,
        max_length: int | None = None,
    ) -> Activations:
        """The rows of a model that reads the text anew for every pass over the blocks; nothing above the layer is computed.

        select: which tokens count. batch_tokens: positions per batch; halved where memory runs out. max_tokens: per label.
        max_length: longest sequence (default: the model's, at most 2,048).
        """
        return _Live(model, text, site, layer, select or Selection(), batch_tokens, max_tokens, max_length)

    @staticmethod
    def of_tensor(rows: Any, *, site: str | None = None, layer: int | None = None, model: Any = None) -> Activations:
        """Rows that are there already: (n, width), a tensor or an array. site, layer, model: what they are of, if it is known."""
        return _Held(rows, site, layer, model)

    @abc.abstractmethod
    def blocks(self, rows: int = 4096, *, seed: int | None = None) -> Iterator[Tensor]:
        """Tensors (at most `rows`, width) float32 in text order; with a seed shuffled, always alike for the same seed.

        A running model's rows are shuffled among 16 blocks, its labels taking turns; all others over the whole.
        """

    def documents(self) -> NDArray[np.int64]:
        """(n,) number of each row's document within its label, in text order."""
        return self._tokens()[0]

    def positions(self) -> NDArray[np.int64]:
        """(n,) position of each row's token in its document, in text order."""
        return self._tokens()[1]

    def all(self) -> Tensor:
        """Every row at once, (n, width) float32: for small data."""
        found = list(self.blocks())
        return torch.cat(found) if found else torch.zeros(0, self.width)

    @property
    def source(self) -> dict[str, Any]:
        """Plain data on where the rows come from, for the provenance of what is learnt from them."""
        return {"site": self.site, "layer": self.layer, "model": self.model}

    def _tokens(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        raise InputError(f"{self!r} doesn't know its tokens; take activations of a recording or of a running model")

    def __repr__(self) -> str:
        where = "" if self.site is None else f"{self.site}.{self.layer}: "
        return f"Activations({where}{'?' if self.n is None else self.n} x {self.width})"


class _Held(Activations):
    def __init__(self, rows: Any, site: str | None, layer: int | None, model: Any) -> None:
        self._rows = torch.as_tensor(rows).detach()
        if self._rows.dim() != 2 or not self._rows.shape[1]:
            raise InputError(f"activations have shape {tuple(self._rows.shape)}; (rows, width) is needed")
        self.n, self.width = int(self._rows.shape[0]), int(self._rows.shape[1])
        self.site, self.layer, self.model = site, layer, _named(model)

    def blocks(self, rows: int = 4096, *, seed: int | None = None) -> Iterator[Tensor]:
        check_positive(rows=rows)
        order = _order(len(self._rows), seed)
        for start in range(0, len(self._rows), rows):
            if order is None:
                yield self._rows[start : start + rows].float()
            else:
                yield self._rows[torch.from_numpy(order[start : start + rows]).to(self._rows.device)].float()


class _Recorded(Activations):
    def __init__(self, recording: Recording, site: str, layer: int, labels: str | Sequence[str] | None) -> None:
        chosen = (labels,) if isinstance(labels, str) else tuple(recording.labels if labels is None else labels)
        if not chosen:
            raise InputError(f"no labels given; the recording has {', '.join(recording.labels)}")
        if "activations" not in recording.statistics:
            raise InputError(
                f"the recording has {', '.join(recording.statistics)} but not activations; record it with "
                'statistics=["activations"] (--statistics activations)'
            )
        self._recording, self.labels = recording, chosen
        self._kept: list[RawActivations] = [recording.get("activations", label, site) for label in chosen]
        self._rows: list[StoredRows] = [kept.rows(layer) for kept in self._kept]
        self._starts = np.concatenate([[0], np.cumsum([len(rows) for rows in self._rows])])
        self.n, self.width = int(self._starts[-1]), self._rows[0].shape[1]
        self.site, self.layer, self.model = site, layer, _named(recording.model)

    @property
    def source(self) -> dict[str, Any]:
        folder = self._recording.folder
        named = {"fingerprint": self._recording.fingerprint, "path": None if folder is None else str(folder.absolute())}
        return {**super().source, "recording": named, "labels": list(self.labels)}

    def blocks(self, rows: int = 4096, *, seed: int | None = None) -> Iterator[Tensor]:
        check_positive(rows=rows)
        order = _order(int(self.n or 0), seed)
        for start in range(0, int(self.n or 0), rows):
            stop = min(start + rows, int(self.n or 0))
            yield self._taken(np.arange(start, stop) if order is None else order[start:stop])

    def _taken(self, numbers: NDArray[np.int64]) -> Tensor:
        found = torch.empty(len(numbers), self.width)
        for first, last, rows in zip(self._starts[:-1], self._starts[1:], self._rows, strict=True):
            mine = np.flatnonzero((numbers >= first) & (numbers < last))
            if len(mine):
                found[torch.from_numpy(mine)] = rows.take(numbers[mine] - first)
        return found

    def _tokens(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return (
            np.concatenate([kept.document for kept in self._kept]),
            np.concatenate([kept.position for kept in self._kept]),
        )


class _Live(Activations):
    def __init__(
        self,
        model: LanguageModel,
        text: Corpus,
        site: str,
        layer: int,
        select: Selection,
        batch_tokens: int,
        max_tokens: int | None,
        max_length: int | None,
    ) -> None:
        check_positive(batch_tokens=batch_tokens, max_tokens=max_tokens, max_length=max_length)
        if not isinstance(text, Corpus):
            raise InputError(f"text is {type(text).__name__}; give a corpus, as in corpus(en='en.txt')")
        model.anatomy.site(site, layer)
        if max_length is not None and max_length > model.max_length:
            raise InputError(f"max_length={max_length} given, but {model.name} takes at most {model.max_length} tokens")
        self._model, self._budget = model, Budget(batch_tokens)
        limited = text.limited(max_documents=text.max_documents, max_tokens=max_tokens)
        self._text = limited if max_tokens is not None else text
        length = min(model.max_length, PIECE) if max_length is None else max_length
        self._cut = Cut(length, select, _AT_ONCE * batch_tokens, _SHARD_DOCUMENTS)
        self.site, self.layer, self.model = site, layer, _named(model)
        self.width, self.n = model.layouts[site].widths[layer], None
        self._known: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    @property
    def source(self) -> dict[str, Any]:
        return {
            **super().source,
            "corpus": self._text.identity,
            "select": self._cut.select.to_dict(),
            "max_length": self._cut.max_length,
        }

    def blocks(self, rows: int = 4096, *, seed: int | None = None) -> Iterator[Tensor]:
        check_positive(rows=rows)
        streams = [self._shards(label) for label in self._text.labels]
        if seed is not None:
            yield from _shuffled(_in_turn(streams, self._values), rows, seed)
            return
        counted = 0
        for block in _cut(map(self._values, itertools.chain.from_iterable(streams)), rows):
            counted += len(block)
            yield block
        self.n = counted

    def _shards(self, label: str) -> Iterator[Shard]:
        return iter(ShardStream(self._model.tokenizer, self._text, label, self._cut, {}))

    def _values(self, shard: Shard) -> Tensor:
        """(tokens, width) of a shard in text order, on the device of the layer."""
        parts: list[tuple[Batch, Tensor]] = []
        for batch in batches(shard.pieces, token_budget=self._budget.tokens, pad_id=self._model.pad_id):
            parts += self._budget.run(self._seen, batch)
        if not parts:
            return torch.zeros(0, self.width)
        document, position = (
            np.concatenate(each) for each in zip(*(_places(batch) for batch, _ in parts), strict=True)
        )
        values = torch.cat([values for _, values in parts])
        found = values[torch.from_numpy(np.lexsort((position, document))).to(values.device)]
        if not bool(torch.isfinite(found).all()):
            raise ModelError(
                f"a NaN or infinite activation at {self.site}.{self.layer} in documents {shard.first}-{shard.stop - 1} of label "
                f"{shard.label!r}; check the weights, or load the model in float32 or bfloat16"
            )
        return found

    def _seen(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The batch and the values of its tokens that count."""
        tap = (str(self.site), int(self.layer or 0))
        kept: list[Tensor] = []

        def see(seen: Seen) -> None:
            if not kept:
                kept.append(torch.zeros(batch.keep.numel(), self.width, device=seen.values.device))
            columns = slice(seen.offset, seen.offset + seen.values.shape[1])
            rows = slice(None) if seen.rows is None else seen.rows
            kept[0][rows, columns] = seen.values.float()

        mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
        with fast_passes(self._model), observe(self._model, [tap], see):
            run(self._model, batch.input_ids, mask, stop_after=tap)
        if not kept:  # experts that no token was sent to
            kept.append(torch.zeros(batch.keep.numel(), self.width))
        # a copy outside of inference mode: what learns from it may need gradients
        return batch, kept[0][batch.keep.reshape(-1).to(kept[0].device)].clone()

    def _tokens(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._known is None:
            places = [_text_order(shard) for label in self._text.labels for shard in self._shards(label)]
            document, position = (np.concatenate(each) for each in zip(*places, strict=True))
            self._known, self.n = (document, position), len(document)
        return self._known


def _places(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(document, position) of the tokens of a batch that count."""
    row, column = np.nonzero(batch.keep.numpy())
    return batch.document.numpy()[row], batch.start.numpy()[row] + column


def _text_order(shard: Shard) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(document, position) of the tokens of a shard that count, in text order."""
    document, position = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for piece in shard.pieces:
        columns = np.arange(len(piece.ids)) if piece.keep is None else np.flatnonzero(piece.keep)
        document.append(np.full(len(columns), piece.document, dtype=np.int64))
        position.append(piece.start + columns)
    documents, positions = np.concatenate(document), np.concatenate(position)
    order = np.lexsort((positions, documents))
    return documents[order], positions[order]


def _cut(parts: Iterable[Tensor], rows: int) -> Iterator[Tensor]:
    """Parts of any lengths as blocks of `rows` rows; the last may be shorter."""
    held: list[Tensor] = []
    count = 0
    for part in parts:
        held.append(part)
        count += len(part)
        if count < rows:
            continue
        whole = torch.cat(held)
        whole_blocks = count // rows * rows
        yield from whole[:whole_blocks].split(rows)
        held, count = [whole[whole_blocks:]], count - whole_blocks
    if count:
        yield torch.cat(held)


def _in_turn(streams: Sequence[Iterator[Shard]], values: Any) -> Iterator[Tensor]:
    """The shards of several labels, one of each label after another until none is left."""
    waiting = list(streams)
    while waiting:
        for stream in list(waiting):
            shard = next(stream, None)
            if shard is None:
                waiting.remove(stream)
            else:
                yield values(shard)


def _shuffled(parts: Iterable[Tensor], rows: int, seed: int) -> Iterator[Tensor]:
    """Rows drawn from a buffer of 16 blocks that is filled up again from the parts."""
    rng = np.random.default_rng(seed)
    held: Tensor | None = None
    for part in parts:
        held = part if held is None else torch.cat([held, part.to(held.device)])
        while len(held) >= _SHUFFLED * rows:
            held = held[torch.from_numpy(rng.permutation(len(held))).to(held.device)]
            half = len(held) // 2 // rows * rows
            yield from held[:half].split(rows)
            held = held[half:]
    if held is not None and len(held):
        yield from held[torch.from_numpy(rng.permutation(len(held))).to(held.device)].split(rows)


def _order(n: int, seed: int | None) -> NDArray[np.int64] | None:
    return None if seed is None else np.random.default_rng(seed).permutation(n)


def _named(model: Any) -> dict[str, Any]:
    identity = getattr(model, "identity", model) or {}
    return {key: identity[key] for key in ("name", "fingerprint") if key in identity}
