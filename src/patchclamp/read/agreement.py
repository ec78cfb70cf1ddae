"""Do two checkpoints agree on what their units mean? The share of units with the same top token, against chance.

Davies 2025, arXiv 2501.02688: 75 % of the up-projection neurons of Llama 3.1 8B keep their top token in the instruct model.
Chance is not 1/V: common labels meet by themselves. It is the sum over tokens of the product of their shares among the two
models' labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError, MismatchError
from patchclamp.models.directions import output_directions
from patchclamp.models.units import describe
from patchclamp.read.token_map import TokenMap

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

_MIXED = 0.01  # share of common ids with another string above which two tokenizers are different ones


@dataclass(frozen=True, eq=False)
class Agreement:
    """overall: share of units with the same top token. chance: what unrelated labels of the same shares would reach.

    jaccard: mean overlap of the two top-k lists. layers: rows with site, layer, units, same, chance, jaccard, and cosine of
    the directions where the models were given. compared: units whose direction is zero in neither.
    """

    overall: float
    chance: float
    jaccard: float
    compared: int
    layers: Sequence[Mapping[str, Any]]

    def rows(self) -> list[dict[str, Any]]:
        return [dict(row) for row in self.layers]

    def to_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("overall", "chance", "jaccard", "compared")} | {"rows": self.rows()}


def agreement(
    a: TokenMap, b: TokenMap, *, models: tuple[LanguageModel, LanguageModel] | None = None, norm: str = "fold"
) -> Agreement:
    """Compare the maps of two checkpoints unit by unit. models: also the cosine of each unit's two directions.

    To tell a moved head from moved units, read both with one head: `tokens(tuned, head=base)`. Tokens that only one
    vocabulary has never agree. Raises MismatchError for other units, shapes or tokenizers.
    """
    _check(a, b)
    top = [np.where(one.undefined, -1, one.top_ids[:, 0]) for one in (a, b)]
    defined = ~(a.undefined | b.undefined)
    if not defined.any():
        raise InputError("every unit's direction is zero in one of the models; there is nothing to compare")
    same = top[0] == top[1]
    overlap = _jaccard(a.top_ids, b.top_ids)
    cosines = _cosines(a, models, norm) if models else None
    rows = []
    for site, where in a.positions.items():
        span = a.rows_of(site)
        layers = np.searchsorted(a.layouts[site].offsets, where, side="right") - 1
        for layer in np.unique(layers).tolist():
            mine = np.flatnonzero((layers == layer) & defined[span]) + span.start
            if not len(mine):
                continue
            row = {
                "site": site, "layer": layer, "units": len(mine), "same": float(same[mine].mean()),
                "chance": _chance(top[0][mine], top[1][mine]), "jaccard": float(overlap[mine].mean()),
            }  # fmt: skip
            rows.append(row if cosines is None else {**row, "cosine": float(cosines[mine].mean())})
    kept = np.flatnonzero(defined)
    return Agreement(
        overall=float(same[kept].mean()),
        chance=_chance(top[0][kept], top[1][kept]),
        jaccard=float(overlap[kept].mean()),
        compared=len(kept),
        layers=rows,
    )


def _check(a: TokenMap, b: TokenMap) -> None:
    for one in (a, b):
        if one.own_names is not None:
            raise InputError("raw directions were read; agreement compares the units of two checkpoints")
    alike = a.sites == b.sites and all(
        a.layouts[site] == b.layouts[site] and np.array_equal(a.positions[site], b.positions[site]) for site in a.sites
    )
    if not alike:
        raise MismatchError(
            f"the maps of {describe(a.model)} and {describe(b.model)} are of different units; read the same sites of "
            "two models of one shape"
        )
    if a.k != b.k:
        raise MismatchError(f"one map lists {a.k} tokens, the other {b.k}; read both with the same k")
    for key in ("norm", "score"):
        if a.parameters.get(key) != b.parameters.get(key):
            raise MismatchError(f"the maps were read with {key} {a.parameters.get(key)} and {b.parameters.get(key)}")
    shared = a.vocabulary.keys() & b.vocabulary.keys()
    other = sum(a.vocabulary[token] != b.vocabulary[token] for token in shared)
    if shared and other > _MIXED * len(shared):
        raise MismatchError(f"{other} of {len(shared)} token ids stand for other strings: the tokenizers are different")


def _chance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Sum over tokens of the product of their shares among the labels."""
    tokens, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    first, second = (np.bincount(part, minlength=len(tokens)) / len(a) for part in (codes[: len(a)], codes[len(a) :]))
    return float(first @ second)


def _jaccard(a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.float64]:
    """(units,) overlap of two lists of k different tokens: common / (2 k - common)."""
    both = np.sort(np.concatenate([a, b], axis=1), axis=1)
    common = (both[:, 1:] == both[:, :-1]).sum(1)
    return np.asarray(common / (2 * a.shape[1] - common), dtype=np.float64)


def _cosines(a: TokenMap, models: tuple[LanguageModel, LanguageModel], norm: str) -> NDArray[np.float32]:
    """(units,) cosine of the directions that a unit has in the two models."""
    found = []
    for site, where in a.positions.items():
        whole = np.zeros(a.layouts[site].total, dtype=np.float32)
        pairs = zip(*(output_directions(model, site, fold=norm == "fold") for model in models), strict=True)
        for one, two in pairs:
            start = a.layouts[site].offsets[one.layer] + one.offset
            cosine = torch.nn.functional.cosine_similarity(
                one.rows.float(), two.rows.float().to(one.rows.device), dim=1
            )
            whole[start : start + len(cosine)] = cosine.cpu().numpy()
        found.append(whole[where])
    return np.concatenate(found)


make_callable(__name__)
