"""Directions to steer with: between two texts, of a feature, towards tokens, of what neurons write.

Each function gives a `Direction`: one vector per layer at a site, with its natural length, so that adding it once does what it
was made from (the whole difference of two means, one unit of a feature, one unit of activation of every neuron).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data.batches import Selection
from patchclamp.data.corpora import Corpus, corpus
from patchclamp.intervene.means import pooled_means
from patchclamp.intervene.targets import Direction
from patchclamp.models.directions import STREAM, written_rows
from patchclamp.models.features import Dictionary
from patchclamp.models.head import head_of
from patchclamp.models.units import Layout, UnitSet, describe, layouts_of
from patchclamp.record.recorder import record
from patchclamp.record.recording import Recording

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

Texts = str | Sequence[str]
WRITTEN_AT = {"mlp": "mlp_out", "attn": "attn_out", "head": "attn_out"}


def mean_difference(
    source: LanguageModel | Recording,
    towards: Texts,
    away: Texts | None = None,
    *,
    text: Corpus | None = None,
    site: str = "resid",
    layers: int | Iterable[int] | None = None,
    select: Selection | None = None,
) -> Direction:
    """Mean activation on one text minus mean activation on others, one vector per layer (supervised, no training).

    source: a recording of the site with the statistic "moments", or a model, which then reads the text. towards, away:
    labels of the recording or of text=; away may be several, weighted by their tokens, by default all other labels. With a
    model and without text=, both are lists of texts. site: any, such as resid, mlp_out, attn_out. layers: by default all.
    select: which tokens count when a model reads. InputError for labels that aren't there, equal means and layers without
    the site. Marks and Tegmark 2023, arXiv 2310.06824 ("mass mean"); Arditi et al. 2024, arXiv 2406.11717.
    """
    wanted = None if layers is None else _listed(layers)
    if isinstance(source, Recording):
        recording, plus, minus = source, towards, away
        if text is not None or select is not None:
            raise InputError("text= and select= belong to a model; a recording has its text and selection already")
    else:
        read, plus, minus = _text(text, towards, away)
        how: dict[str, Any] = {"select": select} if select is not None else {}
        recording = record(source, read, sites=(site,), statistics=("moments",), layers=wanted, quiet=True, **how)
    ones, others = _labels(recording, plus, minus)
    if site not in recording.sites or "moments" not in recording.statistics:
        raise InputError(
            f"the recording has {', '.join(recording.statistics)} of {', '.join(recording.sites)}; a direction of {site} needs "
            f"its moments: record with sites=[{site!r}]"
        )
    layout = layouts_of(recording.model)[site]
    gap = pooled_means(recording, site, ones) - pooled_means(recording, site, others)
    chosen = _layers(layout, wanted)
    rows = [gap[layout.slice(layer)] for layer in chosen]
    for layer, row in zip(chosen, rows, strict=True):
        if not np.isfinite(row).all():
            raise InputError(f"{site} of layer {layer} was not recorded; give layers= that were")
        if not row.any():
            raise InputError(
                f"{' and '.join(ones)} has the same mean at {site} of layer {layer} as {' and '.join(others)}"
            )
    return Direction.of(recording.model, site, chosen, np.stack(rows))


def feature_direction(model: LanguageModel, dictionary: Dictionary, feature: int | str) -> Direction:
    """What one unit of a feature adds to the vector that its dictionary decomposes (its decoder row): SAE, SNMF, any kind.

    feature: its number, or its label. MismatchError for a dictionary of another model, InputError for a feature it lacks.
    """
    theirs = dictionary.model.get("fingerprint")
    if theirs is not None and theirs != model.fingerprint:
        raise MismatchError(f"{dictionary!r} was made for {describe(dictionary.model)}, not for {model.name}")
    if isinstance(feature, str):
        if feature not in (dictionary.labels or ()):
            raise InputError(
                f"{dictionary!r} has no feature labelled {feature!r}; give its number, or one of its labels"
            )
        feature = (dictionary.labels or ()).index(feature)
    if not 0 <= feature < dictionary.n_features:
        raise InputError(f"feature {feature} asked for; {dictionary!r} has 0 to {dictionary.n_features - 1}")
    return Direction.of(model, dictionary.site, dictionary.layer, dictionary.directions[feature])


def token_direction(
    model: LanguageModel,
    tokens: str | int | Sequence[str | int],
    against: str | int | Sequence[str | int] | None = None,
    *,
    layers: int | Iterable[int] | None = None,
) -> Direction:
    """The direction of the residual stream that raises the logits of some tokens, at resid of some layers (default: the last).

    The mean row of the LM head for `tokens` minus that for `against` (by default of the whole vocabulary, which no softmax
    sees), pulled back through the gain of the final norm. tokens: ids, or texts of one token each (mind the space in front:
    " Paris"). InputError for a text of several tokens and for a model without an LM head.
    """
    head = head_of(model)
    plus = head.matrix[_token_ids(model, tokens)].mean(0, dtype=torch.float32)
    minus = (head.matrix if against is None else head.matrix[_token_ids(model, against)]).mean(0, dtype=torch.float32)
    row = (plus - minus)[None] * (head.scale or 1.0)
    if head.folded is not None:
        row = head.folded.pulled_back(row)
    if not bool(row.any()):
        raise InputError("the tokens are the same as those against them; no direction tells them apart")
    layout = model.layouts.get("resid")
    if layout is None:
        raise InputError(f"{model.name} has no residual stream that can be steered (no site resid)")
    chosen = [model.anatomy.n_layers - 1] if layers is None else _layers(layout, _listed(layers))
    return Direction.of(model, "resid", chosen, row)


def unit_directions(model: LanguageModel, units: UnitSet, *, weighted: bool = False) -> list[Direction]:
    """What units write together, one direction per place: mlp units at mlp_out, attn coordinates and heads at attn_out.

    Adding a mlp unit's direction once equals adding 1 to its activation. Heads stand for their strongest path (of either
    sign); units of the stream for their coordinates; features for their decoder rows, through the projection that reads
    them where they decompose `mlp` or `attn`. weighted: each times its score. InputError for units that write nothing by
    themselves (gate, up, pre, q, k, v) and for an empty set.
    """
    units.check_model(model)
    if weighted and units.scores is None:
        raise InputError("the units have no scores to be weighted by; leave weighted=False")
    sums: dict[str, dict[int, Tensor]] = {}
    for site, where in units.positions.items():
        layout = units.layouts[site]
        scores = np.ones(len(where)) if not weighted or units.scores is None else np.asarray(units.scores[site], float)
        for layer in range(layout.n_layers):
            inside = (where >= layout.slice(layer).start) & (where < layout.slice(layer).stop)
            if inside.any():
                place, row = _sum_of(model, site, layer, where[inside] - layout.slice(layer).start, scores[inside])
                layers = sums.setdefault(place, {})
                layers[layer] = layers[layer] + row if layer in layers else row
    if not sums:
        raise InputError("the unit set is empty; there is no direction")
    return [
        Direction.of(model, place, list(layers), torch.stack(list(layers.values())).numpy())
        for place, layers in ((place, dict(sorted(layers.items()))) for place, layers in sums.items())
    ]


def _sum_of(
    model: LanguageModel, site: str, layer: int, index: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[str, Tensor]:
    """(site, vector) of what some units of a layer write together, float64."""
    weights = torch.from_numpy(scores)
    dictionary = model.anatomy.feature(site, layer)
    if dictionary is not None:
        inner = weights @ dictionary.directions.detach().cpu().double()[torch.from_numpy(index)]
        if dictionary.site not in WRITTEN_AT:
            return dictionary.site, inner
        return WRITTEN_AT[dictionary.site], _through(model, dictionary.site, layer, inner)
    if site in STREAM:
        inner = torch.zeros(model.anatomy.d_model, dtype=torch.float64)
        inner[torch.from_numpy(index)] = weights
        return site, inner
    if site not in WRITTEN_AT:
        raise InputError(
            f"units of {site} write nothing by themselves; steer with the mlp units of the same index, or clamp them"
        )
    inner = torch.zeros(model.layouts[site].widths[layer], dtype=torch.float64)
    inner[torch.from_numpy(index)] = weights
    return WRITTEN_AT[site], _through(model, site, layer, inner)


def _through(model: LanguageModel, site: str, layer: int, inner: Tensor) -> Tensor:
    """What a vector of a sub-layer's units becomes behind the projection that reads it, (d_model,) float64."""
    total = torch.zeros(model.anatomy.d_model, dtype=torch.float64)
    for offset, rows in written_rows(model, site, layer):
        chosen = inner[offset : offset + rows.shape[0]]
        where = chosen.nonzero()[:, 0]
        if len(where):
            total += chosen[where] @ rows[where.to(rows.device)].cpu().double()
    return total


def _text(text: Corpus | None, towards: Texts, away: Texts | None) -> tuple[Corpus, Texts, Texts | None]:
    """A corpus and its labels for what was given."""
    if text is not None:
        return text, towards, away
    if isinstance(towards, str) or isinstance(away, str) or away is None:
        raise InputError("a model needs text=, whose labels towards and away name, or two lists of texts")
    return corpus(towards=list(towards), away=list(away)), "towards", "away"


def _labels(recording: Recording, towards: Texts, away: Texts | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    ones = (towards,) if isinstance(towards, str) else tuple(towards)
    others = (away,) if isinstance(away, str) else tuple(label for label in recording.labels if label not in ones)
    others = others if away is None or isinstance(away, str) else tuple(away)
    for label in (*ones, *others):
        if label not in recording.labels:
            raise InputError(f"the text has no label {label!r}; it has {', '.join(recording.labels)}")
    if not ones or not others or set(ones) & set(others):
        raise InputError(f"towards {list(ones)} and away {list(others)}: two different, non-empty sides are needed")
    return ones, others


def _listed(layers: int | Iterable[int]) -> list[int]:
    return [layers] if isinstance(layers, int) else sorted(set(layers))


def _layers(layout: Layout, wanted: list[int] | None) -> list[int]:
    """The layers of a site, or those asked for."""
    have = [layer for layer, width in enumerate(layout.widths) if width]
    if missing := [layer for layer in wanted or [] if layer not in have]:
        raise InputError(f"layer {missing[0]} has no {layout.site}; layers with it: {', '.join(map(str, have))}")
    return wanted or have


def _token_ids(model: LanguageModel, tokens: str | int | Sequence[str | int]) -> list[int]:
    """Ids of tokens that are given as ids or as texts of one token each."""
    found = []
    for token in [tokens] if isinstance(tokens, str | int) else tokens:
        if isinstance(token, str):
            if model.tokenizer is None:
                raise InputError(f"{model.name} came without a tokenizer; give token ids")
            ids = list(model.tokenizer(token, add_special_tokens=False)["input_ids"])
            if len(ids) != 1:
                pieces = [model.tokenizer.decode([piece]) for piece in ids]
                raise InputError(f"{token!r} is {len(ids)} tokens ({pieces}); give one token, or the ids of several")
            found += ids
        else:
            found.append(int(token))
    vocabulary = int(head_of(model).matrix.shape[0])
    if not found or not all(0 <= token < vocabulary for token in found):
        raise InputError(f"tokens {found} given; ids lie between 0 and {vocabulary - 1}, and at least one is needed")
    return found
