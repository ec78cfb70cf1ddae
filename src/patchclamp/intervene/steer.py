"""Steering: add a direction while the model runs, in units that compare between sites, layers and models.

`with steer(model, direction, 0.5): ...` adds half the typical length of the site's vectors along the direction at every
position; `steering(...)` gives the same as data. Directions come from `directions.py`; units stand for what they write.
Turner et al. 2023, arXiv 2308.10248 (activation addition); Rimsky et al. 2023, arXiv 2312.06681 (mean differences).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from patchclamp.core.errors import InputError
from patchclamp.data.batches import PIECE, Selection, batches, encode
from patchclamp.data.corpora import Corpus
from patchclamp.data.demo import demo_text
from patchclamp.intervene.directions import mean_difference, token_direction, unit_directions
from patchclamp.intervene.fits import fits
from patchclamp.intervene.interventions import Intervention, Mask
from patchclamp.intervene.kinds import Interventions
from patchclamp.intervene.positions import At
from patchclamp.intervene.strengths import PROMPT, WITHIN, match_kl_at
from patchclamp.intervene.targets import Direction
from patchclamp.models.hooks import Seen, Tap, observe, run, unchanged
from patchclamp.models.units import Unit, UnitSet

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

Steered = Direction | UnitSet | Unit | str | Sequence[Direction] | Sequence[str]
MEASURES = ("norm", "own", "kl")
DOCUMENTS = 4  # of the bundled text, per language, where no text is given for the typical length
BATCH_TOKENS = 1024
BETWEEN = (1e-3, 1e2)  # typical lengths tried to match an effect


@contextlib.contextmanager
def steer(
    model: LanguageModel,
    direction: Steered,
    strength: float = 1.0,
    *,
    strength_in: Literal["norm", "own", "kl"] = "norm",
    scope: str = "all",
    mask: Mask | Any | None = None,
    positions: int | Iterable[int] | None = None,
    text: Corpus | None = None,
    prompt: str = PROMPT,
) -> Iterator[Interventions]:
    """Run the model with a direction added; yields the interventions as data. Nests; undone on any exception.

    direction: a `Direction` or several, or units (set or names), which stand for what they write together. strength: below
    0 steers away. strength_in: "norm", in typical lengths of the site's vectors (median over the tokens of text=, by default
    of some bundled text), layer by layer; "own", in lengths of the direction itself, so that 1 adds it as it is; "kl", in
    nats: the least strength at which KL(plain || steered) of the token after `prompt` reaches it, the sign saying which way.
    scope: "prompt", "generated" or "all" positions. mask: as in `Intervention`. positions: tokens of the prompt, from 0 or
    from -1 backwards, padding not counted (not together with mask). Raises InputError for a strength that isn't finite or an
    effect that no strength up to 100 typical lengths reaches.
    """
    items = steering(
        model,
        direction,
        strength,
        strength_in=strength_in,
        scope=scope,
        mask=mask,
        positions=positions,
        text=text,
        prompt=prompt,
    )
    with items.applied(model):
        yield items


def steering(
    model: LanguageModel,
    direction: Steered,
    strength: float = 1.0,
    *,
    strength_in: Literal["norm", "own", "kl"] = "norm",
    scope: str = "all",
    mask: Mask | Any | None = None,
    positions: int | Iterable[int] | None = None,
    text: Corpus | None = None,
    prompt: str = PROMPT,
    note: str = "",
) -> Interventions:
    """What `steer` does, as data: one "add" per direction, whose value is the strength. note: kept with the data."""
    if strength_in not in MEASURES:
        raise InputError(f"strength_in={strength_in!r}; choose {', '.join(MEASURES[:-1])} or {MEASURES[-1]}")
    if not math.isfinite(strength):
        raise InputError(f"strength={strength}; a finite number is needed")
    if positions is not None:
        if mask is not None:
            raise InputError("give positions= or mask=, not both")
        mask = At(positions)
    found = directions_of(model, direction)
    if strength_in != "own":
        found = in_typical_lengths(model, found, text)
    words = (
        note
        or {"norm": "steering, in typical lengths", "own": "steering", "kl": f"steering, {abs(strength):g} nats"}[
            strength_in
        ]
    )
    if strength_in == "kl":
        strength = _matched(model, found, strength, prompt)
    return Interventions(Intervention(one, "add", strength, scope, mask, note=words) for one in found)


def strengthened(items: Interventions, strength: float) -> Interventions:
    """The same steering with another strength; what it was measured in stays. InputError if nothing is added anywhere."""
    if not any(isinstance(item, Intervention) and item.operation == "add" for item in items):
        raise InputError(f"nothing is added, so there is no strength to choose: {items.describe()}")
    return Interventions(
        replace(item, value=strength) if isinstance(item, Intervention) and item.operation == "add" else item
        for item in items
    )


def directions_of(model: LanguageModel, direction: Steered) -> list[Direction]:
    """Directions as they are, and what units write; MismatchError for another model's."""
    if isinstance(direction, Direction):
        found = [direction]
    elif isinstance(direction, UnitSet):
        found = unit_directions(model, direction)
    elif isinstance(direction, str | Unit):
        found = unit_directions(model, UnitSet.of(model, [direction]))
    else:
        given: list[Any] = list(direction)
        if not given:
            raise InputError("no direction was given")
        whole = all(isinstance(one, Direction) for one in given)
        found = given if whole else unit_directions(model, UnitSet.of(model, given))
    for one in found:
        one.check_model(model)
    return found


def in_typical_lengths(
    model: LanguageModel, directions: Sequence[Direction], text: Corpus | None = None
) -> list[Direction]:
    """The directions with vectors as long as the site's vectors typically are in their layer."""
    taps = [(one.site, layer) for one in directions for layer in one.layers]
    typical = typical_lengths(model, taps, text)
    found = []
    for one in directions:
        wanted = np.array([[typical[one.site, layer]] for layer in one.layers])
        lengths = np.linalg.norm(one.vectors, axis=1, keepdims=True)
        found.append(Direction(one.site, one.layers, one.vectors / lengths * wanted, one.model))
    return found


def typical_lengths(
    model: LanguageModel, taps: Iterable[Tap], text: Corpus | None = None, *, select: Selection | None = None
) -> dict[Tap, float]:
    """Median Euclidean length of the vectors at some taps, over the tokens of a text that count (no special tokens).

    text: by default a few documents of the bundled text in six languages. Measured on the model as it is, whatever changes are
    active. The median, for the first tokens of many models are a hundred times as long as the others. InputError for a text
    without tokens, or vectors of length 0.
    """
    wanted = list(dict.fromkeys(taps))
    read = demo_text().limited(max_documents=DOCUMENTS, max_tokens=None) if text is None else text
    lengths: dict[Tap, list[torch.Tensor]] = {tap: [] for tap in wanted}
    if model.tokenizer is None:
        raise InputError(
            f"{model.name} came without a tokenizer, so no text says how long its vectors are; use strength_in='own'"
        )
    cut: dict[str, Any] = {"max_length": min(model.max_length, PIECE), "select": select or Selection()}
    for label in read.labels:
        pieces = list(encode(model.tokenizer, read.documents(label), max_tokens=read.max_tokens, **cut))
        for batch in batches(pieces, token_budget=BATCH_TOKENS, pad_id=model.pad_id):
            here = batch.to(model.device)
            with unchanged(model), observe(model, wanted, _LengthsOf(lengths, here.keep.reshape(-1))):
                run(model, here.input_ids, here.attention_mask)
    return {tap: _median(tap, found) for tap, found in lengths.items()}


@dataclass(frozen=True)
class _LengthsOf:
    """An observer that keeps the lengths of the vectors of tokens that count."""

    lengths: dict[Tap, list[torch.Tensor]]
    keep: torch.Tensor

    def __call__(self, seen: Seen) -> None:
        every = torch.linalg.vector_norm(seen.values.float(), dim=1)
        self.lengths[seen.site, seen.layer].append(every[self.keep.to(every.device)].cpu())


def _median(tap: Tap, found: list[torch.Tensor]) -> float:
    values = torch.cat(found) if found else torch.zeros(0)
    middle = float(values.median()) if len(values) else 0.0
    if not math.isfinite(middle) or middle <= 0:
        raise InputError(
            f"the vectors at {tap[0]} of layer {tap[1]} have no typical length (median {middle:g} over {len(values)} tokens); "
            "give other text=, or strength_in='own'"
        )
    return middle


def _matched(model: LanguageModel, directions: Sequence[Direction], nats: float, prompt: str) -> float:
    """The strength whose effect on the token after the prompt is as large as asked for, with the sign of `nats`."""
    sign = -1.0 if nats < 0 else 1.0
    if not nats:
        return 0.0
    rows: dict[Tap, torch.Tensor] = {}
    for one in directions:
        for layer, vector in zip(one.layers, one.vectors, strict=True):
            row = sign * torch.from_numpy(vector)[None].to(model.device, torch.float32)
            rows[one.site, layer] = rows[one.site, layer] + row if (one.site, layer) in rows else row
    found = match_kl_at(model, rows, prompt, targets=[abs(nats)], between=BETWEEN)
    alpha, reached = float(found.alphas[0, 0]), float(found.kl[0, 0])
    if not math.isfinite(alpha) or abs(reached - abs(nats)) > max(WITHIN, 0.05 * abs(nats)):
        raise InputError(
            f"no strength from {BETWEEN[0]:g} to {BETWEEN[1]:g} typical lengths changes the token after {prompt!r} by "
            f"{abs(nats):g} nats{'' if math.isnan(reached) else f' (nearest: {reached:.3g})'}; ask for less, or give another "
            "prompt="
        )
    return sign * alpha


@fits.add("steer")
def fit_steer(
    model: LanguageModel,
    *,
    text: Corpus | None = None,
    towards: str | None = None,
    away: Sequence[str] = (),
    units: UnitSet | None = None,
    tokens: Sequence[str] = (),
    site: str = "resid",
    layers: Sequence[int] = (),
    strength: float = 1.0,
    strength_in: Literal["norm", "own", "kl"] = "norm",
    scope: Literal["all", "prompt", "generated"] = "all",
    positions: Sequence[int] = (),
    prompt: str = PROMPT,
) -> Interventions:
    """Steer along a direction: from the difference of two texts, from units or features, or towards tokens.

    text: labelled text whose labels towards and away name. towards: the label to steer to. away: labels to steer from; all
    others by default. units: steer along what these write (features as well). tokens: raise the logits of these, one token
    each. site: of a difference of texts. layers: by default the middle one for texts, the last for tokens, those of the
    units. strength: below 0 steers away. strength_in: what strength counts: norm, typical lengths of the site's vectors;
    own, lengths of the direction; kl, nats of the token after the prompt. scope: tokens that are changed, all, prompt or
    generated. positions: of the prompt, from 0, or from -1 backwards; all by default. prompt: for kl.

    Example: `patchclamp fit steer demo --text demo:find --towards de --away en --strength 0.5 --out german.json`.
    """
    sources = [
        name
        for name, given in (("towards", towards), ("units", units), ("tokens", tokens))
        if given is not None and len(given)
    ]
    if len(sources) != 1:
        raise InputError(f"give one of towards (with text), units and tokens; {', '.join(sources) or 'none'} given")
    chosen = list(layers) or None
    direction: Steered
    if units is not None and len(units):
        if chosen:
            raise InputError("units are steered along in their own layers; leave layers out")
        direction = units
    elif towards is not None:
        if text is None:
            raise InputError(f"towards={towards!r} is a label of a text; give text too")
        direction = mean_difference(
            model, towards, list(away) or None, text=text, site=site, layers=chosen or [model.anatomy.n_layers // 2]
        )
    else:
        direction = token_direction(model, list(tokens), layers=chosen)
    return steering(
        model, direction, strength, strength_in=strength_in, scope=scope, positions=list(positions) or None, text=text,
        prompt=prompt,
    )  # fmt: skip
