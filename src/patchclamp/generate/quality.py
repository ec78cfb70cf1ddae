"""What core neurons cost in quality: perplexity, agreement and divergence from the whole model, against the share kept.

Every text is cut in two: its first part is read as a prompt, its second part is scored token by token with the neurons chosen on
the first, through the same sub-matrices and KV cache that generation uses. Nothing of the scored part is used to choose.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.data.batches import encode
from patchclamp.data.corpora import Corpus
from patchclamp.generate.core_sparse import core_sparse
from patchclamp.generate.guides import Guide
from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

SUMS = ("loss", "plain_loss", "divergence", "agreed", "tokens")  # columns of a document's sums


def core_quality(
    model: LanguageModel,
    text: Corpus,
    *,
    shares: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0),
    guides: Mapping[str, Any] | Sequence[str] = ("prompt", "random", "oracle"),
    length: int = 128,
    prompt: float = 0.5,
    chunk: int | None = None,
    batch_rows: int = 16,
    resamples: int = 1000,
    seed: int = 0,
    quiet: bool = False,
    **options: Any,
) -> CoreQuality:
    """Perplexity, KL divergence and token agreement with the whole model, per guide and share of neurons.

    text: documents of all labels together; of each its first `length` tokens are used, shorter than half of that it is left
    out. guides: as in `core_sparse`, by name, or a mapping from names to guides. prompt: the part of a text that is read as a
    prompt; the rest is scored, but for its first token, which the whole model predicts. chunk: so many tokens of the rest are
    read at once (None: all), of which `refresh` takes notice. batch_rows: texts of equal length read at once. resamples: of
    documents, for intervals. options: those of `core_sparse`. InputError where no text is long enough.
    """
    named = dict(guides) if isinstance(guides, Mapping) else {str(guide): guide for guide in guides}
    if not 0 < prompt < 1:
        raise InputError(f"prompt={prompt} given; it is the part of a text that is read first, between 0 and 1")
    if chunk is not None and chunk < 1:
        raise InputError(f"chunk={chunk} given; it is a number of tokens, at least 1, or None")
    if not named or not list(shares):
        raise InputError("no guide or no share given, so there is nothing to measure")
    rows = _rows(model, text, length)
    batches = list(_batches(rows, batch_rows))
    settings = {"min_tokens": 0, "seed": seed, **options}
    found = []
    runs = [(name, guide, share) for name, guide in named.items() for share in _shares(guide, shares)]
    sums: dict[tuple[str, float], list[NDArray[np.float64]]] = {(name, share): [] for name, _, share in runs}
    steps: dict[tuple[str, float], list[NDArray[np.float64]]] = {key: [] for key in sums}
    kept: dict[tuple[str, float], float] = {}
    with progress("core neurons", len(runs) * len(batches), unit="batches", quiet=quiet) as advance:
        for ids in batches:
            split = min(max(1, round(prompt * ids.shape[1])), ids.shape[1] - 2)
            plain = _log_probabilities(model, ids, split, chunk)
            for name, guide, share in runs:
                with core_sparse(model, share=share, guide=guide, **settings) as sparse:
                    now = _log_probabilities(model, ids, split, chunk)
                    here = sparse.bytes
                total, step = _sums(plain, now, ids[:, split + 1 :])
                sums[name, share].append(total)
                steps[name, share].append(step)
                kept[name, share] = here["read"] / here["whole"]
                advance(1)
    for name, _, share in runs:
        found.append(_row(name, share, np.concatenate(sums[name, share]), kept[name, share], resamples, seed))
        found[-1]["losses"] = np.concatenate(sums[name, share])[:, 0].tolist()
        found[-1]["steps"] = _means(steps[name, share])
    arguments = {
        "shares": list(shares),
        "guides": list(named),
        "length": length,
        "prompt": prompt,
        "chunk": chunk,
        **_plain(settings),
    }
    inputs = {"model": dict(model.identity), "text": text.identity}
    source = provenance("generate.core_quality", arguments=arguments, inputs=inputs, seed=seed)
    return CoreQuality(tuple(found), source)


@dataclass(frozen=True, eq=False)
class CoreQuality:
    """Rows of plain numbers, one per guide and share.

    guide, share; perplexity, plain_perplexity (whole model, same tokens); added: mean loss above the whole model's, nats per
    token, with its 95% bootstrap interval over documents (low, high); divergence: mean KL divergence of this model's next token
    from the whole model's, nats; agreement: share of tokens whose most likely next token is the same; read: bytes of the cut
    layers' MLP weights that the last batch's steps read, as a part of all (1 for guides that compute all neurons); losses:
    summed loss of every document, in the same order in all rows; steps: mean divergence at the first, second, ... token that is
    scored; documents, tokens.
    """

    rows: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, Any]

    def row(self, guide: str, share: float) -> Mapping[str, Any]:
        """The numbers of one guide and share."""
        for row in self.rows:
            if row["guide"] == guide and abs(row["share"] - share) < 1e-9:
                return row
        raise InputError(f"nothing was measured with guide {guide!r} at share {share}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"rows": [dict(row) for row in self.rows], "provenance": dict(self.provenance)}

    def chart(self, value: str = "added") -> Any:
        """Altair: a line per guide against the share of neurons; value: a key of the rows."""
        import altair as alt

        titles = {
            "added": "added loss, nats per token",
            "divergence": "KL divergence, nats",
            "agreement": "same next token",
        }
        values = [{key: row[key] for key in ("guide", "share", value)} for row in self.rows]
        return (
            alt.Chart(alt.Data(values=values), width=520, height=280)
            .mark_line(point=True)
            .encode(
                x=alt.X("share:Q", title="share of neurons kept"),
                y=alt.Y(f"{value}:Q", title=titles.get(value, value)),
                color=alt.Color("guide:N", title="", sort=list(dict.fromkeys(row["guide"] for row in self.rows))),
            )
        )

    def _repr_html_(self) -> str:
        from html import escape

        keys = ("guide", "share", "perplexity", "added", "divergence", "agreement")
        cells = "".join(
            "<tr>" + "".join(f"<td>{escape(_shown(row[key]))}</td>" for key in keys) + "</tr>" for row in self.rows
        )
        return f"<table><tr>{''.join(f'<th>{key}</th>' for key in keys)}</tr>{cells}</table>"

    def __repr__(self) -> str:
        lines = "".join(
            f"\n  {row['guide']:12} {row['share']:.0%}: perplexity {row['perplexity']:.2f} "
            f"(whole {row['plain_perplexity']:.2f}), KL {row['divergence']:.3f}, same next token {row['agreement']:.1%}"
            for row in self.rows
        )
        return f"CoreQuality({len(self.rows)} rows){lines}"


def _shares(guide: Any, shares: Sequence[float]) -> list[float]:
    """A unit set is what it is, whatever the share asked for."""
    if not isinstance(guide, UnitSet):
        return [float(share) for share in shares]
    layout = guide.layouts["mlp"]
    return [round(len(guide) / layout.total, 6)]


def _rows(model: LanguageModel, text: Corpus, length: int) -> list[list[int]]:
    """Ids of the beginning of every document that is long enough."""
    if not 6 <= length <= model.max_length:
        raise InputError(
            f"length={length} given; this model takes up to {model.max_length} tokens, and at least 6 are needed"
        )
    found = []
    for label in text.labels:
        for piece in encode(model.tokenizer, text.documents(label), max_length=length, max_tokens=text.max_tokens):
            if piece.start == 0 and len(piece.ids) >= max(6, length // 2):
                found.append([int(token) for token in piece.ids])
    if not found:
        raise InputError(f"no document has {max(6, length // 2)} tokens; give longer text, or a smaller length=")
    return found


def _batches(rows: list[list[int]], most: int) -> Iterator[Tensor]:
    """Rows of equal length, so that nothing is padded; longest first."""
    order = sorted(rows, key=lambda row: -len(row))
    while order:
        same = [row for row in order[:most] if len(row) == len(order[0])]
        yield torch.tensor(same)
        order = order[len(same) :]


def _log_probabilities(model: LanguageModel, ids: Tensor, split: int, chunk: int | None) -> Tensor:
    """(rows, positions, vocabulary) float32, of the tokens after the first one of the second part."""
    given = ids.to(model.device)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a text is shorter than a model likes, by design
        read = model.hf(input_ids=given[:, :split], use_cache=True)
        cache = getattr(read, "past_key_values", None)
        if cache is None:
            raise InputError(
                f"a {model.anatomy.model_type} model keeps no KV cache; its texts can't be read in two parts"
            )
        parts = []
        for piece in given[:, split:-1].split(chunk or ids.shape[1], dim=1):
            read = model.hf(input_ids=piece, past_key_values=cache, use_cache=True)
            cache = read.past_key_values
            parts.append(torch.log_softmax(read.logits.float(), -1))
        return torch.cat(parts, 1)


def _sums(plain: Tensor, now: Tensor, targets: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Per row: summed loss, the whole model's loss, KL divergence, agreeing tokens, tokens; and (rows, steps) divergence."""
    where = targets.to(now.device)[..., None]
    loss, before = (-given.gather(-1, where)[..., 0] for given in (now, plain))
    apart = (plain.exp() * (plain - now)).sum(-1)
    same = plain.argmax(-1) == now.argmax(-1)
    columns = [value.double().sum(1) for value in (loss, before, apart, same, torch.ones_like(loss))]
    return torch.stack(columns, 1).cpu().numpy(), apart.double().cpu().numpy()


def _means(steps: Sequence[NDArray[np.float64]]) -> list[float]:
    """Mean divergence at each step over the texts that reach it."""
    total, count = np.zeros(max(part.shape[1] for part in steps)), np.zeros(max(part.shape[1] for part in steps))
    for part in steps:
        total[: part.shape[1]] += part.sum(0)
        count[: part.shape[1]] += len(part)
    return [float(value) for value in total / count]


def _row(guide: str, share: float, sums: NDArray[np.float64], read: float, resamples: int, seed: int) -> dict[str, Any]:
    loss, plain, apart, agreed, tokens = sums.sum(0)
    drawn = resampled_sums(sums, resamples=resamples, seed=seed)
    low, high = percentile_interval((drawn[:, 0] - drawn[:, 1]) / drawn[:, 4])
    return {
        "guide": guide, "share": share, "perplexity": float(np.exp(loss / tokens)),
        "plain_perplexity": float(np.exp(plain / tokens)), "added": float((loss - plain) / tokens), "low": low, "high": high,
        "divergence": float(apart / tokens), "agreement": float(agreed / tokens), "read": read, "documents": len(sums),
        "tokens": int(tokens),
    }  # fmt: skip


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as data: a guide or a folder by its name."""
    return {
        key: value if isinstance(value, int | float | str | list | tuple | None) else str(value)
        for key, value in settings.items()
        if not isinstance(value, Guide)
    }


def _shown(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
