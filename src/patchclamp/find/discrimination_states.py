"""The states of a model at chosen places of a text, one array per site and layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from patchclamp.core.progress import progress
from patchclamp.data.batches import Batch, Budget, SpecialTokens, Tokens, batches, encode
from patchclamp.data.corpora import Corpus
from patchclamp.find.discrimination_samples import Sample
from patchclamp.models.fast_passes import fast_passes
from patchclamp.models.hooks import Seen, Tap, observe, run

if TYPE_CHECKING:
    from patchclamp.models import LanguageModel

BAG = ("bag", 0)  # not a tap: the mean embedding of the last nine tokens
WINDOW = 9
AT_ONCE = 256  # documents whose pieces are held to be batched
States = dict[Tap, NDArray[np.float32]]


def states(
    model: LanguageModel,
    text: Corpus,
    samples: Sequence[Sample],
    taps: Sequence[Tap],
    *,
    batch_tokens: int = 4096,
    max_length: int | None = None,
    quiet: bool = True,
) -> States:
    """(site, layer) -> (samples, width) float32; with the tap ("embed", 0) also BAG, the mean of the last nine embeddings.

    Only documents with a sample are run, and only up to the last layer asked for. An expert's units count 0 for tokens that
    it did not get. Memory: samples * units of all taps * 4 bytes.
    """
    frame = SpecialTokens.of(model.tokenizer)
    length = min(max_length or model.max_length, model.max_length)
    room = length - len(frame.before) - len(frame.after)
    places: dict[tuple[str, int, int], list[tuple[int, int]]] = defaultdict(list)
    for row, one in enumerate(samples):
        start = one.token // room * room
        places[one.text, one.document, start].append((one.token - start + len(frame.before), row))
    widths = {tap: model.layouts[tap[0]].widths[tap[1]] for tap in taps}
    found = {tap: np.zeros((len(samples), width), dtype=np.float32) for tap, width in widths.items()}
    if ("embed", 0) in found:
        found[BAG] = np.zeros_like(found["embed", 0])
    last = max(taps, key=lambda tap: (tap[0] != "embed", tap[1]))
    stop = None if sum(tap[1] == last[1] and tap[0] != "embed" for tap in taps) > 1 else last
    budget = Budget(batch_tokens)
    with fast_passes(model), progress("states", total=len(places), unit="passages", quiet=quiet) as advance:
        for name in text.labels:
            wanted = {document for label, document, _ in places if label == name}
            for group in _pieces(model.tokenizer, text, name, wanted, length):
                kept = [piece for piece in group if (name, piece.document, piece.start) in places]
                for batch in batches(kept, token_budget=budget.tokens, pad_id=model.pad_id):
                    budget.run(lambda part, label=name: _run(model, part, label, places, found, frame, stop), batch)  # type: ignore[misc]
                advance(len(kept))
    return found


def _pieces(tokenizer: Any, text: Corpus, name: str, wanted: set[int], length: int) -> Iterator[list[Tokens]]:
    """Pieces of the wanted documents, some documents at a time, numbered as in the text."""
    numbered = ((number, one) for number, one in enumerate(text.documents(name)) if number in wanted)
    while group := list(islice(numbered, AT_ONCE)):
        numbers, documents = zip(*group, strict=True)
        pieces: Iterable[Tokens] = encode(tokenizer, documents, max_length=length)
        yield [Tokens(piece.ids, piece.keep, numbers[piece.document], piece.start) for piece in pieces]


def _run(
    model: LanguageModel,
    batch: Batch,
    label: str,
    places: dict[tuple[str, int, int], list[tuple[int, int]]],
    found: States,
    frame: SpecialTokens,
    stop: Tap | None,
) -> None:
    """One forward pass; the values at the batch's places go into the arrays."""
    width = batch.input_ids.shape[1]
    flat: list[int] = []
    rows: list[int] = []
    keys = zip(batch.document.tolist(), batch.start.tolist(), strict=True)
    for at, (document, start) in enumerate(keys):
        for column, row in places[label, document, start]:
            flat.append(at * width + column)
            rows.append(row)
    where, target = torch.tensor(flat, device=model.device), np.array(rows)
    first = len(frame.before)

    def see(one: Seen) -> None:
        values = one.values.detach()
        if one.site == "embed" and BAG in found:
            for position, row in zip(flat, rows, strict=True):
                begin = max(position - WINDOW + 1, position - position % width + first)
                found[BAG][row] = values[begin : position + 1].float().mean(0).cpu().numpy()
        columns = slice(one.offset, one.offset + values.shape[1])
        if one.rows is None:
            found[one.site, one.layer][target, columns] = values[where.to(values.device)].float().cpu().numpy()
            return
        at = torch.full((len(batch) * width,), -1, dtype=torch.long, device=one.rows.device)
        at[one.rows] = torch.arange(len(one.rows), device=one.rows.device)
        here = at[where.to(at.device)]
        mine = (here >= 0).cpu().numpy()
        found[one.site, one.layer][target[mine], columns] = values[here[here >= 0]].float().cpu().numpy()

    with observe(model, [tap for tap in found if tap != BAG], see):
        run(model, batch.input_ids.to(model.device), batch.attention_mask.to(model.device), stop_after=stop)
