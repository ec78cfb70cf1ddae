"""How well an autoencoder explains a model's activations: variance, sparsity, dead features, and the loss it costs.

Every number is taken over the tokens that count (no special tokens unless asked), with the definitions of SAELens 6: mse is
the squared error summed over coordinates, per token; explained variance 1 - mse / total variance of the rows; l0 the active
features per token; the loss score (CE under ablation - CE with the reconstruction) / (CE under ablation - CE of the model),
1 for a perfect reconstruction. Beside zero ablation, as there, the score is given for ablation to the mean of the text, the
harder comparison. Values of tokens that don't count are left alone.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.data.batches import Batch, Budget, Selection
from patchclamp.data.corpora import Corpus
from patchclamp.measure.likelihood import Documents, Reading, score
from patchclamp.measure.tables import html_table, rich_table
from patchclamp.models.hooks import Seen, change, observe, run
from patchclamp.read.files import load_reading, save_reading
from patchclamp.read.sae_kinds import SAE

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

ALL = "all labels"
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_NUMBERS = 2**25  # features of rows that are held at once: rows x features
_SHOWN = {
    "explained_variance": "explained",
    "l0": "L0",
    "dead": "dead",
    "loss": "loss",
    "loss_sae": "with SAE",
    "recovered": "recovered",
    "recovered_mean": "vs mean",
}


@dataclass
class SAEEvaluation:
    """What `evaluate_sae` found. table: label -> metric -> value, with "all labels" last. density: (n_features,) float64, the
    share of tokens at which each feature is active; strength: its mean value where it is. dictionary: kind, place, size and
    fingerprint of the autoencoder."""

    dictionary: dict[str, Any]
    table: dict[str, dict[str, float]]
    density: NDArray[np.float64]
    strength: NDArray[np.float64]
    provenance: dict[str, Any]

    @property
    def overall(self) -> dict[str, float]:
        """The metrics over all labels."""
        return self.table[ALL] if ALL in self.table else next(iter(self.table.values()))

    def rows(self) -> list[dict[str, Any]]:
        """One dict per label, and one for all."""
        return [{"text": label, **metrics} for label, metrics in self.table.items()]

    def __rich__(self) -> Any:
        """What matters of it as a table that fits a terminal."""
        return rich_table(self._title, self._shown_rows(), ("text", *_SHOWN.values()))

    def _repr_html_(self) -> str:
        return html_table(self._title, self._shown_rows(), ("text", *_SHOWN.values()))

    @property
    def _title(self) -> str:
        own = self.dictionary
        return f"{own['name']}.{own['layer']}: {own['n_features']:,} {own['kind']} features of {own['site']}.{own['layer']}"

    def _shown_rows(self) -> list[dict[str, Any]]:
        return [{"text": row["text"], **{short: row.get(key) for key, short in _SHOWN.items()}} for row in self.rows()]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; densities as quantiles of the features that fire (log10)."""
        alive = self.density[self.density > 0]
        spread = np.quantile(np.log10(alive), _QUANTILES).tolist() if len(alive) else []
        return {
            "dictionary": self.dictionary,
            "metrics": self.table,
            "density_log10": dict(zip(map(str, _QUANTILES), spread, strict=False)),
            "provenance": self.provenance,
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write `patchclamp.reading/1`: the table as JSON, densities and strengths beside it."""
        arrays = {"density": self.density, "strength": self.strength}
        body = {"dictionary": self.dictionary, "metrics": self.table}
        return save_reading(path, "sae", body, provenance=self.provenance, arrays=arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SAEEvaluation:
        """Read what `save` wrote."""
        body, arrays = load_reading(path, "sae")
        return cls(body["dictionary"], body["metrics"], arrays["density"], arrays["strength"], body["provenance"])


def evaluate_sae(
    sae: SAE,
    model: LanguageModel,
    text: Corpus,
    *,
    loss: bool = True,
    batch_tokens: int = 4096,
    max_length: int | None = None,
    select: Selection | None = None,
    quiet: bool = False,
) -> SAEEvaluation:
    """Read the text with the model and measure the autoencoder on it, per label and over all.

    loss: also run the model four times (as it is, with reconstructions, with zeros, with the mean of the text in place of the
    activations) for the loss. batch_tokens, max_length, select: how text is cut and which tokens count, as in `perplexity`.
    Two passes over the text; sums in float64. Take text that the autoencoder was not trained on. Raises InputError for an
    autoencoder of another width, MismatchError for one of another model.
    """
    sae = sae.on(_device(sae, model))
    reading = Reading(batch_tokens, max_length, select or Selection())
    sums = {label: Sums(sae) for label in text.labels}
    for label in text.labels:
        with progress(f"features {label}", unit="tokens", quiet=quiet) as advance:
            for batch in reading.batches(model, text, label):
                for rows in in_pieces(sae, tapped(model, sae, batch)):
                    sums[label].add(sae, rows)
                advance(float(batch.attention_mask.sum()))
    whole = Sums(sae)
    for one in sums.values():
        whole.merge(one)
    if not whole.n:
        raise InputError("no token of the text counts; choose other text or another selection")
    table = {label: one.metrics() for label, one in sums.items() if one.n}
    if loss:
        costs = _losses(sae, model, text, reading, (whole.total / whole.n).float(), quiet)
        for label, found in costs.items():
            table.setdefault(label, {}).update(found)
    if len(text.labels) > 1:
        table[ALL] = {**whole.metrics(), **(costs[ALL] if loss else {})}
    made = provenance(
        "read.evaluate_sae",
        arguments={"loss": loss, **reading.to_dict()},
        inputs={"model": dict(model.identity), "text": text.identity, "features": described(sae)},
    )
    strength = whole.active / whole.fired.clamp_min(1)
    return SAEEvaluation(
        described(sae), table, (whole.fired / whole.n).double().cpu().numpy(), strength.cpu().numpy(), made
    )


def described(sae: SAE) -> dict[str, Any]:
    """What an autoencoder is, as plain data."""
    keys = ("kind", "name", "site", "layer", "d_in", "n_features", "settings", "fingerprint")
    return {key: sae.header[key] for key in keys} | {"folder": None if sae.folder is None else str(sae.folder)}


def tapped(model: LanguageModel, sae: SAE, batch: Batch) -> Tensor:
    """(n, d_in): what the autoencoder's site holds for the tokens of a batch that count; nothing above is computed."""
    kept: list[Tensor] = []
    mask = None if bool(batch.attention_mask.all()) else batch.attention_mask
    with observe(model, [(sae.site, sae.layer)], lambda seen: kept.append(seen.values)):
        run(model, batch.input_ids, mask, stop_after=(sae.site, sae.layer))
    return kept[0][batch.keep.reshape(-1).to(kept[0].device)]


def in_pieces(sae: SAE, rows: Tensor) -> tuple[Tensor, ...]:
    """(n, d_in) rows, in pieces of so few that their features fit in memory."""
    return rows.split(max(1, _NUMBERS // sae.n_features))


@contextlib.contextmanager
def replaced(model: LanguageModel, sae: SAE, keep: Tensor, by: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Put by(values) in place of the site's values where `keep`, (B, S) bool; for forward passes over that batch."""

    def swap(seen: Seen) -> Tensor:
        where = keep.reshape(-1).to(seen.values.device)
        new = seen.values.clone()
        new[where] = by(seen.values[where]).to(new.dtype)
        return new

    with change(model, {(sae.site, sae.layer): swap}):
        yield


@dataclass
class Sums:
    """Sums over tokens while they grow, float64."""

    sae: SAE = field(repr=False)
    n: int = 0

    def __post_init__(self) -> None:
        self.total, self.fired, self.active = (
            torch.zeros(size, dtype=torch.float64, device=self.sae.device)
            for size in (self.sae.d_in, self.sae.n_features, self.sae.n_features)
        )
        self.scalars = torch.zeros(3, dtype=torch.float64, device=self.sae.device)  # |x|^2, |error|^2, cosine

    @torch.no_grad()
    def add(self, sae: SAE, rows: Tensor) -> None:
        """Count rows, (n, d_in)."""
        if not len(rows):
            return
        x = rows.to(sae.dtype)
        features, back = sae.encode(x), sae.reconstruct(x)
        wide, error = x.double(), (x - back).double()
        cosine = torch.nn.functional.cosine_similarity(x, back, dim=1).double().sum()
        self.n += len(x)
        self.total += wide.sum(0)
        self.fired += (features > 0).sum(0)
        self.active += features.sum(0, dtype=torch.float64)
        self.scalars += torch.stack([wide.square().sum(), error.square().sum(), cosine])

    def merge(self, other: Sums) -> None:
        """Add another's sums."""
        self.n += other.n
        for name in ("total", "fired", "active", "scalars"):
            getattr(self, name).add_(getattr(other, name))

    def metrics(self) -> dict[str, float]:
        """explained_variance, mse, l0, dead (share of features that never fired), cosine, tokens."""
        squares, error, cosine = (self.scalars / self.n).tolist()
        variance = squares - float((self.total / self.n).square().sum())
        explained = 1 - error / variance if variance > 1e-10 else float(error < 1e-10)
        return {
            "explained_variance": explained,
            "l0": float(self.fired.sum() / self.n),
            "mse": error,
            "cosine": cosine,
            "dead": float((self.fired == 0).double().mean()),
            "tokens": float(self.n),
        }


def _losses(
    sae: SAE, model: LanguageModel, text: Corpus, reading: Reading, mean: Tensor, quiet: bool
) -> dict[str, dict[str, float]]:
    """label (and all) -> mean loss per token, nats, in the four conditions, and the scores."""
    values: Mapping[str, Callable[[Tensor], Tensor] | None] = {
        "loss": None,
        "loss_sae": lambda x: torch.cat([sae.reconstruct(rows.to(sae.dtype)) for rows in in_pieces(sae, x)]),
        "loss_zero": torch.zeros_like,
        "loss_mean": lambda x: mean.to(x).expand_as(x),
    }
    totals, tokens = dict.fromkeys(values, 0.0), 0
    found: dict[str, dict[str, float]] = {}
    for label in text.labels:
        documents, budget = Documents(label), Budget(reading.batch_tokens)
        with progress(f"loss {label}", unit="tokens", quiet=quiet) as advance:
            for batch in reading.batches(model, text, label):
                for name, by in values.items():
                    documents.add(name, batch.document, score(model, batch, budget, _forward(model, sae, by)))
                documents.count(batch)
                advance(float(batch.attention_mask.sum()))
        documents.check()
        here, count = {name: float(documents.totals[name].sum()) for name in values}, int(documents.tokens.sum())
        found[label] = _scores({name: total / count for name, total in here.items()})
        totals, tokens = {name: totals[name] + here[name] for name in values}, tokens + count
    return (
        {**found, ALL: _scores({name: total / tokens for name, total in totals.items()})} if len(found) > 1 else found
    )


def _forward(model: LanguageModel, sae: SAE, by: Callable[[Tensor], Tensor] | None) -> Callable[[Batch], Tensor]:
    def forward(part: Batch) -> Tensor:
        swapped = contextlib.nullcontext() if by is None else replaced(model, sae, part.keep, by)
        with swapped:
            return model.logits(part.input_ids, part.attention_mask)

    return forward


def _scores(losses: dict[str, float]) -> dict[str, float]:
    def recovered(ablated: str) -> float:
        gap = losses[ablated] - losses["loss"]
        return (losses[ablated] - losses["loss_sae"]) / gap if gap else float("nan")

    return {**losses, "recovered": recovered("loss_zero"), "recovered_mean": recovered("loss_mean")}


def _device(sae: SAE, model: LanguageModel) -> torch.device:
    """Where the autoencoder's layer is; refuses an autoencoder that doesn't fit the model."""
    if sae.model and sae.model.get("fingerprint") != model.fingerprint:
        raise MismatchError(f"{sae!r} was made for the model {sae.model.get('name')}, not for {model.name}")
    entry = model.anatomy.site(sae.site, sae.layer)
    if entry.total_experts or len(entry.places) > 1:
        raise InputError(
            f"{sae!r}: {sae.site} of layer {sae.layer} is split over experts; take a dense site, such as mlp_out"
        )
    if entry.total_width != sae.d_in:
        raise InputError(
            f"{sae!r} takes rows of {sae.d_in}, but {sae.site}.{sae.layer} has {entry.total_width} coordinates"
        )
    held = next(model.anatomy.module(entry.path).parameters(), None)
    return model.device if held is None or held.is_meta else held.device
