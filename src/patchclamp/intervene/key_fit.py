"""Fitting an abstention: regions of key space from a skill's queries, their layer and size chosen on queries held out.

Li, Sun & Weng 2025 (arXiv 2503.21730), Key Space Detection. The paper takes the last layer and sets alpha by hand for every task
(2, 1.4, 0.06); here alpha is swept and chosen where it separates held-out queries best, and the change says how many of yet
other queries lie inside: its own fitted queries do so by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import InputError
from patchclamp.data.corpora import Corpus
from patchclamp.intervene.abstention import REFUSAL, Abstention, Box
from patchclamp.intervene.fits import fits
from patchclamp.intervene.key_coverage import ALPHAS, Fitted, fitted_regions
from patchclamp.record.recorder import record
from patchclamp.record.recording import Recording

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

SHOWN = ("layer", "k", "alpha", "separation", "auroc", "forget", "retain")


@fits.add("abstain")
def abstain(
    recording: Recording,
    *,
    forget: str | Sequence[str],
    retain: Sequence[str] | None = None,
    layer: int | str = "last",
    alpha: float | None = None,
    when: str = "prompt",
    refusal: str = REFUSAL,
    site: str = "mlp",
    fit: str = "last",
    held_out: Recording | None = None,
    alphas: Sequence[float] = ALPHAS,
    seed: int = 0,
) -> Abstention:
    """Refuse to answer queries whose key vector lies in the region of a skill's queries.

    forget: the label or labels to be refused, each with a region of its own. retain: labels to be answered, which alpha is
    tuned against; None means all others. layer: last (the paper), best (the one that separates held-out queries best), or its
    number. alpha: size of the box, 1 holds every fitted query; None chooses the one that lets in most of the skill's held-out
    queries and fewest others. when: which keys are looked at: prompt, any or all (see `Abstention`; the paper's is any). refusal:
    what is said instead of an answer. site: mlp, what enters the down projection. fit: last fits to the key at each query's last
    token (statistic pooled), all to the keys of all tokens (statistic moments, with held_out). held_out: a recording of other
    queries with pooled, to choose and to report on; None splits those of the recording. alphas: sizes to try. seed: of the split.

    Record prompts without their answers: record(model, prompts, sites=("mlp",), statistics=("pooled",)). What the regions hold
    lies in `boxes[i].fitted`, with the curve over alpha and the separation of every layer. Without other labels a warning says
    that alpha can't be tuned. Raises InputError for unknown labels or layers, and for too few queries.

    Example: `patchclamp fit abstain rec/ --forget arithmetic --layer best --out refuse.interventions.json`
    """
    skills = (forget,) if isinstance(forget, str) else tuple(forget)
    if not skills or len(set(skills)) < len(skills):
        raise InputError(f"forget={list(skills)} given; name each skill once, at least one")
    others = tuple(label for label in recording.labels if label not in skills) if retain is None else tuple(retain)
    if both := [name for name in others if name in skills]:
        raise InputError(f"label {both[0]!r} is both to be refused and to be answered")
    boxes, sizes = [], alphas if alpha is None else (*alphas, alpha)
    for name in skills:
        found = fitted_regions(
            recording, forget=name, others=others, site=site, fit=fit, held_out=held_out, alphas=sizes, seed=seed
        )
        boxes.append(_box(name, found, layer, alpha, others))
    return Abstention(tuple(boxes), refusal, when)


def abstain_from_text(
    model: LanguageModel, text: Corpus, *, batch_tokens: int | None = None, quiet: bool = False, **how: Any
) -> Abstention:
    """`abstain` on labelled prompts, which are recorded first. how: its keywords, such as forget="arithmetic"."""
    sites = (how.get("site", "mlp"),)
    recording = record(model, text, sites=sites, statistics=("pooled",), batch_tokens=batch_tokens, quiet=quiet)
    return abstain(recording, **how)


def _box(name: str, found: Fitted, layer: int | str, alpha: float | None, others: Sequence[str]) -> Box:
    """The region of the layer asked for, with everything that is known of how far it holds."""
    known = {entry.layer: entry for entry in found.layers}
    where = {"best": found.best, "last": max(known)}.get(layer) if isinstance(layer, str) else layer
    if where not in known:
        raise InputError(
            f"layer={layer!r} given; it is last, best, or a layer with a region: {', '.join(map(str, known))}"
        )
    told = known[where].to_dict()
    if alpha is not None and alpha != told["alpha"]:  # the intervals are those of the alpha that was chosen
        told |= dict.fromkeys(("forget_low", "forget_high", "retain_low", "retain_high", "fitted", "separation"))
        inside = {size: shares for size, *shares in told["curve"]}[alpha]
        told |= {"alpha": alpha, "forget": inside[0], "retain": inside[1]}
        told["expected"] = found.regions[where].expected_coverage(alpha)
    by_layer = [{key: entry.to_dict()[key] for key in SHOWN} for entry in found.layers]
    fitted = {**told, "layers": by_layer, "counts": found.counts, "answered": list(others)}
    return Box(name, found.regions[where], float(told["alpha"]), _plain(fitted))


def _plain(value: Any) -> Any:
    """The value with tuples as lists and NaN as None, as JSON has it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value != value else value
