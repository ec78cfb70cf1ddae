"""The tokens that every unit promotes and suppresses: its direction in the residual stream times the LM head.

Davies 2025, arXiv 2501.02688 (rows of the up projection, no norm); nostalgebraist 2020 and Geva et al. 2022, arXiv
2203.14680 (what a neuron writes). No data is needed: z = W_U w for every unit, block by block, and only the ends of each
row are kept.

Logits are cap * tanh(scale * W_U norm(x) / cap). A soft cap is monotone: it changes no ranking, and near 0 no value either, so
values are those without it, except with norm="final", where w is taken for a whole state. A logit scale multiplies values.

Differs from the paper: what a unit writes (`mlp`) is the default, since that is what clamping the unit adds; `up`, the paper's
choice, says what the unit listens for. The final norm is folded in by default.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.core.memory import kept_memory
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.models.directions import chosen_rows, output_directions, sites_with_directions, untraced
from patchclamp.models.head import Head, head_of
from patchclamp.models.units import UnitSet
from patchclamp.read.registry import readings
from patchclamp.read.token_map import TokenMap
from patchclamp.read.topk import Scan, ends

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

__all__ = ["TokenMap", "output_directions", "sites_with_directions", "tokens", "tokens_of"]

NORMS = ("fold", "none", "final")
SCORES = ("dot", "cosine")
_TILE = 8192  # rows of the head turned to float32 at once


@readings.add("tokens")
def tokens(
    model: LanguageModel,
    *,
    sites: str | Sequence[str] = "mlp",
    units: UnitSet | Sequence[str] | None = None,
    k: int = 20,
    norm: Literal["fold", "none", "final"] = "fold",
    score: Literal["dot", "cosine"] = "dot",
    ends: Literal["both", "top"] = "both",
    bias: bool = False,
    probabilities: bool = False,
    head: LanguageModel | None = None,
    quiet: bool = False,
) -> TokenMap:
    """The k tokens that each unit promotes most and suppresses most, exactly, for every unit of some sites.

    sites: mlp, attn, head, resid, embed, mlp_out, attn_out and features say what units write; up, gate, pre, q, k, v what
    they listen for. units: only these (names or a set); sites is then not used. k: tokens at each end. norm: fold the
    final norm's gain into written directions and the gain of the norm in front of a projection into read ones; or none;
    or final, which takes each direction for a residual state and gives its logits. score: dot is the change of the logit
    per unit of activation, up to the size of the state; cosine leaves the length of units and tokens out. ends: both, or
    top only. bias: add the head's bias. probabilities: also the entropy and the logarithm of the sum of each unit's
    softmax over all tokens (needs time; comparable between units with norm=final only). head: read with the LM head of
    another model with the same width. quiet: no progress bar.

    Memory: a block of logits (at most 112 MiB on a CPU, 2 GiB on a GPU) and the k tokens. Values are float32, whatever the
    dtype of the model. Equal values go to the lowest token; a unit whose direction is zero is marked undefined.
    Raises InputError for a model without an LM head and sites without directions, ModelError for weights that are not finite.

    Example: `patchclamp read tokens demo --units mlp.4.17,mlp.5.3 --k 8`.
    """
    _check(norm, score, ends)
    chosen = _chosen(model, sites, units)
    readout = Readout(_head(model, head), k, norm, score, ends == "both", bias, probabilities)
    total = sum(model.layouts[site].total if where is None else len(where) for site, where in chosen.items())
    parts: list[dict[str, NDArray[Any]]] = []
    positions: dict[str, NDArray[np.int64]] = {}
    with progress("tokens", total, unit="units", quiet=quiet) as advance, kept_memory():
        for site, where in chosen.items():
            placed: list[NDArray[np.int64]] = []
            for flat, rows, reads in site_rows(model, site, where, fold=norm == "fold"):
                for part, count in readout(rows, reads):
                    parts.append(part)
                    advance(count)
                placed.append(flat)
            positions[site] = np.concatenate(placed)
    arguments = {
        "sites": list(chosen), "k": k, "norm": norm, "score": score, "ends": ends, "bias": bias,
        "probabilities": probabilities,
    }  # fmt: skip
    inputs: dict[str, Any] = {"model": model.identity}
    if head is not None:
        inputs["head"] = head.identity
    if units is not None:
        named = units if isinstance(units, UnitSet) else UnitSet.of(model, units)
        inputs["units"] = named.names()
    return TokenMap.of_parts(
        parts,
        positions=positions,
        model=model.identity,
        tokenizer=(head or model).tokenizer,
        parameters={**arguments, "tokens": readout.head.tokens, "head": (head or model).fingerprint},
        notes=_notes(model, chosen, readout, norm),
        provenance=provenance("read.tokens", arguments=arguments, inputs=inputs),
    )


def tokens_of(
    model: LanguageModel,
    directions: Tensor,
    names: Sequence[str] | None = None,
    *,
    k: int = 20,
    norm: str = "fold",
    score: str = "dot",
    probabilities: bool = False,
) -> TokenMap:
    """The same for any directions (n, d_model) of the residual stream, such as differences of means; `names` of each."""
    _check(norm, score, "both")
    rows = torch.as_tensor(directions)
    if rows.dim() != 2 or rows.shape[1] != model.anatomy.d_model or not rows.shape[0]:
        raise InputError(f"directions have shape {tuple(rows.shape)}; (n, {model.anatomy.d_model}) is needed")
    if not bool(torch.isfinite(rows).all()):
        raise InputError("directions hold NaN or infinite values")
    named = [f"direction {number}" for number in range(len(rows))] if names is None else [str(name) for name in names]
    if len(named) != len(rows) or len(set(named)) != len(named):
        raise InputError(f"{len(rows)} directions, but {len(set(named))} different names")
    readout = Readout(head_of(model), k, norm, score, True, False, probabilities)
    arguments = {"k": k, "norm": norm, "score": score, "probabilities": probabilities}
    return TokenMap.of_parts(
        [part for part, _ in readout(rows, False)],
        names=named,
        model=model.identity,
        tokenizer=model.tokenizer,
        parameters={**arguments, "tokens": readout.head.tokens, "head": model.fingerprint},
        provenance=provenance("read.tokens_of", arguments=arguments, inputs={"model": model.identity}),
    )


class Readout:
    """Rows of directions to the ends of their logits, block by block; the head's moments are measured once."""

    def __init__(self, head: Head, k: int, norm: str, score: str, both: bool, bias: bool, probabilities: bool) -> None:
        if not 1 <= k <= head.tokens:
            raise InputError(f"k={k} given; the vocabulary has {head.tokens} tokens, so k is from 1 to {head.tokens}")
        if bias and score == "cosine":
            raise InputError("bias=True has no meaning for cosines; use score='dot'")
        self.head, self.k, self.norm, self.cosine = head, k, norm, score == "cosine"
        self.both, self.probabilities = both, probabilities
        self.scan = Scan(head.matrix)
        self.bias = head.bias if bias or norm == "final" else None
        self._lengths = _lengths(head.matrix) if self.cosine else None

    def __call__(self, rows: Tensor, reads: bool) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
        """Arrays of each block, and how many units it has. rows: (n, d). reads: whether units read these directions."""
        for start in range(0, rows.shape[0], self.scan.rows):
            block = self.pointed(rows[start : start + self.scan.rows].to(self.scan.matrix.device), reads)
            yield self._arrays(block), block.shape[0]

    def pointed(self, rows: Tensor, reads: bool) -> Tensor:
        """(n, d) float32: the rows that are multiplied with the head, norm and logit scale included."""
        rows = rows.float()
        if self.norm == "final":
            rows = self.head.states(rows)
        elif self.norm == "fold" and not reads and self.head.folded is not None:
            rows = self.head.folded(rows)
        if self.cosine:
            sign = -1.0 if self.head.scale < 0 else 1.0
            return torch.nn.functional.normalize(rows, dim=1, eps=1e-30) * sign
        return rows * self.head.scale if self.head.scale != 1.0 else rows

    def logits(self, pointed: Tensor, token_ids: Sequence[int] | None) -> Tensor:
        """(n, tokens) float32 of some tokens (None: all) from rows that `pointed` gave."""
        chosen = slice(None) if token_ids is None else torch.tensor(token_ids, device=self.head.matrix.device)
        values = pointed @ self.head.matrix[chosen].float().T
        return values if self._lengths is None else values / self._lengths[chosen]

    def z_scores(self, pointed: Tensor, values: Tensor) -> Tensor:
        """Values of some tokens in standard deviations from the mean over all tokens; 0 for rows of zeros.

        Without the product with all tokens: mean and deviation follow from the moments of the head's rows.
        """
        middle, second = self._moments
        mean, sd = pointed @ middle, ((pointed @ second) * pointed).sum(1).clamp(min=0).sqrt()
        away = values - mean[:, None]
        return torch.where(sd[:, None] > 0, away / sd[:, None].clamp(min=1e-30), torch.zeros_like(away))

    def _arrays(self, rows: Tensor) -> dict[str, NDArray[Any]]:
        values = self.scan.product(rows)
        if self._lengths is not None:
            values.div_(self._lengths)
        if self.bias is not None:
            values.add_(self.bias.to(values.device) * self.head.scale)
        if self.norm == "final" and self.head.soft_cap:
            values.div_(self.head.soft_cap).tanh_().mul_(self.head.soft_cap)
        found = ends(values, self.k, both=self.both)
        mean, sd = _spread(values)
        arrays: dict[str, Tensor] = {
            "top_ids": found.top_ids.int(), "top_values": found.top_values,
            "bottom_ids": found.bottom_ids.int(), "bottom_values": found.bottom_values,
            "mean": mean, "sd": sd, "length": rows.norm(dim=1),
        }  # fmt: skip
        if self.probabilities:
            arrays |= _softmaxed(values)
        return {name: array.cpu().numpy() for name, array in arrays.items()}

    @functools.cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        return _moments(self.head.matrix, self._lengths)


def _check(norm: str, score: str, which: str) -> None:
    for name, value, known in (("norm", norm, NORMS), ("score", score, SCORES), ("ends", which, ("both", "top"))):
        if value not in known:
            raise InputError(f"{name}={value!r} given; choose {', '.join(known[:-1])} or {known[-1]}")


def _head(model: LanguageModel, other: LanguageModel | None) -> Head:
    if other is not None and other.anatomy.d_model != model.anatomy.d_model:
        raise InputError(
            f"the head of {other.name} reads {other.anatomy.d_model} numbers; {model.name} has d_model {model.anatomy.d_model}"
        )
    return head_of(other or model)


def _chosen(
    model: LanguageModel, sites: str | Sequence[str], units: UnitSet | Sequence[str] | None
) -> dict[str, NDArray[np.int64] | None]:
    """Site -> flat positions to read, None for all."""
    if units is not None:
        named = units if isinstance(units, UnitSet) else UnitSet.of(model, units)
        named.check_model(model)
        if not len(named):
            raise InputError("an empty set of units was given; there is nothing to read")
        return {site: where for site, where in named.positions.items() if len(where)}
    listed = [sites] if isinstance(sites, str) else list(dict.fromkeys(sites))
    if not listed:
        raise InputError("no sites given; name at least one, such as mlp")
    if unknown := [site for site in listed if site not in model.layouts]:
        raise InputError(f"{model.name} has no site {unknown[0]!r}; it has {', '.join(model.layouts)}")
    return dict.fromkeys(listed)


def site_rows(
    model: LanguageModel, site: str, where: NDArray[np.int64] | None, *, fold: bool
) -> Iterator[tuple[NDArray[np.int64], Tensor, bool]]:
    """Flat positions, directions and whether they are read, block by block of the weights."""
    wanted = None if where is None else where.tolist()
    offsets = None
    for found in output_directions(model, site, fold=fold):
        offsets = offsets or model.layouts[site].offsets
        start = offsets[found.layer]
        inside, rows = chosen_rows(found, start, wanted)
        if inside is None:
            yield start + found.offset + np.arange(rows.shape[0]), rows, found.reads
        elif inside:
            yield np.array(inside, dtype=np.int64), rows, found.reads


def _spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (divisor: columns) of each row; two passes of what a memory gives, unlike var_mean."""
    mean = values.mean(1)
    square = torch.linalg.vector_norm(values, dim=1).square() / values.shape[1]
    return mean, (square - mean.square()).clamp(min=0).sqrt()


def _lengths(matrix: Tensor) -> Tensor:
    """(tokens,) float32 length of each token's row; a row of zeros counts as 1, so that its cosines are 0."""
    found = torch.cat([tile.float().norm(dim=1) for tile in matrix.split(_TILE)])
    return torch.where(found > 0, found, torch.ones_like(found))


def _moments(matrix: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean (d,) and second central moment (d, d), float32, of the head's rows (of unit length where lengths are given)."""

    def tiles() -> Iterator[Tensor]:
        for start in range(0, matrix.shape[0], _TILE):
            tile = matrix[start : start + _TILE].float()
            yield tile if lengths is None else tile / lengths[start : start + _TILE, None]

    middle = torch.zeros(matrix.shape[1], device=matrix.device)
    for tile in tiles():
        middle += tile.sum(0) / len(matrix)
    second = torch.zeros(matrix.shape[1], matrix.shape[1], device=matrix.device)
    for tile in tiles():
        tile = tile - middle
        second.addmm_(tile.T, tile)
    return middle, second / len(matrix)


def _softmaxed(values: Tensor, rows: int = 64) -> dict[str, Tensor]:
    """Logarithm of the sum of exponentials and entropy (nats) of each row, a few rows at a time."""
    sums, entropies = [], []
    for part in values.split(rows):
        total = part.logsumexp(1)
        logs = part - total[:, None]
        sums.append(total)
        entropies.append(-(logs.exp() * logs).sum(1))
    return {"log_sum": torch.cat(sums), "entropy": torch.cat(entropies)}


def _notes(
    model: LanguageModel, chosen: dict[str, NDArray[np.int64] | None], readout: Readout, norm: str
) -> tuple[str, ...]:
    notes = []
    if readout.head.left_out:
        notes.append(
            f"{readout.head.left_out} rows of the LM head belong to no token of the tokenizer and were left out"
        )
    if norm == "fold" and readout.head.norm is None:
        notes.append("the model has no final norm; nothing was folded in")
    for site in chosen:
        missing = untraced(model, site) if site not in model.anatomy.features else []
        if missing:
            layers = ", ".join(map(str, missing))
            notes.append(f"{site}: the norms around layers {layers} could not be told; their bare weights were read")
    return tuple(notes)
