"""What units do, in words: the description that is likely given a unit's exemplars and unlikely for any other (MILAN).

Hernandez et al. 2022 (arXiv 2201.11114), section 3: candidates by beam search under log p(d | E), re-ranked by weighted
pointwise mutual information log p(d | E) - lambda log p(d). Describers (`describers`) supply candidates and both
probabilities; the text describers are ours, the original has an image captioner.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.models.units import UnitSet
from patchclamp.read.descriptions import Describer, Description, Descriptions, describers
from patchclamp.read.exemplar_store import Exemplars, ExemplarStore
from patchclamp.read.exemplars import QUANTILE, WINDOW, K, exemplars
from patchclamp.read.predicates import INACTIVE, NOTHING
from patchclamp.read.registry import readings

if TYPE_CHECKING:
    from patchclamp.data.corpora import Corpus
    from patchclamp.models.load import LanguageModel
    from patchclamp.record.recording import Recording

LAMBDA = 0.2  # the paper's
RUNNERS_UP = 5


@readings.add("describe")
def describe(
    recording: Recording | ExemplarStore,
    *,
    units: UnitSet | Sequence[str] | None = None,
    describer: str = "words",
    lam: float = LAMBDA,
    candidates: Sequence[str] = (),
    options: Mapping[str, Any] | None = None,
    writer: str | None = None,
    base_url: str | None = None,
    model: LanguageModel | None = None,
    text: Corpus | None = None,
    k: int = K,
    quantile: float = QUANTILE,
    window: int = WINDOW,
    seed: int = 0,
    quiet: bool = False,
) -> Descriptions:
    """A description of every unit: likely given its top exemplars, unlikely a priori.

    recording: whose exemplars are described, or an ExemplarStore (of text or images).

    units: to describe; needed with a recording, by default all of a store. describer: words (no language model), dissect
    (concepts of tagged text), local (a Hugging Face model) or endpoint (an OpenAI-compatible one). lam: weight of the prior;
    0 is likelihood only. candidates: descriptions to consider besides the describer's own. options: further arguments of the
    describer. writer: the model that local (a hub id or folder) or endpoint (its name there) describes with. base_url: where
    the endpoint is, such as http://localhost:8000/v1. model: the recording's, if it can't be opened again. text: likewise.
    k: top passages of a unit. quantile: of its values above which a token fires. window: tokens of a passage. quiet: no
    progress bar.

    A unit whose top passages never pass the bar is called "inactive". `Description.explains` is False where the text tells no
    better what fires than nothing does, once the choice among many candidates is paid for.
    Example: `patchclamp read describe rec/ --units mlp.3.17 --out descriptions.json`.
    """
    if not np.isfinite(lam):
        raise InputError(f"lam={lam}; give a finite number")
    if isinstance(recording, ExemplarStore):
        store = recording if units is None else recording.subset(_names(units))
    elif units is None:
        raise InputError("no units were given; name those to describe, such as units=['mlp.3.17'] (--units)")
    else:
        store = exemplars(
            recording, units=units, model=model, text=text, k=k, quantile=quantile, window=window, seed=seed
        )
    given = {key: value for key, value in (("model", writer), ("base_url", base_url)) if value is not None}
    arguments = {**given, **(options or {})}
    made = describer_of(describer, store, arguments)
    found = []
    with progress("describing", len(store), unit="units", quiet=quiet) as advance:
        for unit in store:
            found.append(describe_unit(made, store[unit], lam=lam, candidates=candidates))
            advance(1)
    kept = {"describer": describer, "lam": lam, "candidates": list(candidates), "options": plain_options(arguments)}
    source = provenance("read.describe", arguments=kept, inputs={"exemplars": dict(store.provenance)}, seed=seed)
    return Descriptions(tuple(found), describer, lam, store.medium, store.model, source)


def describer_of(name: str, store: ExemplarStore, options: Mapping[str, Any] | None = None) -> Describer:
    """A describer for the units of a store; InputError for an unknown name or option."""
    kind = describers[name]
    known = [p for p in inspect.signature(kind).parameters if p != "store"]
    if unknown := [option for option in options or {} if option not in known]:
        raise InputError(f"the describer {name} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
    made: Describer = kind(store, **(options or {}))
    return made


def describe_unit(
    describer: Describer, shown: Exemplars, *, lam: float = LAMBDA, candidates: Sequence[str] = ()
) -> Description:
    """The description of one unit by one describer."""
    if shown.silent:
        note = "no part of its top exemplars is above the bar: a dead or constant unit"
        return Description(shown.unit, INACTIVE, 0.0, 0.0, 0.0, 0.0, notes=(*shown.notes, note))
    texts = list(dict.fromkeys([*describer.candidates(shown), *candidates]))
    if not texts:
        return Description(shown.unit, NOTHING, 0.0, 0.0, 0.0, 0.0, notes=(*shown.notes, "no candidates"))
    likely, prior = describer.log_probability(texts, shown), describer.log_prior(texts)
    order = ranked(likely, prior, lam)
    score = wpmi(likely, prior, lam)
    best = int(order[0])
    return Description(
        shown.unit,
        texts[best],
        float(score[best]),
        float(likely[best]),
        float(prior[best]),
        describer.margin(texts[best], shown),
        tuple((texts[at], float(score[at])) for at in order[1 : 1 + RUNNERS_UP].tolist()),
        shown.notes,
    )


def wpmi(log_probability: Any, log_prior: Any, lam: float) -> NDArray[np.float64]:
    """(n,) weighted pointwise mutual information log p(d | E) - lam log p(d), nats (equation 6 of the paper)."""
    likely, prior = np.asarray(log_probability, dtype=np.float64), np.asarray(log_prior, dtype=np.float64)
    if likely.shape != prior.shape:
        raise InputError(f"log-probabilities of shape {likely.shape} and priors of shape {prior.shape}")
    return np.asarray(likely - lam * prior)


def ranked(log_probability: Any, log_prior: Any, lam: float) -> NDArray[np.int64]:
    """(n,) positions from the highest wpmi down; among equal ones the candidate that comes first."""
    return np.argsort(-wpmi(log_probability, log_prior, lam), kind="stable")


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a describer as plain data for provenance; a model by its name, a secret not at all."""
    plain = {}
    for name, value in options.items():
        if name == "api_key":
            continue
        plain[name] = (
            value if isinstance(value, str | int | float | bool | None) else getattr(value, "name", str(value))
        )
    return plain


def _names(units: UnitSet | Sequence[str]) -> list[str]:
    """Names as a store knows them: an image model's units need not follow the names of language models."""
    if isinstance(units, UnitSet):
        return units.names()
    return [units] if isinstance(units, str) else [str(unit) for unit in units]


make_callable(__name__)
